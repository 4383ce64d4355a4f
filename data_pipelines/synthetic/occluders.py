"""What stands between the camera and the person: cars, plants, walls, pillars, people.

An occluder is drawn on a layer twice the frame, beside or below it, and slid into the
frame until it covers the wanted share of the body.
"""

import dataclasses

import cv2
import numpy as np

from data_pipelines.synthetic import body, identity, pose, scene
from data_pipelines.synthetic.raster import SAMPLES, View, draw

OBJECTS = ("car", "plant", "wall", "pillar")
KINDS = (*OBJECTS, "people")
_TRIES = 50


@dataclasses.dataclass(frozen=True)
class Layer:
    """Colour weighted by alpha, float32 [H, W, 3], and alpha, float32 [H, W]."""

    colour: np.ndarray
    alpha: np.ndarray

    def over(self, picture: np.ndarray) -> np.ndarray:
        """Returns the picture behind this layer, float32 [H, W, 3]."""
        return picture * (1 - self.alpha[..., None]) + self.colour


def occluder(
    rng: np.random.Generator, visible: np.ndarray, view: View, share: float
) -> Layer:
    """Draws an occluder.

    Args:
      rng: draws its kind, its looks and its side.
      visible: bool [H, W], the body.
      view: of the occluded person.
      share: of the body that should be covered; met as closely as the shape allows.
    """
    kind = KINDS[rng.choice(len(KINDS), p=[0.2, 0.25, 0.2, 0.1, 0.25])]
    frames, covered = _ways(rng, kind, visible, view)
    return frames[int(np.argmin(np.abs(covered - share)))]


def before(
    rng: np.random.Generator,
    visible: np.ndarray,
    view: View,
    share: float,
    *,
    someone: identity.Person | None,
    most: float,
) -> Layer:
    """Draws an object, or a person, that moves as far before the body as is wanted.

    Args:
      rng: draws what it is, its looks and its side, whatever the share.
      visible: bool [H, W], the body.
      view: of the occluded person.
      share: of the body that should be covered.
      someone: the person; None for an object.
      most: share of the body that it must be able to cover; others are drawn anew.
    """
    for _ in range(_TRIES):
        kind = "people" if someone else str(rng.choice(OBJECTS))
        frames, covered = _ways(rng, kind, visible, view, someone)
        if covered.max() >= most:
            break
    # Beyond its best place it uncovers what it had covered first.
    way = covered[: int(covered.argmax()) + 1]
    return frames[int(np.argmin(np.abs(way - share)))]


def _ways(
    rng: np.random.Generator,
    kind: str,
    visible: np.ndarray,
    view: View,
    someone: identity.Person | None = None,
) -> tuple[list[Layer], np.ndarray]:
    """A thing at 32 places on its way in, and the shares that it covers there [32]."""
    sideways = kind in ("pillar", "people") or (kind == "plant" and rng.random() < 0.4)
    size = visible.shape
    given = {"stranger": someone} if someone else {}
    layer = _LAYERS[kind](rng, size, view, sideways, **given)
    mirrored = sideways and rng.random() < 0.5
    frames = [_slid(layer, size, step, sideways, mirrored) for step in range(1, 33)]
    total = max(int(visible.sum()), 1)
    covered = [(visible & (f.alpha > 0.5)).sum() / total for f in frames]
    return frames, np.array(covered)


def _slid(
    layer: Layer, size: tuple[int, int], step: int, sideways: bool, mirrored: bool
) -> Layer:
    """The part of the layer inside the frame after sliding in by `step` / 32."""
    down = 0 if sideways else size[0] * step // 32
    right = size[1] * step // 32 if sideways else 0
    window = (slice(down, down + size[0]), slice(right, right + size[1]))
    colour, alpha = layer.colour[window], layer.alpha[window]
    if mirrored:
        return Layer(colour[:, ::-1], alpha[:, ::-1])
    return Layer(colour, alpha)


class _Easel:
    """A layer under construction, at `SAMPLES` times its size."""

    def __init__(self, size: tuple[int, int], sideways: bool):
        rows, columns = size[0] * SAMPLES, size[1] * SAMPLES
        self.left, self.top = (columns, 0) if sideways else (0, rows)
        shape = (rows, 2 * columns) if sideways else (2 * rows, columns)
        self.colour = np.zeros((*shape, 3), np.float32)
        self.alpha = np.zeros(shape, np.float32)

    def cover(self, mask: np.ndarray, rgb: np.ndarray) -> None:
        self.colour[mask] = rgb
        self.alpha[mask] = 1

    def layer(self, rng: np.random.Generator, rough: float) -> Layer:
        noise = scene.grain(rng, self.alpha.shape, 2.0)
        shaded = np.clip(self.colour * (1 + rough * noise[..., None]), 0, 1)
        shaded *= self.alpha[..., None]
        size = (self.alpha.shape[1] // SAMPLES, self.alpha.shape[0] // SAMPLES)
        return Layer(
            cv2.resize(shaded, size, interpolation=cv2.INTER_AREA),
            cv2.resize(self.alpha, size, interpolation=cv2.INTER_AREA),
        )


def _car(
    rng: np.random.Generator, size: tuple[int, int], view: View, sideways: bool
) -> Layer:
    easel = _Easel(size, sideways)
    length = int(2.3 * view.height * SAMPLES)
    paint = np.clip(rng.uniform(0.08, 0.85) + rng.normal(0, 0.15, 3), 0.03, 0.95)
    left = -int(rng.uniform(0.15, 0.7) * (length - size[1] * SAMPLES))
    marker = np.full_like(easel.colour, -1)
    scene.car(marker, (left, easel.top + int(0.40 * length)), length, paint)
    drawn = marker[..., 0] >= 0
    shine = np.linspace(1.15, 0.8, len(marker))[:, None, None]
    easel.cover(drawn, (marker * shine)[drawn])
    return easel.layer(rng, 0.03)


def _plant(
    rng: np.random.Generator, size: tuple[int, int], view: View, sideways: bool
) -> Layer:
    easel = _Easel(size, sideways)
    rows, columns = easel.alpha.shape
    green = np.array((0.16, 0.34, 0.12)) * rng.uniform(0.7, 1.2)
    edge = 0.12 * view.height * SAMPLES
    for _ in range(700):
        x, y = rng.uniform(easel.left, columns), rng.uniform(easel.top, rows)
        if sideways:
            x += edge * (1 + np.sin(9 * y / rows))
        else:
            y += edge * (1 + np.sin(7 * x / columns))
        leaf = (green * rng.uniform(0.4, 1.7)).tolist()
        axes = (int(rng.uniform(4, 8) * SAMPLES), int(rng.uniform(2, 4) * SAMPLES))
        angle = float(rng.uniform(0, 180))
        for image, value in ((easel.colour, leaf), (easel.alpha, 1.0)):
            cv2.ellipse(image, (int(x), int(y)), axes, angle, 0, 360, value, -1)
    return easel.layer(rng, 0.15)


def _wall(
    rng: np.random.Generator, size: tuple[int, int], view: View, sideways: bool
) -> Layer:
    """A low wall, a board fence or a striped barrier."""
    easel = _Easel(size, sideways)
    rows, columns = np.indices(easel.alpha.shape)
    rows -= easel.top
    unit = view.height * SAMPLES / 112
    kind = rng.integers(3)
    base = np.array((0.62, 0.58, 0.52)) * rng.uniform(0.5, 1.2)
    rgb = np.broadcast_to(base, (*rows.shape, 3)).copy()
    if kind == 0:
        across = columns + (rows // int(9 * unit) % 2) * int(11 * unit)
        rgb[(rows % int(9 * unit) < unit) | (across % int(22 * unit) < unit)] *= 0.7
    elif kind == 1:
        rgb = rgb * (0.8, 0.6, 0.4)
        rgb[columns % int(10 * unit) < 1.5 * unit] *= 0.5
    else:
        rgb[:] = (0.85, 0.85, 0.82)
        rgb[(rows + columns) // int(14 * unit) % 2 == 0] = (0.75, 0.15, 0.12)
    rgb[(rows >= 0) & (rows < 4 * unit)] *= 1.2
    easel.cover(rows >= 0, rgb[rows >= 0])
    return easel.layer(rng, 0.06)


def _pillar(
    rng: np.random.Generator, size: tuple[int, int], view: View, sideways: bool
) -> Layer:
    easel = _Easel(size, sideways)
    width = rng.uniform(0.3, 0.6) * size[1] * SAMPLES
    place = (np.arange(easel.alpha.shape[1]) - easel.left) / width
    inside = (place >= 0) & (place < 1)
    bulge = 0.45 + 0.55 * np.sin(np.pi * np.clip(place, 0, 1))
    tone = np.array((0.60, 0.58, 0.55)) * rng.uniform(0.4, 1.3)
    easel.colour[:, inside] = (bulge[:, None] * tone)[inside]
    easel.alpha[:, inside] = 1
    return easel.layer(rng, 0.05)


def _people(
    rng: np.random.Generator,
    size: tuple[int, int],
    view: View,
    sideways: bool,
    stranger: identity.Person | None = None,
) -> Layer:
    stranger = stranger or identity.person(rng)
    stance = pose.pose(rng, bag=stranger.bag)
    nearer = rng.uniform(1.02, 1.2)
    moved = dataclasses.replace(
        view,
        yaw=rng.uniform(0, 2 * np.pi),
        height=view.height * nearer,
        foot=(1.5 * size[1], view.foot[1] + (nearer - 0.95) * 0.5 * view.height),
    )
    drawn = draw(body.solids(stranger, stance), moved, (size[0], 2 * size[1]))
    return Layer(drawn.colour, drawn.alpha)


_LAYERS = {
    "car": _car,
    "plant": _plant,
    "wall": _wall,
    "pillar": _pillar,
    "people": _people,
}
