"""Curves of `metrics.jsonl`, runs over each other."""

from __future__ import annotations

from collections.abc import Sequence

from reid_jax.report import charts, forms
from reid_jax.report.html import Html, element, grid, section
from reid_jax.report.runs import Run

_FIRST = ("loss", "learning_rate")
_NO_CURVE = ("step", "time")


def curves(runs: Sequence[Run]) -> Html:
    """A chart for each scalar that any of the runs has written."""
    found = {name: [_points(run, name) for run in runs] for name in _scalars(runs)}
    drawn = [
        charts.lines(_caption(name, lines), _coloured(lines))
        for name, lines in found.items()
        if any(lines)
    ]
    return section("Curves over steps", keys([run.name for run in runs]), grid(*drawn))


def keys(names: Sequence[str], colours: Sequence[str] = charts.COLOURS) -> Html:
    """Which colour is what; nothing for a single name."""
    if len(names) < 2:
        return Html()
    swatches = (
        element(
            "span",
            element("i", class_="key", style=f"background:{colours[i % len(colours)]}"),
            name,
        )
        for i, name in enumerate(names)
    )
    return element("p", *swatches, class_="keys")


def _scalars(runs: Sequence[Run]) -> list[str]:
    """The loss, then what was evaluated, then all others."""
    names = {name: None for run in runs for row in run.rows for name in row}
    rest = [name for name in names if name not in (*_FIRST, *_NO_CURVE)]
    evaluated = [n for n in rest if n.endswith(("/mAP", "/rank1"))]
    others = [n for n in rest if "/" not in n]
    return [*(n for n in _FIRST if n in names), *evaluated, *others]


def _points(run: Run, name: str) -> list[tuple[float, float]]:
    """(step, value), where the value is a finite number, of float32's range."""
    rows = ((row["step"], row.get(name)) for row in run.rows)
    return [(x, y) for x, y in rows if forms.finite(y)]


def _coloured(lines: Sequence[list[tuple[float, float]]]) -> list[charts.Series]:
    colours = charts.COLOURS
    pairs = enumerate(lines)
    return [(colours[i % len(colours)], line) for i, line in pairs if line]


def _caption(name: str, lines: Sequence[list[tuple[float, float]]]) -> str:
    """The name and the last values."""
    last = ", ".join(f"{line[-1][1]:.4g}" if line else "none" for line in lines)
    return f"{name}: {last} at the end"
