r"""Trains the rows of a paper's ablation and writes them as a table.

    python -m benchmarks.ladder --config=configs/aaformer.py:demo
    python -m benchmarks.ladder --config=configs/aaformer.py:demo --seeds=3 \
        --rows=table4-vit,full -- --config.stages.train.epochs=5

Each row is an ordinary run of `reid_jax.main` with `:row=NAME`, in a process and a
folder of its own. Started again, this goes on where it was stopped: finished runs are
read, an interrupted one is resumed. What follows `--` is passed to every run. The table
is `table.md` in the workdir; only the first and the last row get several seeds.
"""

from __future__ import annotations

import argparse
import importlib.util
import pathlib
import re
import statistics
from collections.abc import Sequence
from typing import Any

from etils import epath

from benchmarks import trainings
from reid_jax import errors
from reid_jax.errors import UserError
from reid_jax.runtime.workdir import write_text

COLUMNS = {
    "rank-1": ("metrics", "rank1"),
    "mAP": ("metrics", "mAP"),
    "mINP": ("metrics", "mINP"),
    "mAP before pairs": ("metrics_before_pairs", "mAP"),
}
"""Columns of the table, and where `results.json` has them."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what is missing, printing the table so far after every run."""
    options = _parse(argv)
    path, _, arguments = options.config.partition(":")
    rows = _rows(path, options.rows)
    stem = "-".join(re.findall(r"\w+", f"{pathlib.Path(path).stem}-{arguments}"))
    workdir = epath.Path(options.workdir or f"runs/ladder-{stem}")
    runs = _order(rows, options.seeds)
    found: dict[str, list[dict[str, Any]]] = {}
    for number, (row, seed) in enumerate(runs, start=1):
        name = row or "full"
        print(f"[{number}/{len(runs)}] {name}, seed {seed}", flush=True)
        folder = workdir / f"{name}-seed{seed}"
        words = [word for word in (arguments, row and f"row={row}") if word]
        config = f"{path}:{','.join(words)}"
        result = _run(config, folder, seed, options.further)
        found.setdefault(name, []).append(result)
        text = table(found)
        write_text(workdir / "table.md", text)
        print(text, flush=True)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="a config file, :arguments")
    parser.add_argument(
        "--workdir",
        help="folder of the runs; default: runs/ladder-<config>-<arguments>",
    )
    parser.add_argument(
        "--rows", default="", help="names, comma-separated; default: the file's LADDER"
    )
    parser.add_argument(
        "--seeds", type=int, default=1, help="of the first and the last row; others 1"
    )
    parser.add_argument("further", nargs="*", help="after --: fields for every run")
    return parser.parse_args(argv)


def _rows(path: str, chosen: str) -> list[str]:
    """Names of the rows to train; "" is the config without a row."""
    spec = importlib.util.spec_from_file_location("ladder_config", path)
    if spec is None or not pathlib.Path(path).exists():
        raise UserError(f"--config: there is no config file {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rows = getattr(module, "ROWS", None)
    if rows is None:
        raise UserError(f"{path} has no ROWS: it is not a paper with ablation tables")
    if not chosen:
        return list(module.LADDER)
    names = ["" if name == "full" else name for name in chosen.split(",")]
    for name in names:
        if name and name not in rows:
            raise UserError(
                f"{path} has no row {name!r}; known: full, {', '.join(rows)}"
            )
    return names


def _order(rows: Sequence[str], seeds: int) -> list[tuple[str, int]]:
    """Every row with seed 0 first, then the further seeds of the ends."""
    ends = list(dict.fromkeys((rows[0], rows[-1])))
    further = [(row, seed) for seed in range(1, seeds) for row in ends]
    return [(row, 0) for row in rows] + further


def _run(
    config: str, folder: epath.Path, seed: int, further: Sequence[str]
) -> dict[str, Any]:
    """The first entry of the run's results, and its seconds."""
    flags = [f"--config.seed={seed}", *further]
    seconds = trainings.finished(config, folder, flags)["seconds"]
    return trainings.entries(folder)[0] | {"seconds": seconds}


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: a line per row, with mean and sample deviation over its seeds."""
    columns = [
        name
        for name, (group, _) in COLUMNS.items()
        if any(group in result for results in found.values() for result in results)
    ]
    lines = ["| row | seeds | " + " | ".join(columns) + " | seconds a run |"]
    lines.append("|---" * (len(columns) + 3) + "|")
    for row, results in found.items():
        cells = [row, str(len(results))]
        cells += [_cell(results, *COLUMNS[name]) for name in columns]
        cells.append(str(max(result["seconds"] for result in results)))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(results: Sequence[dict[str, Any]], group: str, name: str) -> str:
    values = [100 * result[group][name] for result in results if group in result]
    return spread(values) if values else ""


def spread(values: Sequence[float]) -> str:
    """Their mean, and of several the sample deviation."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


if __name__ == "__main__":
    with errors.answered():
        main()
