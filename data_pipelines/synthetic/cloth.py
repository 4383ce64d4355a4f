"""Surface colours as functions of the place on the body.

A surface point is given by `turn`, the angle around the axis of its solid (0 at the
front, positive towards the person's left), `y`, its height above the ground, and `x`,
its offset to the person's left. Patterns therefore stay on the body when the
viewpoint changes: a logo on the chest is not seen from behind.
"""

import dataclasses

import cv2
import numpy as np

_BLOTCHES = cv2.GaussianBlur(np.random.default_rng(0).random((128, 128)), (0, 0), 2.0)


@dataclasses.dataclass(frozen=True)
class Overlay:
    """A detail on top of a garment: `open`, `zip`, `logo`, `straps`, ..."""

    kind: str
    colour: np.ndarray


@dataclasses.dataclass(frozen=True)
class Cloth:
    """A garment's surface: two colours (RGB in 0..1), pattern, and details."""

    base: np.ndarray
    accent: np.ndarray
    pattern: str = "plain"
    scale: float = 1.0
    phase: float = 0.0
    overlays: tuple[Overlay, ...] = ()

    def colour(self, x: np.ndarray, y: np.ndarray, turn: np.ndarray) -> np.ndarray:
        """Returns the float32 colour [N, 3] of surface points [N]."""
        second = self._second(y, turn)[:, None]
        rgb = np.where(second, self.accent, self.base).astype(np.float32)
        for overlay in self.overlays:
            rgb[_OVERLAYS[overlay.kind](x, y, turn)] = overlay.colour
        return rgb

    def _second(self, y: np.ndarray, turn: np.ndarray) -> np.ndarray:
        """Where the second colour of the pattern lies, bool [N]."""
        if self.pattern == "plain":
            return np.zeros(len(y), bool)
        along = y / (0.055 * self.scale) + self.phase
        around = turn / (0.55 * self.scale) + self.phase
        if self.pattern == "rings":
            return along % 1 < 0.45
        if self.pattern == "pinstripes":
            return around % 1 < 0.3
        if self.pattern == "checks":
            return (along % 1 < 0.5) ^ (around % 1 < 0.5)
        if self.pattern == "dots":
            return (along % 1 - 0.5) ** 2 + (around % 1 - 0.5) ** 2 < 0.08
        if self.pattern == "noise":
            return _patches(along * 8, around * 8)
        return y > 0.66 + 0.06 * self.phase  # Two-tone: a yoke across the chest.


def _patches(along: np.ndarray, around: np.ndarray) -> np.ndarray:
    rows, columns = np.int64(along) % 128, np.int64(around) % 128
    return _BLOTCHES[rows, columns] > 0.5


def plain(rgb: np.ndarray) -> Cloth:
    """A surface of one colour."""
    return Cloth(base=np.clip(rgb, 0, 1), accent=np.zeros(3))


def _front(turn: np.ndarray) -> np.ndarray:
    return np.abs(turn) < np.pi / 2


_OVERLAYS = {
    "open": lambda x, y, turn: _front(turn) & (np.abs(x) < 0.022 + 0.03 * (y - 0.5)),
    "zip": lambda x, y, turn: _front(turn) & (np.abs(x) < 0.006),
    "logo": lambda x, y, turn: (
        _front(turn) & (np.abs(x) < 0.04) & (np.abs(y - 0.71) < 0.03)
    ),
    "back print": lambda x, y, turn: (
        ~_front(turn) & (np.abs(x) < 0.05) & (np.abs(y - 0.70) < 0.045)
    ),
    "straps": lambda x, y, turn: (
        _front(turn) & (np.abs(np.abs(x) - 0.058) < 0.012) & (y > 0.62)
    ),
    "sling": lambda x, y, turn: np.abs(x * 1.1 + 0.68 - y) < 0.014,
}


@dataclasses.dataclass(frozen=True)
class Head:
    """Skin, face, hair and hat, painted on the head by direction from its centre."""

    skin: np.ndarray
    hair: np.ndarray
    hat: np.ndarray
    style: str
    beard: bool
    glasses: bool

    def colour(self, x: np.ndarray, y: np.ndarray, turn: np.ndarray) -> np.ndarray:
        """Returns the float32 colour [N, 3]; `y` counts from the centre in radii."""
        rgb = np.broadcast_to(self.skin, (len(y), 3)).astype(np.float32)
        face = np.abs(turn) < 1.15
        if self.beard:
            rgb[face & (y < -0.38)] = 0.5 * (self.hair + self.skin * 0.4)
        eyes = face & (np.abs(np.abs(turn) - 0.45) < 0.2) & (np.abs(y - 0.02) < 0.12)
        rgb[eyes] *= 0.35
        rgb[face & (np.abs(turn) < 0.35) & (np.abs(y + 0.52) < 0.07)] *= (0.8, 0.5, 0.5)
        if self.glasses:
            rgb[(np.abs(turn) < 1.0) & (np.abs(y - 0.02) < 0.09)] *= 0.3
        return self._cover(rgb, y, turn)

    def _cover(self, rgb: np.ndarray, y: np.ndarray, turn: np.ndarray) -> np.ndarray:
        behind = np.abs(turn) > (1.0 if self.style == "long" else 1.45)
        if self.style == "bald":
            rgb[behind & (y < 0.25) & (y > -0.3)] = 0.5 * (self.hair + self.skin)
            return rgb
        rgb[(y > 0.42) | (behind & (y > -0.55))] = self.hair
        if self.style == "cap":
            rgb[y > 0.28] = self.hat
        if self.style == "hood":
            rgb[(y > 0.45) | (np.abs(turn) > 0.95)] = self.hat
        return rgb
