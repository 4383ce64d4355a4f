r"""Each paper's baseline and system on the test beds, several seeds each: a document.

    python -m benchmarks.leaderboard --seeds=5
    python -m benchmarks.leaderboard --workdir=runs/mine --seeds=2 \
        --systems=aaformer,drop --beds=occlusion,partial --images=10240 -- \
        --config.data.data_dir=data
    python -m benchmarks.leaderboard --table --docs

All are the papers' `:demo` networks, trained on the same pictures and for the same
number of images seen (batches x batch size, over all stages), each by its demo's
optimizer, whose warm-up is stretched with the schedule. The last state is scored.

Started again, this goes on where it was stopped: what has ended is read, an interrupted
run is resumed, and on a bed that was asked for later the networks that are there are
scored. What is known of the runs that have ended is in `leaderboard.json` of the
workdir. The default, `benchmarks/results/leaderboard`, is part of the repository, so
that any machine can add seeds; name another one to train all of them yourself. Two
commands at once may share a workdir if their `--systems` are others.

What follows `--` is passed to every run. `leaderboard.md` and its pictures are written
to the workdir after every seed; `--table` trains nothing and writes them of all that is
there, and `--docs` writes them to `docs/`, too.
"""

from __future__ import annotations

import argparse
import itertools
import pathlib
from collections.abc import Iterable, Sequence

import jax

from benchmarks.leaderboard import page
from benchmarks.leaderboard.board import Board
from benchmarks.leaderboard.systems import (
    IMAGES,
    PAPERS,
    beds_and_sets,
    schedule,
    systems,
)
from reid_jax import errors, storage
from reid_jax.errors import UserError

HERE = pathlib.Path(__file__).resolve()
KEPT = HERE.parents[1] / "results" / "leaderboard"
DOCS = HERE.parents[2] / "docs"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what is missing, and writes the document after every seed."""
    options = _parse(argv)
    # Only sizes are asked for here: the runs need the accelerators.
    jax.config.update("jax_platforms", "cpu")
    board = Board(options.workdir)
    if not options.table:
        _run(board, options)
    elif not board.facts["runs"]:
        raise UserError(f"{board.folder} has no leaderboard; leave out --table")
    for place in [board.folder, *([storage.absolute(DOCS)] * options.docs)]:
        print(page.write(place, board), flush=True)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.leaderboard",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", default=str(KEPT), help="of all runs")
    parser.add_argument("--seeds", type=int, default=5, help="of every system, from 0")
    parser.add_argument(
        "--systems", default=",".join(PAPERS), help="papers: some of the default"
    )
    parser.add_argument(
        "--beds", default=",".join(beds_and_sets()), help="some of the default"
    )
    parser.add_argument(
        "--images", type=int, help=f"that each network sees; default {IMAGES}"
    )
    parser.add_argument("--table", action="store_true", help="trains nothing")
    parser.add_argument("--docs", action="store_true", help="writes docs/, too")
    parser.add_argument("further", nargs="*", help="after --: fields for every run")
    return parser.parse_args(argv)


def _chosen(flag: str, given: str, known: Iterable[str]) -> list[str]:
    """Those of the known names that are given, in their order.

    Raises:
      UserError: if there are others.
    """
    names = given.split(",")
    if unknown := [name for name in names if name not in known]:
        raise UserError(
            f"--{flag}: there is no {', '.join(unknown)}; known: {', '.join(known)}"
        )
    return [name for name in known if name in names]


def _run(board: Board, options: argparse.Namespace) -> None:
    """Every system with one seed before any with the next."""
    if options.seeds < 1:
        raise UserError(f"--seeds={options.seeds}: at least one")
    papers = _chosen("systems", options.systems, PAPERS)
    beds = beds_and_sets()
    chosen = _chosen("beds", options.beds, beds)
    sets = list(itertools.chain.from_iterable(beds[bed] for bed in chosen))
    board.claim(options.images, options.further)
    schedules = {s: schedule(s, board.facts["images"]) for s in systems(papers)}
    runs = list(itertools.product(range(options.seeds), schedules))
    for number, (seed, system) in enumerate(runs, start=1):
        print(f"[{number}/{len(runs)}] {system.name}, seed {seed}", flush=True)
        scores = board.run(system, seed, sets, schedules[system])
        shown = (f"{name.removeprefix('bed_')} {scores[name]:.1f}" for name in sets)
        print(f"mAP: {', '.join(shown)}", flush=True)
        if number % len(schedules) == 0:
            page.write(board.folder, board)
    board.add_ceilings(sets)


if __name__ == "__main__":
    with errors.answered():
        main()
