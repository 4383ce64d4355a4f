"""Ranking lists of several runs under each other, for queries that all of them drew.

python -m reid_jax.evaluation.side_by_side --runs=runs/one,runs/other --out=lists.png

Every evaluation writes the lists of its pictured queries to `ranking.json`. For other
queries, evaluate the runs again with `--config.evaluation.pictured`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from data_pipelines import prepared
from data_pipelines.protocols import protocol
from data_pipelines.records import Records
from reid_jax import errors, pictures, storage
from reid_jax.errors import UserError
from reid_jax.evaluation import drawing
from reid_jax.evaluation.lists import find
from reid_jax.evaluation.results import picture_folder
from reid_jax.runtime import workdir

_SIZE = 256, 128
"""Height and width at which images are read."""

Entry = dict[str, Any]
"""Of a list: `query`, `gallery` and `keys`, see `Lists.by_name`."""


def side_by_side(
    runs: Sequence[str],
    path: str,
    *,
    dataset: str = "",
    queries: Sequence[str] = (),
) -> None:
    """Draws a row per query and run: the query, and what that run ranks first.

    Args:
      runs: folders of runs that were evaluated on one protocol.
      path: of the PNG.
      dataset: name of the protocol; "" is the first one of the first run.
      queries: file names of pictured queries; () is all that every run has.

    Raises:
      UserError: a run has no such lists, or there is no such query, or the data.
    """
    name = dataset or _first_protocol(runs[0])
    found = {run: _read(run, name) for run in runs}
    ranked = {
        run: {entry["query"]: entry for entry in about["queries"]}
        for run, about in found.items()
    }
    names = _common(ranked, queries)
    shown = [(run, ranked[run][query]) for query in names for run in runs]
    figures = [
        f"{run} {drawing.figures(about['metrics'])}" for run, about in found.items()
    ]
    _draw(
        path, shown, *_open(runs[0], name), f"{name}: {'; '.join(figures)}", len(runs)
    )


def _draw(
    path: str,
    shown: Sequence[tuple[str, Entry]],
    query: Records,
    gallery: Records,
    title: str,
    row_group: int,
) -> None:
    """One row for each run and list."""
    rows = find([entry["query"] for _, entry in shown], query)
    length = max(len(entry["gallery"]) for _, entry in shown)
    nearest = np.full((len(shown), length), -1)
    for row, (_, entry) in zip(nearest, shown, strict=True):
        row[: len(entry["gallery"])] = find(entry["gallery"], gallery)
    images, answers = drawing.batches(
        query, gallery, rows, np.maximum(nearest, 0), _SIZE
    )
    captions = zip(shown, drawing.captions_of(query, rows), strict=True)
    pictures.ranking_lists(
        path,
        images["image"],
        answers["image"],
        correct=answers["person"] == images["person"][:, None],
        present=nearest >= 0,
        captions=[f"{run}\n{caption}" for (run, _), caption in captions],
        notes=[drawing.notes_of(entry["gallery"], entry["keys"]) for _, entry in shown],
        title=title,
        about=drawing.NOTES,
        row_group=row_group,
    )


def _first_protocol(run: str) -> str:
    """What the first list of a run is of."""
    # A protocol's name may be that of a folder in a folder; lists of other evaluations,
    # such as re-ranked ones, are in such, too.
    folder = storage.absolute(run) / "pictures"
    found = [*folder.glob("*/ranking.json"), *folder.glob("*/*/ranking.json")]
    for path in sorted(found):
        name = workdir.read_object(path)["protocol"]
        if path == _lists(run, name):
            return name
    raise _lacking(run, "ranking lists")


_HOW = (
    "evaluate it once more (--mode=evaluate), with the queries that you want to see: "
    "--config.evaluation.pictured=\"('FILE', 'FILE')\""
)


def _lacking(run: str, what: str) -> UserError:
    if not storage.absolute(run).exists():
        return UserError(f"{run} does not exist; mend --runs")
    return UserError(f"{run} has no {what}: {_HOW}")


def _lists(run: str, name: str) -> epath.Path:
    """Where the plain evaluation of a protocol has left its lists."""
    return (
        storage.absolute(run) / "pictures" / picture_folder(name, {}) / "ranking.json"
    )


def _read(run: str, name: str) -> dict[str, Any]:
    path = _lists(run, name)
    if not path.exists():
        raise _lacking(run, f"ranking lists of {name}")
    return workdir.read_object(path)


def _common(
    ranked: dict[str, dict[str, Entry]], queries: Sequence[str]
) -> Sequence[str]:
    """The queries to draw, which every run has a list of."""
    for run, known in ranked.items():
        missing = [query for query in queries if query not in known]
        if missing:
            raise UserError(
                f"{run} has no ranking list of {', '.join(missing)}; it has those of "
                f"{', '.join(known)}. For others, {_HOW}"
            )
    first, *rest = ranked.values()
    common = queries or [q for q in first if all(q in other for other in rest)]
    if not common:
        raise UserError(f"{', '.join(ranked)} drew no common query: {_HOW}")
    return common


def _open(run: str, name: str) -> list[Records]:
    """Query and gallery, from where the run has its data."""
    config = workdir.read_object(storage.absolute(run) / "config.json")
    made = protocol(name)
    return [
        prepared.open_records(made.dataset, split, config["data"]["data_dir"])
        for split in (made.query_split, made.gallery_split)
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the picture.

    Raises:
      UserError: if runs or their lists are missing.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", required=True, help="folders of runs, with commas")
    parser.add_argument("--out", required=True, help="PNG file to write")
    parser.add_argument("--dataset", default="", help="name of the protocol")
    parser.add_argument("--queries", default="", help="file names, with commas")
    given = parser.parse_args(argv)
    runs, queries = (
        list(filter(None, x.split(","))) for x in (given.runs, given.queries)
    )
    if not runs:
        raise UserError(f"--runs={given.runs} names no run")
    side_by_side(runs, given.out, dataset=given.dataset, queries=queries)
    print(f"wrote {given.out}")


if __name__ == "__main__":
    with errors.answered():
        main()
