"""Resizing and augmentation of single images, all in uint8 on the host.

An augmentation is a list of named steps, so that each config can spell out its own.
Every step draws the same random numbers whether or not part labels come along.
"""

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image

from data_pipelines.augment.base import Pair
from data_pipelines.augment.colour import Colour
from data_pipelines.augment.geometry import Flip, PadCrop, RandomCrop
from data_pipelines.augment.occlusion import PasteOccluder, RandomErasing
from reid_jax.errors import UserError

BILINEAR = "bilinear"
_PILLOW = {
    "pil-bilinear": Image.Resampling.BILINEAR,
    "pil-bicubic": Image.Resampling.BICUBIC,
}
RESIZES = (BILINEAR, *_PILLOW)
"""Ways of resizing. OpenCV's looks at the nearest pixels; Pillow's, which torchvision
applies to pictures from files, weighs all pixels of the area that becomes one."""


def resize(image: np.ndarray, size: tuple[int, int], how: str = BILINEAR) -> np.ndarray:
    """Resizes uint8 [H, W, 3] to (height, width) by one of `RESIZES`."""
    if how in _PILLOW:
        return np.asarray(Image.fromarray(image).resize(size[::-1], _PILLOW[how]))
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def resize_parts(parts: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest resize of uint8 [H, W] labels to (height, width)."""
    return cv2.resize(parts, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


STEPS: dict[str, Callable[..., Any]] = {
    "flip": Flip,
    "pad_crop": PadCrop,
    "random_crop": RandomCrop,
    "colour": Colour,
    "random_erasing": RandomErasing,
    "paste_occluder": PasteOccluder,
}
"""The steps that a config may name; their fields are the parameters it may set."""


@dataclasses.dataclass(frozen=True)
class Augment:
    """Applies steps in order; picklable. The input arrays are left untouched."""

    steps: tuple[Callable[..., Pair], ...]

    def __call__(
        self, image: np.ndarray, parts: np.ndarray | None, rng: np.random.Generator
    ) -> Pair:
        """Augments one image.

        Args:
          image: uint8 [H, W, 3].
          parts: uint8 [H, W] part labels, or None.
          rng: the only source of chance.

        Returns:
          Image and part labels of the same shapes.
        """
        for step in self.steps:
            image, parts = step(image, parts, rng)
        return image, parts

    def for_parts(self, kind: str) -> "Augment":
        """The same steps for part labels in the numbering of `kind`."""
        return Augment(
            tuple(
                dataclasses.replace(step, parts_kind=kind)
                if isinstance(step, Flip)
                else step
                for step in self.steps
            )
        )


def build(
    steps: Sequence[str], params: Mapping[str, Mapping[str, Any]] | None = None
) -> Augment:
    """Builds an augmentation from the names and parameters of a config.

    Args:
      steps: names from `STEPS`, in the order in which they are applied.
      params: step name -> {parameter: value}; what is not given keeps its default.
        Parameters of a step that is not listed are checked and then unused, so that
        a step can be switched off by its name alone.

    Raises:
      UserError: an unknown step or parameter, a value out of range, or a listed
        `paste_occluder` without occluders.
    """
    params = {name: dict(values) for name, values in dict(params or {}).items()}
    made = {name: _make(name, params.get(name, {})) for name in {*steps, *params}}
    if "paste_occluder" in steps:
        made["paste_occluder"].patches()
    return Augment(tuple(made[name] for name in steps))


def _make(name: str, values: Mapping[str, Any]) -> Callable[..., Pair]:
    _known(name, STEPS, "augmentation step")
    step = STEPS[name]
    for key in values:
        _known(key, inspect.signature(step).parameters, f"parameter of step {name!r}")
    try:
        return step(**values)
    except (TypeError, ValueError) as error:
        raise UserError(f"Augmentation step {name!r}: {error}.") from error


def _known(name: str, names: Iterable[str], what: str) -> None:
    names = list(names)
    if name in names:
        return
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UserError(f"Unknown {what}: {name!r}.{hint} Known: {', '.join(names)}.")
