"""Ranking lists: each query with its nearest gallery images."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from reid_jax.pictures import sheet
from reid_jax.pictures.overlays import group_colour
from reid_jax.pictures.sheet import ANSWERS, QUERY, Legend, Tile, answer_colour

_HEIGHT = 128
"""Pixels of an image in a ranking list."""
_SQUARE = 6
"""Pixels of a part's square: eight stand under an image of 64."""
VISIBLE = 0.5
"""A part whose visibility is a number counts as visible above this."""


def ranking_lists(
    path: str | os.PathLike[str],
    query_images: np.ndarray,
    gallery_images: np.ndarray,
    correct: np.ndarray,
    present: np.ndarray,
    captions: Sequence[str],
    *,
    known: np.ndarray | None = None,
    notes: Sequence[Sequence[str]] | None = None,
    title: str = "",
    about: str = "",
    query_visibility: np.ndarray | None = None,
    gallery_visibility: np.ndarray | None = None,
    part_titles: Sequence[str] = (),
    row_group: int = 1,
) -> None:
    """Draws one row per query: the query, then its nearest gallery images.

    Under an image whose parts are visible or not there is a small square for each
    part, in `group_colour`: full, or an outline.

    Args:
      path: of the PNG; its folder is created.
      query_images: uint8 [n, H, W, 3], framed in blue.
      gallery_images: uint8 [n, k, H, W, 3], nearest first.
      correct: bool [n, k], whether an image shows the query's person: framed in green,
        otherwise in red.
      present: bool [n, k], False where a list is shorter than k: an empty place.
      captions: n texts, such as the person and the camera of the query.
      known: bool [n, k], False where nobody knows who it shows: without a frame.
      notes: n times k texts under the gallery images, such as file and distance.
      title: data set, protocol and metrics.
      about: a line under it, such as what the notes are.
      query_visibility: bool [n, K] or float in [0, 1], visible above 0.5, if known.
      gallery_visibility: the same, [n, k, K].
      part_titles: names of the K parts for the legend, if there are.
      row_group: so many rows belong together, such as two lists of one query.
    """
    known = np.ones_like(present) if known is None else known
    rows = []
    for i, caption in enumerate(captions):
        query = sheet.resize(query_images[i], _HEIGHT)
        row = [Tile(query, QUERY, caption, _strip(query, query_visibility, i))]
        for j, image in enumerate(gallery_images[i]):
            pixels = sheet.resize(image, _HEIGHT)
            if present[i, j]:
                frame = answer_colour(correct[i, j]) if known[i, j] else None
                strip = _strip(pixels, gallery_visibility, (i, j))
                note = notes[i][j] if notes else ""
                row.append(Tile(pixels, frame, note, strip))
            else:
                row.append(Tile(np.full_like(pixels, sheet.FAINT)))
        rows.append(row)
    legend = ANSWERS if known.any() else ANSWERS[:1]
    if query_visibility is not None:
        legend = legend + _parts(part_titles)
    headers = ["query", *(str(rank + 1) for rank in range(present.shape[1]))]
    heading = {"title": title, "about": about}
    sheet.write(path, rows, headers, legend=legend, row_group=row_group, **heading)


def _parts(titles: Sequence[str]) -> Legend:
    """What squares mean, and the colours of the parts that have a name."""
    swatches = enumerate(titles)
    return [
        (_square(sheet.INK, visible=True, size=12), "part visible"),
        (_square(sheet.INK, visible=False, size=12), "part not visible"),
        *((sheet.swatch(group_colour(part)), name) for part, name in swatches),
    ]


def _strip(
    pixels: np.ndarray, visibility: np.ndarray | None, place: int | tuple[int, int]
) -> np.ndarray | None:
    """Squares of the parts of one image, in lines as wide as its `pixels`."""
    if visibility is None:
        return None
    visible = np.asarray(visibility)[place] > VISIBLE
    step = _SQUARE + 2
    per_line = max(1, min(len(visible), (pixels.shape[1] + 2) // step))
    lines = -(-len(visible) // per_line)
    strip = np.full((step * lines + 2, step * per_line, 3), 255, np.uint8)
    for part, seen in enumerate(visible):
        top, left = 2 + part // per_line * step, part % per_line * step
        square = _square(group_colour(part), visible=bool(seen), size=_SQUARE)
        strip[top : top + _SQUARE, left : left + _SQUARE] = square
    return strip


def _square(colour: sheet.Colour, *, visible: bool, size: int) -> np.ndarray:
    """A full square, or its outline."""
    square = np.full((size, size, 3), colour, np.uint8)
    if not visible:
        square[1:-1, 1:-1] = 255
    return square
