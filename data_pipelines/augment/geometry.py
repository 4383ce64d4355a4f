"""Steps that move pixels; part labels move along."""

import dataclasses

import cv2
import numpy as np

from data_pipelines.augment.base import Pair, require, require_probability
from data_pipelines.part_labels.kinds import check_kind, flip_classes


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
        require_probability(self.p)
        check_kind(self.parts_kind)

    def __call__(
        self, image: np.ndarray, parts: np.ndarray | None, rng: np.random.Generator
    ) -> Pair:
        """Mirrors both arrays, or returns them as they are."""
        (mirrored,) = self.draw(image.shape[:2], rng)
        if not mirrored:
            return image, parts
        if parts is not None:
            parts = flip_classes(cv2.flip(parts, 1), self.parts_kind)
        return cv2.flip(image, 1), parts

    def draw(self, size: tuple[int, int], rng: np.random.Generator) -> tuple[int]:
        """Whether to mirror."""
        del size
        return (int(rng.random() < self.p),)


@dataclasses.dataclass(frozen=True)
class PadCrop:
    """Pads every side with `pad` zeros and crops a random window of the old size."""

    pad: int = 10

    def __post_init__(self):
        require(isinstance(self.pad, int) and self.pad >= 0, "pad must be an int >= 0")

    def __call__(
        self, image: np.ndarray, parts: np.ndarray | None, rng: np.random.Generator
    ) -> Pair:
        """Shifts both arrays by up to `pad` pixels along each axis."""
        top, left = self.draw(image.shape[:2], rng)
        cropped = None if parts is None else self._crop(parts, top, left)
        return self._crop(image, top, left), cropped

    def draw(self, size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
        """First row and column of the window in the padded image."""
        del size
        top, left = rng.integers(0, 2 * self.pad + 1, 2)
        return int(top), int(left)

    def _crop(self, array: np.ndarray, top: int, left: int) -> np.ndarray:
        height, width = array.shape[:2]
        padded = cv2.copyMakeBorder(
            array, *[self.pad] * 4, borderType=cv2.BORDER_CONSTANT, value=(0, 0, 0)
        )
        return padded[top : top + height, left : left + width]


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """Crops a random window and resizes it to the old size (HPNet's, for SANet).

    Attributes:
      keep: least share of the height and of the width that stays; each is drawn by
        itself, uniformly up to 1.
    """

    keep: float = 0.85

    def __post_init__(self):
        require(0 < self.keep <= 1, "keep must lie in (0, 1]")

    def __call__(
        self, image: np.ndarray, parts: np.ndarray | None, rng: np.random.Generator
    ) -> Pair:
        """Crops and resizes both arrays, labels to the nearest pixel's."""
        size = image.shape[:2]
        shares = rng.uniform(self.keep, 1, 2)
        window = []
        for length, share in zip(size, shares, strict=True):
            kept = max(round(length * share), 1)
            start = rng.integers(0, length - kept + 1)
            window.append(slice(start, start + kept))
        image = cv2.resize(
            image[tuple(window)], size[::-1], interpolation=cv2.INTER_LINEAR
        )
        if parts is not None:
            parts = cv2.resize(
                parts[tuple(window)], size[::-1], interpolation=cv2.INTER_NEAREST_EXACT
            )
        return image, parts
