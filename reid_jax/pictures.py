"""Pictures of what a model does: ranking lists, heat maps and partitions as PNG.

Everything is composed of NumPy tiles and written text with Pillow; files appear whole
or not at all, so that a viewer that watches the folder never sees half a picture.
"""

from __future__ import annotations

import colorsys
import dataclasses
import os
import pathlib
from collections.abc import Sequence

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from reid_jax.models.method import Maps, Segments

QUERY = (30, 100, 230)
RIGHT = (20, 165, 70)
WRONG = (220, 40, 40)

_ROW_HEIGHT = 128
"""Pixels of an image in a ranking list."""
_MAP_HEIGHT = 192
"""Pixels of an image under a map: small maps need room."""
_FRAME = 4
_GAP = 8
_MARGIN = 16
_MIN_WIDTH = 420
_INK = (25, 25, 25)
_FAINT = (236, 236, 236)
_OVERLAY = 0.55
"""How much of a map's colour covers the image under it."""
_LEGEND_GROUPS = 16
"""Groups of a partition that the legend names; more would be a second picture."""


@dataclasses.dataclass(frozen=True)
class _Tile:
    """An image with its frame, if any, and the text under it."""

    pixels: np.ndarray
    frame: tuple[int, int, int] | None = None
    caption: str = ""


Legend = Sequence[tuple[np.ndarray, str]]
"""Swatches uint8 [h, w, 3] and what they mean."""


def ranking_lists(
    path: str | os.PathLike[str],
    query_images: np.ndarray,
    gallery_images: np.ndarray,
    correct: np.ndarray,
    present: np.ndarray,
    captions: Sequence[str],
    *,
    title: str = "",
) -> None:
    """Draws one row per query: the query, then its nearest gallery images.

    Args:
      path: of the PNG; its folder is created.
      query_images: uint8 [n, H, W, 3], framed in blue.
      gallery_images: uint8 [n, k, H, W, 3], nearest first.
      correct: bool [n, k], whether an image shows the query's person: framed in green,
        otherwise in red.
      present: bool [n, k], False where a list is shorter than k: an empty place.
      captions: n texts, such as the person and the camera of the query.
      title: data set, protocol and metrics.
    """
    correct, present = np.asarray(correct), np.asarray(present)
    rows = []
    for i, caption in enumerate(captions):
        row = [_Tile(_resize(query_images[i], _ROW_HEIGHT), QUERY, caption)]
        for j, image in enumerate(gallery_images[i]):
            pixels = _resize(image, _ROW_HEIGHT)
            if present[i, j]:
                row.append(_Tile(pixels, RIGHT if correct[i, j] else WRONG))
            else:
                row.append(_Tile(np.full_like(pixels, _FAINT)))
        rows.append(row)
    legend = [
        (_swatch(QUERY), "query"),
        (_swatch(RIGHT), "same person"),
        (_swatch(WRONG), "another person"),
    ]
    ranks = [str(rank + 1) for rank in range(correct.shape[1])]
    _write(path, _sheet(rows, ["query", *ranks], legend, title))


def draw(
    path: str | os.PathLike[str],
    images: np.ndarray,
    item: Maps | Segments,
    *,
    title: str = "",
) -> None:
    """Draws one row per image: the image, then each map or partition over it.

    Heat maps run from blue (0) to red (1) and are black where they are NaN. Groups of a
    partition have one colour each, the same in all tiles; a place without a group
    shows the bare image.

    Args:
      path: of the PNG; its folder is created.
      images: uint8 [B, H, W, 3].
      item: K maps or partitions per image, of any resolution.
      title: a line above the picture.
    """
    values = np.asarray(item.values)
    if isinstance(item, Maps):
        overlay, legend = _heat, [(_heat_scale(), "0 to 1")]
        if np.isnan(values).any():
            legend.append((_swatch((0, 0, 0)), "not covered"))
    else:
        overlay, legend = _regions, _group_legend(values)
    rows = []
    for image, maps in zip(np.asarray(images), values, strict=True):
        pixels = _resize(image, _MAP_HEIGHT)
        tiles = [_Tile(overlay(pixels, one)) for one in maps]
        rows.append([_Tile(pixels), *tiles])
    _write(path, _sheet(rows, ["image", *item.titles], legend, title))


def group_colour(group: int) -> tuple[int, int, int]:
    """Colour of a partition's group, unlike those of the groups around it.

    Steps of the golden ratio never repeat a hue; full, dark and pale take turns.
    """
    hue = (0.02 + group * 0.6180339887) % 1.0
    saturation, value = ((0.95, 1.0), (0.95, 0.65), (0.45, 1.0))[group % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _heat(pixels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Lays a map [h, w] over an image uint8 [H, W, 3]."""
    covered = ~np.isnan(values)
    # Weighting by coverage keeps NaN out of the interpolation of its neighbours.
    weight = _stretch(covered.astype(np.float32), pixels, Image.Resampling.BILINEAR)
    total = _stretch(
        np.where(covered, values, 0).astype(np.float32),
        pixels,
        Image.Resampling.BILINEAR,
    )
    level = np.clip(total / np.maximum(weight, 1e-6), 0, 1)
    blended = _blend(pixels, 255 * matplotlib.colormaps["jet"](level)[..., :3])
    visible = _stretch(covered.astype(np.float32), pixels, Image.Resampling.NEAREST)
    return np.where(visible[..., None] > 0, blended, 0).astype(np.uint8)


def _regions(pixels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Colours the groups [h, w] of a partition over an image uint8 [H, W, 3]."""
    groups = _stretch(groups.astype(np.int32), pixels, Image.Resampling.NEAREST)
    result = pixels.copy()
    for group in np.unique(groups[groups >= 0]):
        inside = groups == group
        result[inside] = _blend(pixels[inside], np.array(group_colour(int(group))))
    return result


def _blend(pixels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    mixed = (1 - _OVERLAY) * pixels + _OVERLAY * colours
    return mixed.round().astype(np.uint8)


def _stretch(
    values: np.ndarray, pixels: np.ndarray, how: Image.Resampling
) -> np.ndarray:
    """A map [h, w] at the size of the image `pixels` [H, W, 3]."""
    height, width = pixels.shape[:2]
    return np.asarray(Image.fromarray(values).resize((width, height), how))


def _resize(image: np.ndarray, height: int) -> np.ndarray:
    """An image uint8 [H, W, 3] at another height, in proportion."""
    image = np.asarray(image)
    width = max(1, round(image.shape[1] * height / image.shape[0]))
    return np.asarray(Image.fromarray(image).resize((width, height)))


def _swatch(colour: tuple[int, int, int]) -> np.ndarray:
    return np.full((12, 12, 3), colour, np.uint8)


def _heat_scale() -> np.ndarray:
    level = np.tile(np.linspace(0, 1, 96), (12, 1))
    return (255 * matplotlib.colormaps["jet"](level)[..., :3]).astype(np.uint8)


def _group_legend(groups: np.ndarray) -> Legend:
    shown = range(min(int(groups.max(initial=-1)) + 1, _LEGEND_GROUPS))
    return [(_swatch(group_colour(group)), f"part {group + 1}") for group in shown]


def _sheet(
    rows: Sequence[Sequence[_Tile]],
    headers: Sequence[str],
    legend: Legend,
    title: str,
) -> Image.Image:
    """Composes title, legend, column headers and rows of tiles, top to bottom."""
    body, caption = ImageFont.load_default(13), ImageFont.load_default(11)
    widths = [
        max([40, *(tile.pixels.shape[1] + 2 * _FRAME for tile in column)])
        for column in zip(*rows, strict=True)
    ]
    width = max(sum(widths) + _GAP * (len(widths) - 1), _MIN_WIDTH)
    bands = [
        _text_band(title, ImageFont.load_default(17), width),
        _legend_band(legend, body, width),
        _columns([_label(h, body, w) for h, w in zip(headers, widths, strict=True)]),
    ]
    for row in rows:
        cells = [
            _cell(tile, caption, column)
            for tile, column in zip(row, widths, strict=True)
        ]
        bands.append(_columns(cells))
    return _stack([band for band in bands if band.height])


def _stack(bands: Sequence[Image.Image]) -> Image.Image:
    """Bands under each other on a white sheet with margins."""
    width = max(band.width for band in bands) + 2 * _MARGIN
    height = sum(band.height + _GAP for band in bands) - _GAP + 2 * _MARGIN
    sheet = _blank(width, height)
    top = _MARGIN
    for band in bands:
        sheet.paste(band, (_MARGIN, top))
        top += band.height + _GAP
    return sheet


def _columns(cells: Sequence[Image.Image]) -> Image.Image:
    """Cells side by side, aligned at the top."""
    width = sum(cell.width + _GAP for cell in cells) - _GAP
    band = _blank(width, max(cell.height for cell in cells))
    left = 0
    for cell in cells:
        band.paste(cell, (left, 0))
        left += cell.width + _GAP
    return band


def _cell(tile: _Tile, font: ImageFont.FreeTypeFont, width: int) -> Image.Image:
    """A tile with its frame and, under it, its caption."""
    height, inner = tile.pixels.shape[:2]
    framed = Image.new(
        "RGB", (inner + 2 * _FRAME, height + 2 * _FRAME), tile.frame or "white"
    )
    framed.paste(Image.fromarray(tile.pixels), (_FRAME, _FRAME))
    text = _label(tile.caption, font, width)
    cell = _blank(width, framed.height + text.height)
    cell.paste(framed, (0, 0))
    cell.paste(text, (0, framed.height))
    return cell


def _label(text: str, font: ImageFont.FreeTypeFont, width: int) -> Image.Image:
    """Text over or under a column, flush with its images, not with their frames."""
    band = _text_band(text, font, width - _FRAME)
    cell = _blank(width, band.height)
    cell.paste(band, (_FRAME, 0))
    return cell


def _legend_band(
    legend: Legend, font: ImageFont.FreeTypeFont, width: int
) -> Image.Image:
    """Swatches and their meaning in a line, as far as they fit."""
    band = _blank(width, 16 if legend else 0)
    pen, left = ImageDraw.Draw(band), 0
    for swatch, text in legend:
        band.paste(Image.fromarray(swatch), (left, 2))
        left += swatch.shape[1] + 5
        pen.text((left, 8), text, fill=_INK, font=font, anchor="lm")
        left += int(font.getlength(text)) + 16
    return band


def _text_band(text: str, font: ImageFont.FreeTypeFont, width: int) -> Image.Image:
    """Text broken into lines that fit the width; nothing high if it is empty."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    line_height = sum(font.getmetrics())
    band = _blank(width, line_height * len(lines))
    pen = ImageDraw.Draw(band)
    for i, line in enumerate(lines):
        pen.text((0, i * line_height), line, fill=_INK, font=font)
    return band


def _blank(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), "white")


def _write(path: str | os.PathLike[str], sheet: Image.Image) -> None:
    """Writes a PNG under a temporary name and renames it."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        sheet.save(temporary, format="PNG")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
