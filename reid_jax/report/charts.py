"""Line charts and histograms as SVG within a page."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from reid_jax.report.html import Html, element, joined

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31")
"""Of runs, told apart by colour-blind people too (Okabe and Ito's)."""

RIGHT, WRONG = "#14a546", "#dc2828"

_WIDTH, _HEIGHT = 360, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 8, 8, 22
_POINTS = 300
"""A longer line is drawn by the extremes of as many stretches."""
_BARS = 128
_LEAST = 1e-60
"""What is nearer together is one value: no float32 is, and float64's grow coarse."""

Series = tuple[str, Sequence[tuple[float, float]]]
"""A colour, and (x, y) in the order of x."""


def lines(caption: str, series: Sequence[Series]) -> Html:
    """A chart of one or more lines over steps; a line of one point is a dot."""
    points = [point for _, line in series for point in line]
    xs, ys = zip(*points, strict=True)
    frame = _Frame((min(xs), max(xs)), (min(ys), max(ys)))
    drawn = (_line(colour, _thinned(line), frame) for colour, line in series)
    return frame.figure(caption, joined(list(drawn)))


def histogram(
    caption: str,
    edges: np.ndarray,
    right: np.ndarray,
    wrong: np.ndarray,
    *,
    threshold: float | None = None,
) -> Html:
    """Shares of right and of wrong pairs over their distance, and a threshold.

    Args:
      caption: above the chart.
      edges: [n + 1], of equally wide bins.
      right, wrong: [n], numbers of pairs.
      threshold: distance to mark.
    """
    joined_bins = -(-len(right) // _BARS)
    starts = np.arange(0, len(right), joined_bins)
    shares = [np.add.reduceat(n, starts) / max(n.sum(), 1) for n in (right, wrong)]
    x = [*edges[starts], edges[-1]]
    top = max(share.max() for share in shares)
    frame = _Frame((x[0], x[-1]), (0.0, top), percent=True)
    areas = [
        _steps(colour, x, share, frame)
        for colour, share in zip((RIGHT, WRONG), shares, strict=True)
    ]
    mark = _mark(threshold, frame) if threshold is not None else Html()
    return frame.figure(caption, joined([*areas, mark]))


class _Frame:
    """Axes with their ticks, and where a value lies between them."""

    def __init__(
        self, x: tuple[float, float], y: tuple[float, float], *, percent: bool = False
    ):
        self._x, self._y = _opened(x), _opened(y)
        self._percent = percent

    def x(self, value: float) -> float:
        low, high = self._x
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self._y
        return (
            _HEIGHT
            - _BOTTOM
            - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)
        )

    def figure(self, caption: str, content: Html) -> Html:
        svg = element(
            "svg",
            *(self._rule(value) for value in _ticks(*self._y, 4)),
            *(self._foot(value) for value in _ticks(*self._x, 5)),
            content,
            viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
            role="img",
            aria_label=caption,
        )
        note = element("figcaption", caption)
        return element("figure", note, svg, class_="chart")

    def _rule(self, value: float) -> Html:
        y = round(self.y(value), 1)
        ends = {"x1": _LEFT, "x2": _WIDTH - _RIGHT, "y1": y, "y2": y}
        label = f"{100 * value:.3g}%" if self._percent else f"{value:,.4g}"
        return joined(
            (
                element("line", stroke="currentColor", stroke_opacity=0.15, **ends),
                element("text", label, x=_LEFT - 5, y=y + 4, text_anchor="end"),
            )
        )

    def _foot(self, value: float) -> Html:
        place = {"x": round(self.x(value), 1), "y": _HEIGHT - 6}
        return element("text", f"{value:,.6g}", text_anchor="middle", **place)


def _line(colour: str, line: Sequence[tuple[float, float]], frame: _Frame) -> Html:
    places = [(round(frame.x(x), 1), round(frame.y(y), 1)) for x, y in line]
    if len(places) == 1:
        return element("circle", cx=places[0][0], cy=places[0][1], r=3, fill=colour)
    points = " ".join(f"{x},{y}" for x, y in places)
    stroke = {"stroke": colour, "stroke_width": 1.6, "stroke_linejoin": "round"}
    return element("polyline", points=points, fill="none", **stroke)


def _steps(
    colour: str, x: Sequence[float], shares: Sequence[float], frame: _Frame
) -> Html:
    """The area under a histogram."""
    path = [f"M{frame.x(x[0]):.1f},{frame.y(0):.1f}"]
    for left, right, share in zip(x, x[1:], shares, strict=False):
        y = frame.y(share)
        path.append(f"L{frame.x(left):.1f},{y:.1f}L{frame.x(right):.1f},{y:.1f}")
    path.append(f"L{frame.x(x[-1]):.1f},{frame.y(0):.1f}Z")
    looks = {"fill": colour, "fill_opacity": 0.3, "stroke": colour}
    return element("path", d="".join(path), **looks)


def _mark(threshold: float, frame: _Frame) -> Html:
    x = round(frame.x(threshold), 1)
    ends = {"x1": x, "x2": x, "y1": _TOP, "y2": _HEIGHT - _BOTTOM}
    return element("line", stroke="currentColor", stroke_dasharray="4 3", **ends)


def _thinned(line: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """A long line by the lowest and the highest point of each stretch: peaks stay."""
    if len(line) <= 2 * _POINTS:
        return list(line)
    kept = [line[0]]
    for part in np.array_split(np.arange(len(line)), _POINTS):
        values = [line[i][1] for i in part]
        ends = {part[int(np.argmin(values))], part[int(np.argmax(values))]}
        kept += [line[i] for i in sorted(ends)]
    return [*kept, line[-1]]


def _opened(bounds: tuple[float, float]) -> tuple[float, float]:
    """Bounds with some distance between them."""
    low, high = bounds
    if high - low > _LEAST:
        return low, high
    margin = abs(low) * 0.1 if abs(low) > _LEAST else 0.5
    return low - margin, high + margin


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers between two, about `count`."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [step * i for i in range(first, last + 1)]
