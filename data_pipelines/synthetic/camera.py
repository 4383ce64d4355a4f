"""Cameras: where they hang, how they light and distort colours, whom they see."""

import dataclasses
import functools

import numpy as np

from data_pipelines.synthetic import seeds

CAST = 0.035
"""Strength of the colour cast.

With it, colour histograms of six stripes (8 x 8 x 8 RGB bins, L1) reach mAP 0.07 on
`holistic_demo` and 0.24 on its 40 central columns, where chance is 0.03; a ViT of
width 128 with 4 layers reaches 0.6 after 400 batches of 64.
"""
KINDS = ("street", "brick", "park", "shop", "corridor", "plaza")


@dataclasses.dataclass(frozen=True)
class Camera:
    """Properties that all pictures of one camera share.

    Attributes:
      number: counts from 0.
      yaw: usual direction of the walkers, radians; half of them walk the other way.
      pitch: radians the camera looks down.
      zoom: usual size of a person relative to the frame.
      gains: factor of each colour channel, the colour cast.
      gamma, contrast, saturation, brightness: of the picture.
      light: unit vector to the light (x right, y down, z towards the camera).
      ambient: share of undirected light.
      blur: standard deviation in pixels at the stored size.
      noise: standard deviation of the sensor noise, in 0..1.
    """

    number: int
    yaw: float
    pitch: float
    zoom: float
    gains: np.ndarray
    gamma: float
    contrast: float
    saturation: float
    brightness: float
    light: np.ndarray
    ambient: float
    blur: float
    noise: float


@functools.cache
def camera(number: int, seed: int = seeds.SEED) -> Camera:
    """Returns a camera; the casts of neighbours are a sixth of a hue circle apart."""
    rng = seeds.generator("camera", number, seed=seed)
    light = np.array([rng.uniform(-1, 1), rng.uniform(-1.2, -0.5), rng.uniform(0.3, 1)])
    hue = 2 * np.pi * (number / 6 + rng.uniform(0, 0.1))
    cast = np.cos(hue - np.array([0, 2 * np.pi / 3, 4 * np.pi / 3]))
    return Camera(
        number=number,
        yaw=np.pi * (number / 4 + rng.uniform(-0.1, 0.1)),
        pitch=rng.uniform(0.08, 0.38),
        zoom=rng.uniform(0.93, 1.03),
        gains=1 + CAST * cast,
        gamma=float(np.exp(rng.uniform(-0.1, 0.1))),
        contrast=rng.uniform(0.88, 1.05),
        saturation=rng.uniform(0.8, 1.1),
        brightness=rng.uniform(0.94, 1.06),
        light=light / np.linalg.norm(light),
        ambient=rng.uniform(0.4, 0.65),
        blur=rng.uniform(0.3, 0.8),
        noise=rng.uniform(0.008, 0.02),
    )
