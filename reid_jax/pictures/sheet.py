"""Sheets of tiles: title, legend, column headers and rows, written as one PNG."""

from __future__ import annotations

import dataclasses
import io
import os
import re
from collections.abc import Collection, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from reid_jax import storage

QUERY = (30, 100, 230)
RIGHT = (20, 165, 70)
WRONG = (220, 40, 40)
INK = (25, 25, 25)
FAINT = (236, 236, 236)

FRAME = 4
GAP = 8
WIDE_GAP = 24
"""Between columns or rows that do not belong together."""
_MARGIN = 16
_MIN_WIDTH = 420
_LEGEND_LINE = 16

Colour = tuple[int, int, int]

Legend = list[tuple[np.ndarray, str]]
"""Swatches uint8 [h, w, 3] and what they mean."""


@dataclasses.dataclass(frozen=True)
class Tile:
    """An image with its frame, if any, and what is under it: a strip, and text.

    A `bare` one has its frames in its pixels.
    """

    pixels: np.ndarray
    frame: Colour | None = None
    caption: str = ""
    strip: np.ndarray | None = None
    bare: bool = False


def write(
    path: str | os.PathLike[str],
    rows: Sequence[Sequence[Tile]],
    headers: Sequence[str],
    *,
    legend: Legend,
    title: str,
    about: str = "",
    breaks: Collection[int] = (),
    row_group: int = 1,
) -> None:
    """Writes a sheet as PNG, whole or not at all; its folder is created.

    Args:
      path: of the PNG.
      rows: of tiles, all of one length.
      headers: one text for each column.
      legend: swatches and what they mean.
      title: a line above everything; "" for none.
      about: a line under it, in smaller letters.
      breaks: columns with a wide gap on their left.
      row_group: so many rows belong together; a wide gap follows each group.
    """
    sheet = _compose(rows, headers, legend, (title, about), breaks, row_group)
    file = io.BytesIO()
    # Quick: a quarter of the time of the usual level, for a tenth more bytes.
    sheet.save(file, format="PNG", compress_level=1)
    storage.write_bytes(path, file.getvalue())


def swatch(colour: Colour) -> np.ndarray:
    """A square of one colour for the legend."""
    return np.full((12, 12, 3), colour, np.uint8)


ANSWERS = [
    (swatch(QUERY), "query"),
    (swatch(RIGHT), "same person"),
    (swatch(WRONG), "another person"),
]
"""The legend of frames."""


def answer_colour(correct: bool) -> Colour:
    """Frame of an answer: whether it shows the query's person."""
    return RIGHT if correct else WRONG


def resize(image: np.ndarray, height: int) -> np.ndarray:
    """An image uint8 [H, W, 3] at another height, in proportion."""
    image = np.asarray(image)
    width = max(1, round(image.shape[1] * height / image.shape[0]))
    return np.asarray(Image.fromarray(image).resize((width, height)))


def framed(pixels: np.ndarray, colour: Colour | None) -> np.ndarray:
    """An image uint8 [H, W, 3] in its frame, which is white where there is none."""
    height, width = pixels.shape[:2]
    shape = (height + 2 * FRAME, width + 2 * FRAME, 3)
    result = np.full(shape, colour or (255, 255, 255), np.uint8)
    result[FRAME:-FRAME, FRAME:-FRAME] = pixels
    return result


def _compose(
    rows: Sequence[Sequence[Tile]],
    headers: Sequence[str],
    legend: Legend,
    lines: tuple[str, str],
    breaks: Collection[int],
    row_group: int,
) -> Image.Image:
    """Title and the line under it, legend, column headers and rows of tiles."""
    body, caption = ImageFont.load_default(13), ImageFont.load_default(11)
    widths = [_width(column) for column in zip(*rows, strict=True)]
    gaps = [0, *(WIDE_GAP if i in breaks else GAP for i in range(1, len(widths)))]
    width = max(sum(widths) + sum(gaps), _MIN_WIDTH)
    labels = [_label(h, body, w) for h, w in zip(headers, widths, strict=True)]
    bands = [
        _text_band(lines[0], ImageFont.load_default(17), width),
        _text_band(lines[1], body, width),
        _legend_band(legend, body, width),
        _columns(labels, gaps),
    ]
    for i, row in enumerate(rows):
        if i and row_group > 1 and i % row_group == 0:
            bands.append(_blank(width, WIDE_GAP - GAP))
        cells = [
            _cell(tile, caption, column)
            for tile, column in zip(row, widths, strict=True)
        ]
        bands.append(_columns(cells, gaps))
    return _stack([band for band in bands if band.height])


def _width(column: Sequence[Tile]) -> int:
    """Room for the widest tile, and for words under them."""
    least = 72 if any(tile.caption for tile in column) else 40
    return max([least, *(tile.pixels.shape[1] + 2 * FRAME for tile in column)])


def _stack(bands: Sequence[Image.Image]) -> Image.Image:
    """Bands under each other on a white sheet with margins."""
    width = max(band.width for band in bands) + 2 * _MARGIN
    height = sum(band.height + GAP for band in bands) - GAP + 2 * _MARGIN
    sheet = _blank(width, height)
    top = _MARGIN
    for band in bands:
        sheet.paste(band, (_MARGIN, top))
        top += band.height + GAP
    return sheet


def _columns(cells: Sequence[Image.Image], gaps: Sequence[int]) -> Image.Image:
    """Cells side by side, each after its gap, aligned at the top."""
    width = sum(cell.width for cell in cells) + sum(gaps)
    band = _blank(width, max(cell.height for cell in cells))
    left = 0
    for cell, gap in zip(cells, gaps, strict=True):
        band.paste(cell, (left + gap, 0))
        left += gap + cell.width
    return band


def _cell(tile: Tile, font: ImageFont.FreeTypeFont, width: int) -> Image.Image:
    """A tile with its frame and, under it, its strip and its caption."""
    image = tile.pixels if tile.bare else framed(tile.pixels, tile.frame)
    height = image.shape[0]
    strip = tile.strip.shape[0] if tile.strip is not None else 0
    text = _label(tile.caption, font, width)
    cell = _blank(width, height + strip + text.height)
    cell.paste(Image.fromarray(image), (0, 0))
    if tile.strip is not None:
        cell.paste(Image.fromarray(tile.strip), (FRAME, height))
    cell.paste(text, (0, height + strip))
    return cell


def _label(text: str, font: ImageFont.FreeTypeFont, width: int) -> Image.Image:
    """Text over or under a column, flush with its images, not with their frames."""
    band = _text_band(text, font, width - FRAME)
    cell = _blank(width, band.height)
    cell.paste(band, (FRAME, 0))
    return cell


def _legend_band(
    legend: Legend, font: ImageFont.FreeTypeFont, width: int
) -> Image.Image:
    """Swatches and their meaning, in as many lines as they need."""
    places, left, line = [], 0, 0
    for picture, text in legend:
        wide = picture.shape[1] + 5 + int(font.getlength(text))
        if left and left + wide > width:
            left, line = 0, line + 1
        places.append((left, line * _LEGEND_LINE))
        left += wide + 16
    band = _blank(width, _LEGEND_LINE * (line + 1) if legend else 0)
    pen = ImageDraw.Draw(band)
    for (left, top), (picture, text) in zip(places, legend, strict=True):
        band.paste(Image.fromarray(picture), (left, top + 2))
        place = (left + picture.shape[1] + 5, top + 8)
        pen.text(place, text, fill=INK, font=font, anchor="lm")
    return band


def _text_band(text: str, font: ImageFont.FreeTypeFont, width: int) -> Image.Image:
    """Text broken into lines that fit the width; nothing high if it is empty."""
    lines = [part for line in text.splitlines() for part in _broken(line, font, width)]
    line_height = sum(font.getmetrics())
    band = _blank(width, line_height * len(lines))
    pen = ImageDraw.Draw(band)
    for i, line in enumerate(lines):
        pen.text((0, i * line_height), line, fill=INK, font=font)
    return band


_PIECE = re.compile(r"\s*(?:\.(?=[A-Za-z]))?(?:[^\s_/.]|\.(?![A-Za-z]))*[_/]?")


def _broken(line: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines that fit, broken at spaces, names at "_", "/" and ending, or anywhere.

    A number is not broken at its point.
    """
    lines = [""]
    for piece in _PIECE.findall(line):
        if font.getlength(lines[-1] + piece) > width and lines[-1]:
            lines.append("")
        for letter in piece if lines[-1] else piece.lstrip():
            if font.getlength(lines[-1] + letter) > width and lines[-1]:
                lines.append("")
            lines[-1] += letter
    return [line for line in lines if line]


def _blank(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), "white")
