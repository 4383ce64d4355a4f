"""Steps that change colours; part labels stay."""

import dataclasses

import cv2
import numpy as np

from data_pipelines.augment.base import Pair, require_probability, require_range


@dataclasses.dataclass(frozen=True)
class Colour:
    """Blurs and changes brightness, contrast, saturation and gamma, each by chance.

    SANet names a "colour improvement" without saying what it is; this is the
    enhancement of HPNet, which it builds on.

    Attributes:
      p: probability that anything happens.
      each: probability of each of the five changes then, in the order above.
      blur: least and greatest standard deviation of the Gaussian, in pixels.
      factor: least and greatest factor of the other four, drawn for each by itself;
        1 changes nothing. That of gamma is the exponent of values in [0, 1].
    """

    p: float = 0.5
    each: float = 0.7
    blur: tuple[float, float] = (1.0, 2.0)
    factor: tuple[float, float] = (0.6, 1.4)

    def __post_init__(self):
        require_probability(self.p)
        require_probability(self.each, "each")
        require_range(self.blur, "blur")
        require_range(self.factor, "factor")

    def __call__(
        self, image: np.ndarray, parts: np.ndarray | None, rng: np.random.Generator
    ) -> Pair:
        """Changes the image, or returns it as it is."""
        if rng.random() >= self.p:
            return image, parts
        chosen = rng.random(5) < self.each
        deviation, factors = rng.uniform(*self.blur), rng.uniform(*self.factor, 4)
        if chosen[0]:
            image = cv2.GaussianBlur(image, (0, 0), deviation)
        changes = (_brightness, _contrast, _saturation, _gamma)
        for change, factor, wanted in zip(changes, factors, chosen[1:], strict=True):
            if wanted:
                image = change(image, factor)
        return image, parts


def _brightness(image: np.ndarray, factor: float) -> np.ndarray:
    return _mapped(image, np.arange(256) * factor)


def _contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Away from, or towards, the mean of the grey image."""
    mean = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).mean()
    return _mapped(image, mean + (np.arange(256) - mean) * factor)


def _saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Away from, or towards, each pixel's grey."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    grey = cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(image, factor, grey, 1 - factor, 0)


def _gamma(image: np.ndarray, factor: float) -> np.ndarray:
    return _mapped(image, 255 * (np.arange(256) / 255) ** factor)


def _mapped(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Replaces each of the 256 values, rounded and clipped."""
    return cv2.LUT(image, np.clip(np.rint(values), 0, 255).astype(np.uint8))
