"""What network the arrays of a file are of, as fields of `configs/baseline.py`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from reid_jax.backbones import osnet
from reid_jax.backbones.patches import grid_size
from reid_jax.errors import UserError
from reid_jax.weights.mapping import BACKBONE

Arrays = Mapping[str, np.ndarray]
"""By the path within the backbone: `layer1_0/conv1/kernel`."""

SIZES = ((256, 128), (384, 128), (384, 192))
STRIDES = (16, 12, 11, 14)
"""Images, and strides of patches, that ViTs for people are trained with. None of their
products has as many patches as another."""

_HEAD_WIDTH = 64  # channels of a ViT's head, in all sizes that are published


def within_backbone(arrays: Arrays) -> dict[str, np.ndarray]:
    """The backbone's parameters and statistics, by the path within it."""
    return {
        path[match.end() :]: array
        for path, array in arrays.items()
        if (match := BACKBONE.match(path))
    }


def describe(arrays: Arrays, origin: str) -> tuple[str, dict[str, Any], Any]:
    """The name of a backbone in `configs/baseline.py`, and its options.

    Args:
      arrays: by our path, with `params/local/` for TransReID's second branch.
      origin: the file, for messages.

    Returns:
      name, options, and (height, width) where the file says them, else None.

    Raises:
      UserError: if it is no network that the baselines have.
    """
    inside = within_backbone(arrays)
    try:
        if "patch_embed/proj/kernel" in inside:
            local = any(path.startswith("params/local/") for path in arrays)
            return _vit(inside, "transreid" if local else "vit", origin)
        if "conv5/conv/kernel" in inside:
            return _osnet(inside)
        if "layer4_0/conv3/kernel" in inside:
            return _resnet(inside)
    except (LookupError, ArithmeticError, TypeError, ValueError) as error:
        raise UserError(
            f"{origin} lacks parts of its network ({error}); get the whole file"
        ) from error
    some = ", ".join(list(inside)[:4]) or "none"
    raise UserError(
        f"{origin} holds no ViT, ResNet or OSNet; its arrays are, under our names: "
        f"{some}"
    )


def _resnet(inside: Arrays) -> tuple[str, dict[str, Any], None]:
    name = "resnet50_ibn_a" if "layer1_0/bn1/IN/scale" in inside else "resnet50"
    options: dict[str, Any] = {
        "blocks": tuple(
            _count(inside, rf"layer{n}_(\d+)/conv1/.*") for n in range(1, 5)
        ),
        "width": inside["conv1/kernel"].shape[-1],
    }
    extra = tuple(_count(inside, rf"nonlocal{n}_(\d+)/g/kernel") for n in range(1, 5))
    if any(extra):
        options["dot_non_local"] = extra
    if "fc_0/kernel" in inside:
        options["feature_dim"] = inside["fc_0/kernel"].shape[-1]
    return name, options, None


def _osnet(inside: Arrays) -> tuple[str, dict[str, Any], None]:
    stages = [inside[f"conv{n}_1/conv3/conv/kernel"] for n in (2, 3, 4)]
    channels = tuple(a.shape[-1] for a in (inside["conv1/conv/kernel"], *stages))
    kind = osnet.IBN if "conv2_0/IN/scale" in inside else osnet.PLAIN
    kind = osnet.AIN if "pool2_0/conv/kernel" in inside else kind
    same = [
        name
        for name, fields in osnet.SIZES.items()
        if fields.get("instance_norm", osnet.PLAIN) == kind
    ]
    exact = [name for name in same if osnet.SIZES[name]["channels"] == channels]
    width = inside["fc_0/kernel"].shape[-1]
    return (exact or same)[0], {"channels": channels, "feature_dim": width}, None


def _vit(inside: Arrays, name: str, origin: str) -> tuple[str, dict[str, Any], Any]:
    patch, _, _, width = inside["patch_embed/proj/kernel"].shape
    size, stride = _image(inside["pos_embed"].shape[1] - 1, patch, origin)
    hidden = inside["blocks_0/mlp/fc1/kernel"].shape[-1]
    cameras = len(inside["sie_embed"]) if "sie_embed" in inside else 0
    options = {
        "width": width,
        "depth": _count(inside, r"blocks_(\d+)/norm1/scale"),
        "heads": max(width // _HEAD_WIDTH, 1),
        "mlp_ratio": hidden // width if hidden % width == 0 else hidden / width,
        "patch_size": patch,
        "stride": (stride, stride),
        "cameras": cameras,
    }
    return name, options, size


def _image(patches: int, side: int, origin: str) -> tuple[tuple[int, int], int]:
    """Size of the images, and stride of the patches, that give so many."""
    for size in SIZES:
        for stride in STRIDES:
            rows, columns = grid_size(size, side, (stride, stride))
            if rows * columns == patches:
                return size, stride
    sizes = ", ".join(f"{height} x {width}" for height, width in SIZES)
    raise UserError(
        f"{origin} has positions for {patches} patches, which no image of {sizes} "
        f"gives with a stride of {', '.join(map(str, STRIDES))}"
    )


def _count(names: Iterable[str], pattern: str) -> int:
    """How many numbers the pattern's group takes."""
    return len({m[1] for name in names if (m := re.fullmatch(pattern, name))})
