"""How metrics of one or several runs develop over their steps, as one PNG.

    python -m benchmarks.curves --runs=runs/coupled,runs/decoupled \\
        --metrics=parsing_accuracy,accuracy --out=curves.png

Every metric has a panel, every run a colour: the points are the rows of the run's
`metrics.jsonl`, each of one training batch or one evaluation, and the line is their
running mean. A run that has no such metric is missing in its panel.
"""

from __future__ import annotations

import argparse
import io
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reid_jax import errors, storage
from reid_jax.errors import UserError

Rows = list[dict[str, Any]]
"""What a run has logged: `step`, `time` and metrics by name."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", required=True, help="folders, comma-separated")
    parser.add_argument("--metrics", default="loss", help="names, comma-separated")
    parser.add_argument("--window", type=int, default=5, help="rows of a running mean")
    parser.add_argument("--out", default="curves.png", help="the picture")
    options = parser.parse_args(argv)
    runs = {name: read(pathlib.Path(name)) for name in options.runs.split(",")}
    figure = draw(runs, options.metrics.split(","), window=options.window)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    storage.write_bytes(options.out, file.getvalue())
    print(options.out)


def read(run: pathlib.Path) -> Rows:
    """The rows of a run; a last one that is still being written is left out.

    Raises:
      UserError: if it has none.
    """
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{run} has no metrics.jsonl: name the folders of runs")
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def draw(runs: dict[str, Rows], metrics: Sequence[str], *, window: int) -> Figure:
    """A panel for each metric, side by side.

    Raises:
      UserError: for a metric that no run has, or no window.
    """
    if window < 1:
        raise UserError(f"--window={window}: a running mean is of at least one row")
    known = {name for rows in runs.values() for row in rows for name in row}
    known -= {"step", "time"}
    for metric in metrics:
        if metric not in known:
            raise UserError(
                f"no run has the metric {metric!r}; there are: "
                f"{', '.join(sorted(known)) or 'none'}"
            )
    figure = Figure((5 * len(metrics), 4), layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        _panel(axes, runs, metric, window)
    return figure


def _panel(axes: Axes, runs: dict[str, Rows], metric: str, window: int) -> None:
    for number, (name, rows) in enumerate(runs.items()):
        points = [(row["step"], row[metric]) for row in rows if metric in row]
        if points:
            steps, values = np.transpose(points)
            colour = f"C{number}"
            axes.plot(steps, values, ".", color=colour, alpha=0.3)
            axes.plot(steps, running_mean(values, window), color=colour, label=name)
    axes.set_title(metric)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    axes.legend()


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Means over `window` values around each; fewer at the ends."""
    ones = np.ones(min(window, len(values)))
    sums = np.convolve(values, ones, "same")
    return sums / np.convolve(np.ones(len(values)), ones, "same")


if __name__ == "__main__":
    with errors.answered():
        main()
