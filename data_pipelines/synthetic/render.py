"""Renders one picture with its part map, a pure function of its `Shot`."""

import dataclasses

import cv2
import numpy as np

from data_pipelines.synthetic import (
    body,
    identity,
    occluders,
    people,
    pose,
    scene,
    seeds,
    trials,
)
from data_pipelines.synthetic.camera import Camera, camera
from data_pipelines.synthetic.plan import Shot
from data_pipelines.synthetic.raster import Picture, View, draw, part_map

SIZE = (128, 64)
"""Height and width of the stored pictures, those of Market-1501."""
QUALITY = 90

_OCCLUDED = {
    # (variant, split): share of the images, least and most of the body that is covered
    ("holistic", "train"): (0.12, 0.08, 0.25),
    ("partial", "train"): (0.12, 0.08, 0.25),
    ("pretrain", "train"): (0.12, 0.08, 0.25),
    ("occluded", "train"): (0.30, 0.15, 0.50),
    ("occluded", "query"): (1.00, 0.25, 0.60),
}


def encoded(shot: Shot) -> tuple[bytes, bytes]:
    """Returns the picture as JPEG and its part map as PNG."""
    image, parts = render(shot)
    quality = [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
    jpeg = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), quality)[1]
    return jpeg.tobytes(), cv2.imencode(".png", parts)[1].tobytes()


def render(shot: Shot) -> tuple[np.ndarray, np.ndarray]:
    """Renders a picture.

    Returns:
      uint8 RGB [128, 64, 3], and uint8 part classes [128, 64]: those of
      `part_labels.kinds` at the centre of each pixel, 0 where an occluder, a
      carried object or another person is in front.
    """
    image, labels = labelled(shot)
    return image, part_map(labels)


def labelled(shot: Shot) -> tuple[np.ndarray, np.ndarray]:
    """As `render`, but what the person carries is labelled `body.CARRIED`."""
    cv2.setNumThreads(0)
    rng = seeds.generator(
        "image", shot.variant, shot.size, shot.split, shot.index, seed=shot.seed
    )
    partial = (shot.variant, shot.split) == ("partial", "query")
    cropped = partial or shot.trial.cut is not None
    own = camera(shot.camera, shot.seed)
    # A crop is enlarged afterwards, so it is cut from a picture of twice the size.
    size = (2 * SIZE[0], 2 * SIZE[1]) if cropped else SIZE
    image, labels = _exposed(shot, rng, own, size)
    if cropped:
        window = _window(rng, labels.shape) if partial else _rows(shot, labels)
        image, labels = _stretched(image[window], labels[window])
    return _developed(rng, own, image), labels


def _exposed(
    shot: Shot, rng: np.random.Generator, own: Camera, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The scene as it meets the lens: float32 [H, W, 3] and labels [H, W]."""
    view = _view(rng, own, size)
    if shot.trial.shift or shot.trial.loose:
        view = trials.misplaced(shot, view, size)
    who = people.person(shot)
    drawn = draw(body.solids(who, pose.pose(rng, bag=who.bag)), view, size)
    image = scene.window(scene.strip(shot.camera, shot.seed), view, size, rng.random())
    if rng.random() < 0.15:
        image = _passer_by(rng, view, size).over(image)
    image *= _shadow(view, size, rng.uniform(0.35, 0.6))[..., None]
    image = occluders.Layer(_lit(rng, drawn), drawn.alpha).over(image)
    labels = drawn.labels
    share, least, most = _OCCLUDED.get((shot.variant, shot.split), (0.0, 0.0, 0.0))
    layer = None
    if rng.random() < share:
        wanted = rng.uniform(least, most)
        layer = occluders.occluder(rng, drawn.parts > 0, view, wanted)
    elif shot.trial.covered:
        layer = trials.cover(shot, drawn.parts > 0, view)
    if layer:
        image, labels = layer.over(image), np.where(layer.alpha > 0.5, 0, labels)
    return image, labels.astype(np.uint8)


def _view(rng: np.random.Generator, own: Camera, size: tuple[int, int]) -> View:
    """Viewpoint, scale and place in the frame, with the errors of a detector."""
    error = 0.09 if rng.random() < 0.15 else 0.035
    zoom = own.zoom * np.exp(rng.normal(0, error))
    pitch = own.pitch + rng.normal(0, 0.03)
    seen = np.cos(pitch) + 0.1 * np.sin(pitch)
    light = own.light + rng.normal(0, 0.15, 3)
    return View(
        yaw=own.yaw + np.pi * rng.integers(2) + rng.normal(0, 0.45),
        pitch=pitch,
        height=0.89 * size[0] * zoom / seen,
        foot=(
            size[1] * (0.5 + rng.normal(0, 1.2 * error)),
            size[0] * (0.95 + rng.normal(0, 0.6 * error)),
        ),
        stretch=rng.uniform(1.08, 1.32),
        light=light / np.linalg.norm(light),
        ambient=own.ambient,
    )


def _lit(rng: np.random.Generator, drawn: Picture) -> np.ndarray:
    """Folds and dirt: brightness that varies a little over the person."""
    folds = scene.grain(rng, drawn.alpha.shape, len(drawn.alpha) / 50)
    return drawn.colour * (1 + 0.07 * folds[..., None])


def _shadow(view: View, size: tuple[int, int], strength: float) -> np.ndarray:
    """What the ground keeps of its light around the feet, float32 [H, W]."""
    shade = np.zeros(size, np.float32)
    x = view.foot[0] - 0.1 * view.height * view.light[0]
    axes = (int(0.17 * view.height), int((0.02 + 0.1 * view.pitch) * view.height))
    cv2.ellipse(shade, (int(x), int(view.foot[1])), axes, 0, 0, 360, strength, -1)
    return 1 - cv2.GaussianBlur(shade, (0, 0), 0.03 * view.height)


def _passer_by(
    rng: np.random.Generator, view: View, size: tuple[int, int]
) -> occluders.Layer:
    """Someone farther away, who is background."""
    stranger, far = identity.person(rng), rng.uniform(0.5, 0.8)
    x = view.foot[0] + rng.choice([-1, 1]) * rng.uniform(0.25, 0.5) * size[1]
    away = dataclasses.replace(
        view,
        yaw=rng.uniform(0, 2 * np.pi),
        height=far * view.height,
        foot=(x, view.foot[1] - (1 - far) * (0.3 + view.pitch) * view.height),
    )
    drawn = draw(body.solids(stranger, pose.pose(rng, bag=stranger.bag)), away, size)
    return occluders.Layer(_lit(rng, drawn), drawn.alpha)


_Window = tuple[slice, slice]


def _window(rng: np.random.Generator, shape: tuple[int, int]) -> _Window:
    """Rows and columns of the upper or lower part or of one side."""
    rows, columns = shape
    kind = rng.choice(["upper", "lower", "left", "right"], p=[0.4, 0.3, 0.15, 0.15])
    row, column = (
        int(rng.uniform(0.42, 0.62) * rows),
        int(rng.uniform(0.45, 0.58) * columns),
    )
    return {
        "upper": (slice(0, row), slice(None)),
        "lower": (slice(rows - row, None), slice(None)),
        "left": (slice(None), slice(0, column)),
        "right": (slice(None), slice(columns - column, None)),
    }[str(kind)]


def _rows(shot: Shot, labels: np.ndarray) -> _Window:
    return trials.kept_rows(shot, part_map(labels) > 0), slice(None)


def _stretched(image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A window of a picture, as large as the frame."""
    target = SIZE[::-1]
    return (
        cv2.resize(image, target, interpolation=cv2.INTER_AREA),
        cv2.resize(labels, target, interpolation=cv2.INTER_NEAREST_EXACT),
    )


def _developed(rng: np.random.Generator, own: Camera, image: np.ndarray) -> np.ndarray:
    """The camera's colours, blur and noise; returns uint8 [H, W, 3]."""
    image = image * (own.brightness * np.exp(rng.normal(0, 0.06)))
    grey = image.mean(axis=2, keepdims=True)
    image = grey + own.saturation * (image - grey)
    image = (0.5 + own.contrast * (image - 0.45)) * own.gains
    image = image * (1 + rng.normal(0, 0.025, 3))
    image = np.float32(np.clip(image, 0, 1)) ** np.float32(own.gamma)
    image = cv2.GaussianBlur(image, (0, 0), own.blur)
    image += rng.normal(0, own.noise, image.shape)
    return np.uint8(np.clip(image, 0, 1) * 255 + 0.5)
