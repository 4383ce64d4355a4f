"""What each step of re-ranking changes, over the runs of several seeds, as a table.

    python -m benchmarks.reranking_steps --runs=runs/seed0,runs/seed1,runs/seed2

The best checkpoint of each run is evaluated on the run's own protocol without
re-ranking, with every step alone, and with all of them. Means and sample deviations of
the runs; their pictures and results stay as they are.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from typing import Any

from benchmarks.ladder import spread
from configs import run
from reid_jax import checks, errors
from reid_jax.evaluation import evaluate
from reid_jax.retrieval.steps import STEPS

CHOICES = {
    "none": (),
    **{step: (step,) for step in STEPS},
    "all": tuple(STEPS),
}
"""Rows of the table, and the steps of each."""

COLUMNS = ("rank1", "mAP", "mINP")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", required=True, help="folders, comma-separated")
    options = parser.parse_args(argv)
    folders = [folder for folder in options.runs.split(",") if folder]
    if not folders:
        parser.error("--runs names no folder")
    for folder in folders:  # a wrong name is told before any is evaluated
        run.get_config(folder)
    found = {
        name: [_metrics(folder, steps) for folder in folders]
        for name, steps in CHOICES.items()
    }
    print(table(found))


def _metrics(folder: str, steps: tuple[str, ...]) -> dict[str, float]:
    """Metrics of a run's first protocol."""
    config = run.get_config(folder)
    config.evaluation.rerank, config.evaluation.pictures = steps, False
    config.evaluate_on = config.evaluate_on[:1]
    checks.check_config(config)
    with tempfile.TemporaryDirectory() as elsewhere:
        entries = evaluate.evaluate_checkpoint(config, folder, workdir=elsewhere)
    return entries[0]["metrics"]


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown, in percent."""
    lines = ["| steps | " + " | ".join(COLUMNS) + " |", "|---" * 4 + "|"]
    for name, runs in found.items():
        cells = [
            spread([100 * metrics[column] for metrics in runs]) for column in COLUMNS
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    with errors.answered():
        main()
