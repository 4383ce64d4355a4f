"""Pictures of pairs: a query with each of some candidates."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from reid_jax.models.method import Correspondences, PairMaps, PairPicture
from reid_jax.pictures import overlays, sheet
from reid_jax.pictures.overlays import MAP_HEIGHT
from reid_jax.pictures.sheet import ANSWERS, FRAME, QUERY, Tile, answer_colour

BETWEEN = 28
"""Pixels between the two images that lines connect."""
LINES = (
    (255, 215, 0),
    (0, 205, 255),
    (255, 0, 200),
    (255, 130, 0),
    (150, 230, 0),
    (150, 90, 255),
)
"""Colours of a pair's lines, the strongest first; there are no more lines than these.
None is the colour of a frame."""
APART = 18
"""Pixels: a line both of whose ends are nearer than this to those of a stronger one
says the same, and is not drawn."""
_DOT = 3.5
_FINE = 4
"""Lines are drawn so many times larger, and then reduced: smooth edges."""


def draw_pairs(
    path: str | os.PathLike[str],
    query_images: np.ndarray,
    candidate_images: np.ndarray,
    item: PairPicture,
    *,
    correct: np.ndarray,
    ranks: np.ndarray,
    captions: Sequence[str],
    title: str = "",
) -> None:
    """Draws one row per query: the query, then a pair for each of its candidates.

    A pair is the query and the candidate, with their maps over them or with lines
    between the places that belong together: the strongest that can be told apart (see
    `LINES` and `APART`), in a colour each, and the wider the stronger. Under it stand
    its rank and its score, where the method gives one.

    Args:
      path: of the PNG; its folder is created.
      query_images: uint8 [Q, H, W, 3], framed in blue.
      candidate_images: uint8 [Q, K, H, W, 3].
      item: what to draw, of any resolution.
      correct: bool [Q, K], whether a candidate shows the query's person: framed in
        green, otherwise in red.
      ranks: int [Q, K], each candidate's place in the ranking from 1 on; 0 where there
        is no candidate: an empty place.
      captions: Q texts, such as the person and the camera of the query.
      title: a line above the picture.
    """
    kinds = {PairMaps: _PairMaps, Correspondences: _Correspondences}
    drawn = kinds[type(item)](item)
    rows = []
    for i, caption in enumerate(captions):
        query = sheet.resize(query_images[i], MAP_HEIGHT)
        row = [Tile(query, QUERY, caption)]
        for j, rank in enumerate(ranks[i]):
            candidate = sheet.resize(candidate_images[i, j], MAP_HEIGHT)
            if rank:
                frame = answer_colour(correct[i, j])
                text = f"rank {rank}{_score(item, i, j)}"
                row += drawn.pair(i, j, query, candidate, frame, text)
            else:
                row += drawn.empty(query, candidate)
        rows.append(row)
    sheet.write(
        path,
        rows,
        ["query", *len(ranks[0]) * drawn.headers],
        legend=[*ANSWERS, *drawn.legend],
        title=title,
        breaks=range(1, len(rows[0]), len(drawn.headers)),
    )


def _score(item: PairPicture, i: int, j: int) -> str:
    return "" if item.score is None else f", score {float(item.score[i, j]):.3g}"


class _PairMaps:
    """A pair as two tiles."""

    headers = ("query map", "candidate map")

    def __init__(self, item: PairMaps):
        self._query, self._candidate = (
            np.asarray(item.query),
            np.asarray(item.candidate),
        )
        self.legend = overlays.heat_legend("0 to 1", self._query, self._candidate)

    def pair(
        self,
        i: int,
        j: int,
        query: np.ndarray,
        candidate: np.ndarray,
        frame: sheet.Colour,
        text: str,
    ) -> list[Tile]:
        return [
            Tile(overlays.heat(query, self._query[i, j]), QUERY),
            Tile(overlays.heat(candidate, self._candidate[i, j]), frame, text),
        ]

    def empty(self, query: np.ndarray, candidate: np.ndarray) -> list[Tile]:
        return [Tile(np.full_like(x, sheet.FAINT)) for x in (query, candidate)]


class _Correspondences:
    """A pair as one tile, because lines cross the gap between its images."""

    headers = ("query and candidate",)

    def __init__(self, item: Correspondences):
        self._query, self._candidate = (
            np.asarray(item.query),
            np.asarray(item.candidate),
        )
        self._strength = np.asarray(item.strength)
        strip = np.concatenate([sheet.swatch(colour) for colour in LINES], axis=1)
        self.legend = [(strip, "correspondences, the strongest first")]

    def pair(
        self,
        i: int,
        j: int,
        query: np.ndarray,
        candidate: np.ndarray,
        frame: sheet.Colour,
        text: str,
    ) -> list[Tile]:
        left, right = sheet.framed(query, QUERY), sheet.framed(candidate, frame)
        gap = np.full((len(left), BETWEEN, 3), 255, np.uint8)
        size = np.array(query.shape[:2])
        second = left.shape[1] + BETWEEN
        pixels = _lines(
            np.concatenate([left, gap, right], axis=1),
            FRAME + self._query[i, j] * size,
            (FRAME, FRAME + second) + self._candidate[i, j] * size,
            self._strength[i, j],
        )
        return [Tile(pixels, caption=text, bare=True)]

    def empty(self, query: np.ndarray, candidate: np.ndarray) -> list[Tile]:
        height, width = query.shape[:2]
        shape = (height + 2 * FRAME, 2 * (width + 2 * FRAME) + BETWEEN, 3)
        return [Tile(np.full(shape, sheet.FAINT, np.uint8), bare=True)]


def _lines(
    pixels: np.ndarray, starts: np.ndarray, ends: np.ndarray, strength: np.ndarray
) -> np.ndarray:
    """Draws lines with end points over an image uint8 [H, W, 3], strongest on top.

    Args:
      pixels: the image.
      starts, ends: [M, 2], rows and columns in pixels.
      strength: [M] in [0, 1].
    """
    height, width = pixels.shape[:2]
    canvas = Image.fromarray(pixels).resize(
        (_FINE * width, _FINE * height), Image.Resampling.NEAREST
    )
    pen = ImageDraw.Draw(canvas)
    shown = list(zip(LINES, _distinct(starts, ends, strength), strict=False))
    for colour, m in reversed(shown):
        thick = 1 + 2 * float(strength[m])
        places = [
            tuple(_FINE * float(x) for x in p[::-1]) for p in (starts[m], ends[m])
        ]
        # A dark edge: seen on a white ground and over any image.
        pen.line(places, fill=sheet.INK, width=round((thick + 1) * _FINE))
        pen.line(places, fill=colour, width=round(thick * _FINE))
        for place in places:
            pen.circle(place, _FINE * _DOT, fill=colour, outline=sheet.INK, width=3)
    return np.asarray(canvas.reduce(_FINE))


def _distinct(starts: np.ndarray, ends: np.ndarray, strength: np.ndarray) -> list[int]:
    """Lines that can be told apart, strongest first; those of strength 0 left out."""
    both = np.stack([starts, ends], axis=1)
    chosen: list[int] = []
    for m in np.argsort(-strength, kind="stable"):
        apart = np.linalg.norm(both[chosen] - both[m], axis=-1).max(-1)
        if strength[m] > 0 and (apart >= APART).all():
            chosen.append(int(m))
    return chosen
