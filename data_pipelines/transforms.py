"""Decoding, resizing and augmentation of single images, all in uint8 on the host.

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

from data_pipelines.parts import check_kind, flip_classes
from reid_jax.errors import UserError

# Grain runs several readers; OpenCV's own threads would only compete with them.
cv2.setNumThreads(0)

_ERASING_TRIES = 100

Pair = tuple[np.ndarray, np.ndarray | None]


def decode(encoded: bytes) -> np.ndarray:
    """Decodes a JPEG or PNG to RGB, uint8 [H, W, 3].

    Raises:
      ValueError: the bytes are not a whole image.
    """
    return _decode(encoded, cv2.IMREAD_COLOR_RGB)


def decode_parts(encoded: bytes) -> np.ndarray:
    """Decodes a part-label PNG, uint8 [H, W].

    Raises:
      ValueError: the bytes are not a whole image of one channel.
    """
    parts = _decode(encoded, cv2.IMREAD_UNCHANGED)
    if parts.ndim != 2 or parts.dtype != np.uint8:
        raise ValueError(f"part labels of shape {parts.shape}, type {parts.dtype}")
    return parts


def _decode(encoded: bytes, flags: int) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    except cv2.error as error:  # An empty buffer raises where a broken one does not.
        raise ValueError("not a whole image") from error
    if image is None:
        raise ValueError("not a whole image")
    return image


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear resize of uint8 [H, W, 3] to (height, width)."""
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def resize_parts(parts: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest resize of uint8 [H, W] labels to (height, width)."""
    return cv2.resize(parts, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


@dataclasses.dataclass(frozen=True)
class Flip:
    """Mirrors the image with probability `p`; left and right parts change places.

    Attributes:
      p: probability of mirroring.
      parts_kind: numbering of the part labels; loaders set it from the records.
    """

    p: float = 0.5
    parts_kind: str = "parts"

    def __post_init__(self):
        _require(0 <= self.p <= 1, "p must lie in [0, 1]")
        check_kind(self.parts_kind)

    def __call__(
        self, image: np.ndarray, parts: np.ndarray | None, rng: np.random.Generator
    ) -> Pair:
        """Mirrors both arrays, or returns them as they are."""
        if rng.random() >= self.p:
            return image, parts
        if parts is not None:
            parts = flip_classes(cv2.flip(parts, 1), self.parts_kind)
        return cv2.flip(image, 1), parts


@dataclasses.dataclass(frozen=True)
class PadCrop:
    """Pads every side with `pad` zeros and crops a random window of the old size."""

    pad: int = 10

    def __post_init__(self):
        _require(isinstance(self.pad, int) and self.pad >= 0, "pad must be an int >= 0")

    def __call__(
        self, image: np.ndarray, parts: np.ndarray | None, rng: np.random.Generator
    ) -> Pair:
        """Shifts both arrays by up to `pad` pixels along each axis."""
        top, left = rng.integers(0, 2 * self.pad + 1, 2)
        cropped = None if parts is None else self._crop(parts, top, left)
        return self._crop(image, top, left), cropped

    def _crop(self, array: np.ndarray, top: int, left: int) -> np.ndarray:
        height, width = array.shape[:2]
        padded = cv2.copyMakeBorder(
            array, *[self.pad] * 4, borderType=cv2.BORDER_CONSTANT, value=(0, 0, 0)
        )
        return padded[top : top + height, left : left + width]


@dataclasses.dataclass(frozen=True)
class RandomErasing:
    """Covers a random rectangle with one colour (Zhong et al., 2020; BoT's values).

    Attributes:
      p: probability of erasing.
      area: least and greatest share of the image's area.
      aspect: least and greatest height / width; drawn uniformly, as in BoT.
      fill: RGB colour; the default is the mean of ImageNet.
      part_label: label of the covered pixels; 0 because no part is seen there.
    """

    p: float = 0.5
    area: tuple[float, float] = (0.02, 0.4)
    aspect: tuple[float, float] = (0.3, 3.33)
    fill: tuple[int, int, int] = (124, 116, 104)
    part_label: int = 0

    def __post_init__(self):
        _require(0 <= self.p <= 1, "p must lie in [0, 1]")
        _require(
            len(self.area) == 2 and 0 < self.area[0] <= self.area[1] <= 1,
            "area must be (least, greatest), both in (0, 1]",
        )
        _require(
            len(self.aspect) == 2 and 0 < self.aspect[0] <= self.aspect[1],
            "aspect must be (least, greatest), both above 0",
        )
        _require(
            len(self.fill) == 3 and all(0 <= f <= 255 for f in self.fill),
            "fill must be three values in [0, 255]",
        )
        _require(0 <= self.part_label <= 255, "part_label must lie in [0, 255]")

    def __call__(
        self, image: np.ndarray, parts: np.ndarray | None, rng: np.random.Generator
    ) -> Pair:
        """Covers one rectangle in both arrays, or returns them as they are."""
        if rng.random() >= self.p:
            return image, parts
        window = self._window(image.shape[0], image.shape[1], rng)
        if window is None:
            return image, parts
        erased = None if parts is None else _covered(parts, window, self.part_label)
        return _covered(image, window, self.fill), erased

    def _window(
        self, height: int, width: int, rng: np.random.Generator
    ) -> tuple[slice, slice] | None:
        """A rectangle inside the image, or None where no try has fitted."""
        for _ in range(_ERASING_TRIES):
            area = rng.uniform(*self.area) * height * width
            aspect = rng.uniform(*self.aspect)
            h, w = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
            if h < height and w < width:
                top = rng.integers(0, height - h + 1)
                left = rng.integers(0, width - w + 1)
                return slice(top, top + h), slice(left, left + w)
        return None


def _covered(array: np.ndarray, window: tuple[slice, slice], value: Any) -> np.ndarray:
    result = array.copy()
    result[window] = value
    return result


STEPS: dict[str, Callable[..., Any]] = {
    "flip": Flip,
    "pad_crop": PadCrop,
    "random_erasing": RandomErasing,
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
      UserError: an unknown step or parameter, or a value out of range.
    """
    params = {name: dict(values) for name, values in dict(params or {}).items()}
    made = {name: _make(name, params.get(name, {})) for name in {*steps, *params}}
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


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
