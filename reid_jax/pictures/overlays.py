"""What is laid over an image: heat maps and partitions; and their colours."""

from __future__ import annotations

import colorsys

import matplotlib
import numpy as np
from PIL import Image

from reid_jax.pictures.sheet import Colour, Legend, swatch

MAP_HEIGHT = 192
"""Pixels of an image under a map: small maps need room."""
_OVERLAY = 0.55
"""How much of a map's colour covers the image under it."""
_LEGEND_GROUPS = 32
"""Groups of a partition that the legend names; more would be a second picture."""


def group_colour(group: int) -> Colour:
    """Colour of a partition's group, unlike those of the groups around it.

    Steps of the golden ratio never repeat a hue; full, dark and pale take turns.
    """
    hue = (0.02 + group * 0.6180339887) % 1.0
    saturation, value = ((0.95, 1.0), (0.95, 0.65), (0.45, 1.0))[group % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def heat_colours(level: np.ndarray) -> np.ndarray:
    """Colours uint8 [..., 3] of levels in [0, 1], from blue to red."""
    return (255 * matplotlib.colormaps["jet"](level)[..., :3]).astype(np.uint8)


def heat(pixels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Lays a map [h, w] over an image uint8 [H, W, 3]; black where it is NaN."""
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


def heat_legend(scale: str, *values: np.ndarray) -> Legend:
    """The scale of heat maps, and black where one of them does not cover a place."""
    legend = [(heat_scale(), scale)]
    if any(np.isnan(value).any() for value in values):
        legend.append((swatch((0, 0, 0)), "not covered"))
    return legend


def heat_scale() -> np.ndarray:
    """A swatch with all colours of a heat map."""
    return heat_colours(np.tile(np.linspace(0, 1, 96), (12, 1)))


def regions(pixels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Colours the groups [h, w] of a partition over an image uint8 [H, W, 3]."""
    groups = _stretch(groups.astype(np.int32), pixels, Image.Resampling.NEAREST)
    result = pixels.copy()
    for group in np.unique(groups[groups >= 0]):
        inside = groups == group
        result[inside] = _blend(pixels[inside], np.array(group_colour(int(group))))
    return result


def group_legend(groups: np.ndarray, names: tuple[str, ...]) -> Legend:
    """Colours of the groups, all that have a name, or as many as there are."""
    count = max(int(groups.max(initial=-1)) + 1, len(names))
    names = (*names, *(f"part {group + 1}" for group in range(len(names), count)))
    shown = enumerate(names[:_LEGEND_GROUPS])
    return [(swatch(group_colour(group)), name) for group, name in shown]


def _blend(pixels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    mixed = (1 - _OVERLAY) * pixels + _OVERLAY * colours
    return mixed.round().astype(np.uint8)


def _stretch(
    values: np.ndarray, pixels: np.ndarray, how: Image.Resampling
) -> np.ndarray:
    """A map [h, w] at the size of the image `pixels` [H, W, 3]."""
    height, width = pixels.shape[:2]
    return np.asarray(Image.fromarray(values).resize((width, height), how))
