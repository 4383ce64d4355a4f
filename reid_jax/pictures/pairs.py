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
_DOT = 3
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
    between the places that belong together (those of strength 0 are left out).

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
                row += drawn.pair(i, j, query, candidate, frame, f"rank {rank}")
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


class _PairMaps:
    """A pair as two tiles."""

    headers = ("query map", "candidate map")

    def __init__(self, item: PairMaps):
        self._query, self._candidate = (
            np.asarray(item.query),
            np.asarray(item.candidate),
        )
        self.legend = overlays.heat_legend(self._query, self._candidate)

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
        self.legend = [(overlays.heat_scale(), "strength, 0 to 1")]

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
    pen, colours = ImageDraw.Draw(canvas), overlays.heat_colours(strength)
    for m in np.argsort(strength, kind="stable"):
        if not strength[m]:
            continue
        colour = tuple(colours[m].tolist())
        places = [
            tuple(_FINE * float(x) for x in p[::-1]) for p in (starts[m], ends[m])
        ]
        pen.line(places, fill=colour, width=round(1.5 * _FINE))
        for place in places:
            pen.circle(place, _FINE * _DOT, fill=colour, outline="white", width=3)
    return np.asarray(canvas.reduce(_FINE))
