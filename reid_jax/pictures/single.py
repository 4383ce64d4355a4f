"""Pictures of single images: heat maps, partitions, and routes through a grid."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from reid_jax.models.method import Maps, Picture, Routes, Segments
from reid_jax.pictures import overlays, sheet
from reid_jax.pictures.overlays import MAP_HEIGHT
from reid_jax.pictures.sheet import Colour, Legend, Tile

ACTIVE = (20, 70, 170)
"""Fill of a cell of full activity; one of none is white."""
_LINE = (205, 205, 205)
_OUTLINE = (110, 110, 110)
ROUTE_HEIGHT = 288
"""Pixels of an image beside its route."""
_PITCH = 96
"""Pixels from layer to layer."""
_NUMBERS = 40
"""Pixels under the cells for the numbers of the layers and the name of their axis."""
_SIDE = 26
"""Pixels left of the scales for the name of their axis."""
_FINE = 4
"""Lines are drawn so many times larger, and then reduced: smooth edges."""


def draw(
    path: str | os.PathLike[str],
    images: np.ndarray,
    item: Picture,
    *,
    title: str = "",
    frames: Sequence[Colour] = (),
    captions: Sequence[str] = (),
    notes: Sequence[Sequence[str]] = (),
    row_group: int = 1,
) -> None:
    """Draws one row per image: the image, then its maps, partitions or routes.

    Heat maps run from blue (0) to red (1) and are black where they are NaN. Groups of a
    partition have one colour each, the same in all tiles; a place without a group
    shows the bare image. Routes are a diagram: layers from left to right, scales from
    top to bottom; cells are the fuller, and paths the wider and darker, the larger
    their weight. The scale ends at 1, or at the largest weight in the picture.

    Args:
      path: of the PNG; its folder is created.
      images: uint8 [B, H, W, 3].
      item: what to draw for each image, of any resolution.
      title: a line above the picture; the item's own `about` stands under it.
      frames: B colours around the images: `QUERY`, and `RIGHT` or `WRONG` of answers.
      captions: B texts under the images.
      notes: B x K texts under the maps or partitions.
      row_group: so many rows belong together, such as a query and its answers.
    """
    height = ROUTE_HEIGHT if isinstance(item, Routes) else MAP_HEIGHT
    resized = [sheet.resize(image, height) for image in np.asarray(images)]
    kinds = {Maps: _maps, Segments: _segments, Routes: _routes}
    beside, headers, legend = kinds[type(item)](resized, item)
    if notes:
        beside = list(map(_noted, beside, notes))
    firsts = map(
        Tile,
        resized,
        frames or itertools.repeat(None),
        captions or itertools.repeat(""),
    )
    rows = [[first, *tiles] for first, tiles in zip(firsts, beside, strict=True)]
    sheet.write(
        path,
        rows,
        ["image", *headers],
        legend=[*(sheet.ANSWERS if frames else []), *legend],
        title=title,
        about=item.about,
        row_group=row_group,
    )


def _noted(tiles: list[Tile], notes: Sequence[str]) -> list[Tile]:
    pairs = zip(tiles, notes, strict=True)
    return [dataclasses.replace(tile, caption=note) for tile, note in pairs]


_Drawn = tuple[list[list[Tile]], tuple[str, ...], Legend]
"""Tiles of each image, the headers of their columns, and the legend."""


def _maps(images: list[np.ndarray], item: Maps) -> _Drawn:
    values = np.asarray(item.values)
    tiles = [
        [Tile(overlays.heat(image, one)) for one in maps]
        for image, maps in zip(images, values, strict=True)
    ]
    return tiles, item.titles, overlays.heat_legend(item.scale, values)


def _segments(images: list[np.ndarray], item: Segments) -> _Drawn:
    values = np.asarray(item.values)
    tiles = [
        [Tile(overlays.regions(image, one)) for one in maps]
        for image, maps in zip(images, values, strict=True)
    ]
    return tiles, item.titles, overlays.group_legend(values, item.groups)


def _routes(images: list[np.ndarray], item: Routes) -> _Drawn:
    activity, paths = np.asarray(item.activity), np.asarray(item.paths)
    most = [_largest(activity), _largest(paths)]
    tiles = [
        [Tile(_diagram(cells / most[0], ways / most[1], item.scales))]
        for _, cells, ways in zip(images, activity, paths, strict=True)
    ]
    levels = np.broadcast_to(np.linspace(0, 1, 64)[None, :, None], (12, 64, 1))
    shades = (255 + levels * (np.array(ACTIVE) - 255)).astype(np.uint8)
    legend = [
        (shades, f"activity of a cell, 0 to {most[0]:.3g}"),
        (_wedge(), f"weight of a path, 0 to {most[1]:.3g}"),
    ]
    return tiles, ("route",), legend


def _largest(values: np.ndarray) -> float:
    """The largest of the numbers that are there, at least 1."""
    return max(1.0, float(np.nan_to_num(values).max(initial=0)))


def cell_place(
    layer: float, scale: int, scales: tuple[str, ...]
) -> tuple[float, float]:
    """Row and column, in pixels, of the centre of a cell in its diagram."""
    row = (ROUTE_HEIGHT - _NUMBERS) * (scale + 0.5) / len(scales)
    return row, _caption_width(scales) + _PITCH * (layer + 0.5)


def _caption_width(scales: tuple[str, ...]) -> int:
    """Pixels left of the first layer."""
    return _SIDE + math.ceil(max(map(_font().getlength, scales))) + 4


def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(14)


def _diagram(
    activity: np.ndarray, paths: np.ndarray, scales: tuple[str, ...]
) -> np.ndarray:
    """Cells [L, S] and paths [L - 1, S, S] of one image, uint8 [ROUTE_HEIGHT, W, 3]."""
    layers = len(activity)
    width = _caption_width(scales) + _PITCH * layers
    canvas = Image.new("RGB", (_FINE * width, _FINE * ROUTE_HEIGHT), "white")
    _draw_paths(canvas, activity, paths, scales)
    _draw_cells(canvas, activity, scales)
    picture = canvas.reduce(_FINE)
    _name_axes(picture, layers, scales)
    return np.asarray(picture)


def _name_axes(picture: Image.Image, layers: int, scales: tuple[str, ...]) -> None:
    """Scales on the left, from top to bottom; numbers of the layers under the cells."""
    pen, ink = ImageDraw.Draw(picture), {"fill": sheet.INK, "font": _font()}
    for scale, name in enumerate(scales):
        row, _ = cell_place(0, scale, scales)
        pen.text((_SIDE, row), name, anchor="lm", **ink)
    for layer in range(layers):
        _, column = cell_place(layer, 0, scales)
        pen.text(
            (column, ROUTE_HEIGHT - 0.75 * _NUMBERS), str(layer + 1), anchor="mm", **ink
        )
    _, middle = cell_place((layers - 1) / 2, 0, scales)
    pen.text((middle, ROUTE_HEIGHT - 0.25 * _NUMBERS), "layer", anchor="mm", **ink)
    upright = Image.new("RGB", (ROUTE_HEIGHT - _NUMBERS, _SIDE - 4), "white")
    place = upright.width / 2, upright.height / 2
    ImageDraw.Draw(upright).text(place, "scale", anchor="mm", **ink)
    picture.paste(upright.rotate(90, expand=True), (0, 0))


def _draw_paths(
    canvas: Image.Image,
    activity: np.ndarray,
    paths: np.ndarray,
    scales: tuple[str, ...],
) -> None:
    """A thin line for every path there is, and its weight over it."""
    pen = ImageDraw.Draw(canvas, "RGBA")
    cells = ~np.isnan(activity)
    there = ~np.isnan(paths) & cells[:-1, :, None] & cells[1:, None, :]
    lines = []
    for layer, start, end in np.argwhere(there):
        ends = cell_place(layer, start, scales), cell_place(layer + 1, end, scales)
        line = [(_FINE * x, _FINE * y) for y, x in ends]
        pen.line(line, fill=_LINE, width=_FINE)
        lines.append((float(paths[layer, start, end]), line))
    for weight, line in sorted(lines):  # the heaviest on top
        shade = (*sheet.INK, round(255 * weight))
        pen.line(line, fill=shade, width=round(_FINE * (1 + 4 * weight)))


def _draw_cells(
    canvas: Image.Image, activity: np.ndarray, scales: tuple[str, ...]
) -> None:
    pen = ImageDraw.Draw(canvas)
    radius = min(22, 0.36 * (ROUTE_HEIGHT - _NUMBERS) / len(scales))
    for layer, scale in np.argwhere(~np.isnan(activity)):
        row, column = cell_place(layer, scale, scales)
        box = (column - radius, row - radius, column + radius, row + radius)
        pen.ellipse(
            tuple(_FINE * side for side in box),
            fill=_shade(float(activity[layer, scale])),
            outline=_OUTLINE,
            width=_FINE,
        )


def _shade(level: float) -> Colour:
    """From white to `ACTIVE`."""
    red, green, blue = (round(255 + level * (full - 255)) for full in ACTIVE)
    return red, green, blue


def _wedge() -> np.ndarray:
    """A line that grows wider and darker from left to right."""
    swatch = np.full((12, 64, 3), 255, np.uint8)
    for column, weight in enumerate(np.linspace(0, 1, 64)):
        half = (1 + 4 * weight) / 2
        shade = 255 + weight * (np.array(sheet.INK) - 255)
        swatch[round(6 - half) : round(6 + half), column] = shade
    return swatch
