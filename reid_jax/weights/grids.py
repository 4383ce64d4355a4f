"""Rows and columns of a file's position embedding: 64 positions may be 8 x 8 or 16 x 4.

Resizing by a wrong grid goes unseen, so that none is guessed. It is what the run, the
folder or the config says; of other files, that of the known ones, and the square of
those that hold a classifier of ImageNet, whose images are square.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from reid_jax.backbones.patches import grid_size
from reid_jax.errors import UserError

Grid = tuple[int, int]

IMAGENET_CLASSES = (1000, 11221, 21841, 21843)
"""Of ILSVRC 2012, and of the whole of ImageNet in three editions."""

_CLASSIFIER = re.compile(r"(.*\.)?(head|classifier)\.(weight|bias)|head/(kernel|bias)")


def parse(value: Any, origin: str) -> Grid | None:
    """A grid from a config or a file; None and () are no grid.

    Raises:
      UserError: for anything but two positive numbers; names the origin.
    """
    if value is None or value == ():
        return None
    whole = isinstance(value, tuple | list) and all(type(n) is int for n in value)
    if not whole or len(value) != 2 or min(value) < 1:
        raise UserError(
            f"{origin} is {value!r}; it must be rows and columns, such as (14, 14)"
        )
    return tuple(value)


def of_run(config: Mapping[str, Any]) -> Grid | None:
    """The grid of a run's network, by its flattened config; None without a ViT."""
    sizes = [config.get(f"data.{side}") for side in ("height", "width")]
    patch, stride = (
        [value for name, value in config.items() if re.fullmatch(pattern, name)]
        for pattern in (r"model\.(.+\.)?patch_size", r"model\.(.+\.)?stride")
    )
    if None in sizes or len(patch) != 1 or len(stride) != 1:
        return None
    return grid_size(tuple(sizes), patch[0], stride[0])


def of_image(size: Any, arrays: Mapping[str, Any]) -> Grid | None:
    """The grid of a square or [.., height, width] image, by the file's patches."""
    patches = [
        array.shape[-2:]
        for name, array in arrays.items()
        if re.fullmatch(r"(.*\.)?patch_embed(dings)?\.proj(ection)?\.weight", name)
    ]
    size = size[-2:] if isinstance(size, list) else [size, size]
    if len(size) != 2 or len(patches) != 1 or any(type(n) is not int for n in size):
        return None
    grid = tuple(n // side for n, side in zip(size, patches[0], strict=True))
    return grid if min(grid) > 0 else None


def of_imagenet(arrays: Mapping[str, Any], count: int) -> Grid | None:
    """The square of `count` positions, if the arrays have a classifier of ImageNet."""
    side = math.isqrt(count)
    classes = {
        array.shape[-1 if name.endswith("kernel") else 0]
        for name, array in arrays.items()
        if array.ndim and _CLASSIFIER.fullmatch(name)
    }
    known = classes and classes <= set(IMAGENET_CLASSES)
    return (side, side) if known and side * side == count else None
