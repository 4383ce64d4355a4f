"""Steps that cover a part of the image, as an occluder does."""

import dataclasses
import functools
import math
import pathlib
from typing import Any

import cv2
import numpy as np

from data_pipelines.augment.base import (
    Pair,
    require,
    require_probability,
    require_range,
)
from reid_jax import storage
from reid_jax.errors import UserError

_ERASING_TRIES = 100
_MODES = ("colour", "pixel")
_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
_TO_RGBA = {1: cv2.COLOR_GRAY2RGBA, 3: cv2.COLOR_BGR2RGBA, 4: cv2.COLOR_BGRA2RGBA}


@dataclasses.dataclass(frozen=True)
class RandomErasing:
    """Covers a random rectangle (Zhong et al., 2020; BoT's values).

    Attributes:
      p: probability of erasing.
      area: least and greatest share of the image's area.
      aspect: least and greatest height / width.
      log_aspect: draw the logarithm of the aspect uniformly, as timm does, instead of
        the aspect, as BoT does.
      mode: "colour" covers with `fill`; "pixel" draws every channel of every pixel
        from N(fill, deviation), rounded and clipped to 0..255.
      fill: RGB colour; the default is the mean of ImageNet.
      deviation: of the noise; the default is ImageNet's. N(0, 1) behind a
        normalisation by mean m and deviation d is N(255 m, 255 d) here, but for the
        clipping.
      part_label: label of the covered pixels; 0 because no part is seen there.
    """

    p: float = 0.5
    area: tuple[float, float] = (0.02, 0.4)
    aspect: tuple[float, float] = (0.3, 3.33)
    log_aspect: bool = False
    mode: str = "colour"
    fill: tuple[float, float, float] = (124, 116, 104)
    deviation: tuple[float, float, float] = (58.4, 57.1, 57.4)
    part_label: int = 0

    def __post_init__(self):
        require_probability(self.p)
        require_range(self.area, "area", greatest=1)
        require_range(self.aspect, "aspect")
        require(self.mode in _MODES, f"mode must be one of {', '.join(_MODES)}")
        for name in ("fill", "deviation"):
            values = getattr(self, name)
            require(
                len(values) == 3 and all(0 <= value <= 255 for value in values),
                f"{name} must be three values in [0, 255]",
            )
        require(0 <= self.part_label <= 255, "part_label must lie in [0, 255]")

    def __call__(
        self, image: np.ndarray, parts: np.ndarray | None, rng: np.random.Generator
    ) -> Pair:
        """Covers one rectangle in both arrays, or returns them as they are."""
        top, bottom, left, right = self.draw(image.shape[:2], rng)
        if top == bottom:
            return image, parts
        window = slice(top, bottom), slice(left, right)
        erased = None if parts is None else _covered(parts, window, self.part_label)
        cover = self.fill
        if self.mode == "pixel":
            noise = rng.standard_normal(image[window].shape, np.float32)
            cover = np.clip(np.rint(noise * self.deviation + self.fill), 0, 255)
        return _covered(image, window, cover), erased

    def draw(
        self, size: tuple[int, int], rng: np.random.Generator
    ) -> tuple[int, int, int, int]:
        """A rectangle inside an image of (height, width): top, bottom, left, right.

        All are 0 where nothing is to be erased, or no try has fitted.
        """
        if rng.random() >= self.p:
            return 0, 0, 0, 0
        height, width = size
        for _ in range(_ERASING_TRIES):
            area = rng.uniform(*self.area) * height * width
            aspect = self._aspect(rng)
            h, w = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
            if h < height and w < width:
                top = int(rng.integers(0, height - h + 1))
                left = int(rng.integers(0, width - w + 1))
                return top, top + h, left, left + w
        return 0, 0, 0, 0

    def _aspect(self, rng: np.random.Generator) -> float:
        if self.log_aspect:
            return math.exp(rng.uniform(*map(math.log, self.aspect)))
        return rng.uniform(*self.aspect)


def _covered(array: np.ndarray, window: tuple[slice, slice], value: Any) -> np.ndarray:
    result = array.copy()
    result[window] = value
    return result


@dataclasses.dataclass(frozen=True)
class PasteOccluder:
    """Pastes a random picture of an object over a random place.

    CpaCol's authors do so with patches that they did not publish; neither the paper
    nor the code says how large they are or where they lie. Here a patch keeps its
    shape, covers a random share of the image unless that is wider or higher than the
    image, and lies inside it.

    Attributes:
      bank: folder of the patches, images of any size (PNG, JPEG, BMP, WebP); where
        they have an alpha channel, what it makes transparent is not pasted. Such a
        bank can be cut from the background of training images.
      p: probability of pasting.
      area: least and greatest share of the image's area that the patch's rectangle
        takes.
      part_label: label of the pixels that are covered by more than half.
    """

    bank: str = ""
    p: float = 0.3
    area: tuple[float, float] = (0.05, 0.4)
    part_label: int = 0

    def __post_init__(self):
        require_probability(self.p)
        require_range(self.area, "area", greatest=1)
        require(0 <= self.part_label <= 255, "part_label must lie in [0, 255]")

    def patches(self) -> tuple[np.ndarray, ...]:
        """Reads the bank once, in the order of the files' names.

        Returns:
          RGB times alpha, and alpha, uint8 [h, w, 4] for each patch.

        Raises:
          UserError: if `bank` is no folder of images that can be read.
        """
        return _read_bank(str(self.bank))

    def __call__(
        self, image: np.ndarray, parts: np.ndarray | None, rng: np.random.Generator
    ) -> Pair:
        """Pastes a patch into both arrays, or returns them as they are."""
        if rng.random() >= self.p:
            return image, parts
        patches = self.patches()
        patch = patches[rng.integers(0, len(patches))]
        share = rng.uniform(*self.area)
        patch = _scaled(patch, share * image.shape[0] * image.shape[1], image.shape[:2])
        height, width = patch.shape[:2]
        top = rng.integers(0, image.shape[0] - height + 1)
        left = rng.integers(0, image.shape[1] - width + 1)
        window = slice(top, top + height), slice(left, left + width)
        alpha = patch[..., 3:] / 255
        mixed = patch[..., :3] + (1 - alpha) * image[window]
        if parts is not None:
            labels = np.where(alpha[..., 0] > 0.5, self.part_label, parts[window])
            parts = _covered(parts, window, labels)
        return _covered(image, window, np.rint(mixed)), parts


def _scaled(patch: np.ndarray, area: float, limit: tuple[int, int]) -> np.ndarray:
    """Resizes to about `area` pixels, but to no more than `limit` rows and columns."""
    height, width = patch.shape[:2]
    scale = min((area / (height * width)) ** 0.5, limit[0] / height, limit[1] / width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    shrinks = scale < 1
    return cv2.resize(
        patch, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )


@functools.lru_cache(maxsize=4)
def _read_bank(bank: str) -> tuple[np.ndarray, ...]:
    where = "config.augment.paste_occluder.bank"
    folder = storage.expanded(bank)
    if not bank or not folder.is_dir():
        raise UserError(
            f"{where}={bank!r} is no folder: give one with pictures of occluders, or "
            "take 'paste_occluder' out of config.augment.steps"
        )
    files = [f for f in sorted(folder.iterdir()) if f.suffix.lower() in _SUFFIXES]
    if not files:
        raise UserError(f"{where}={bank!r} has no images ({', '.join(_SUFFIXES)})")
    return tuple(_read_patch(file) for file in files)


def _read_patch(file: pathlib.Path) -> np.ndarray:
    try:
        data = np.frombuffer(file.read_bytes(), np.uint8)
    except OSError as error:  # or a folder
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    patch = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    if patch is None or patch.dtype != np.uint8:
        raise UserError(f"{file}: not a whole image of 8 bits per channel")
    channels = 1 if patch.ndim == 2 else patch.shape[2]
    # Multiplied by alpha, so that resizing mixes in no colour that is not seen.
    return cv2.cvtColor(cv2.cvtColor(patch, _TO_RGBA[channels]), cv2.COLOR_RGBA2mRGBA)
