"""Draws solids into colour, depth and part labels with a depth buffer."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

from data_pipelines.synthetic.body import CARRIED, Solid

SAMPLES = 3
"""Samples per pixel along each axis; odd, so that one lies in the pixel's centre."""


@dataclasses.dataclass(frozen=True)
class View:
    """Where a person is seen from, and where they are in the picture.

    Attributes:
      yaw: radians; 0 looks into the camera, pi / 2 to the right of the picture.
      pitch: radians the camera looks down.
      height: pixels that one body height takes.
      foot: pixel (x, y) of the ground point under the body.
      stretch: width of the picture relative to its height, as boxes of a detector
        are stretched to the shape of the frame.
      light: unit vector to the light; x right, y down, z towards the camera.
      ambient: share of the light that comes from everywhere.
    """

    yaw: float
    pitch: float
    height: float
    foot: tuple[float, float]
    stretch: float
    light: np.ndarray
    ambient: float

    def project(self, point: np.ndarray) -> np.ndarray:
        """Body coordinates [3] → pixel x, pixel y, depth towards the camera [3]."""
        x, y, z = point
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        across, near = x * cos + z * sin, z * cos - x * sin
        up = y * np.cos(self.pitch) - near * np.sin(self.pitch)
        depth = near * np.cos(self.pitch) + y * np.sin(self.pitch)
        wide, high = self.scale
        return np.array([self.foot[0] + wide * across, self.foot[1] - high * up, depth])

    @property
    def scale(self) -> np.ndarray:
        """Pixels per body height, across and up [2]."""
        return np.array([self.height * self.stretch, self.height])


@dataclasses.dataclass(frozen=True)
class Picture:
    """A drawn person.

    Attributes:
      colour: float32 [H, W, 3], already weighted by `alpha`.
      alpha: float32 [H, W], the covered share of each pixel.
      labels: uint8 [H, W], the class at the centre of each pixel, or `body.CARRIED`.
    """

    colour: np.ndarray
    alpha: np.ndarray
    labels: np.ndarray

    @property
    def parts(self) -> np.ndarray:
        """uint8 [H, W], the part map: carried objects are background."""
        return part_map(self.labels)


def part_map(labels: np.ndarray) -> np.ndarray:
    """Labels [H, W] with carried objects as background."""
    return np.where(labels == CARRIED, np.uint8(0), labels)


def draw(solids: list[Solid], view: View, size: tuple[int, int]) -> Picture:
    """Draws a person into a frame of (height, width) pixels."""
    canvas = _Canvas(size)
    for solid in solids:
        canvas.add(solid, view)
    return canvas.picture()


class _Canvas:
    """Colour, depth and labels at `SAMPLES` times the resolution of the frame."""

    def __init__(self, size: tuple[int, int]):
        self.size = size
        shape = (size[0] * SAMPLES, size[1] * SAMPLES)
        self.colour = np.zeros((*shape, 3), np.float32)
        self.depth = np.full(shape, _FAR, np.float32)
        self.part = np.zeros(shape, np.uint8)

    def add(self, solid: Solid, view: View) -> None:
        """Draws one solid where it is nearer than what is there."""
        axis = _axis(solid, view)
        box = self._box(solid, axis, view.scale)
        if box is None:
            return
        along, across = _coordinates(box, axis, view.scale)
        half = np.interp(along, axis.at, axis.half, left=0, right=0)
        inside = np.abs(across) < half
        along, share = along[inside], across[inside] / half[inside]
        front = np.sqrt(1 - share**2)
        near = np.interp(along, axis.at, axis.bulge) * front
        near += np.interp(along, axis.at, axis.lean) * share
        depth = axis.start[2] + axis.slope * np.clip(along, 0, axis.length) + near
        nearer = depth > self.depth[box][inside]
        inside[inside] = nearer
        self.depth[box][inside] = depth[nearer]
        points = _Points(
            along[nearer], across[inside], share[nearer], front[nearer], near[nearer]
        )
        self._paint(solid, view, axis, (box, inside), points)

    def _box(
        self, solid: Solid, axis: _Axis, scale: np.ndarray
    ) -> tuple[slice, slice] | None:
        """Rows and columns of samples that the solid may touch."""
        ends = axis.start[:2] + np.outer(axis.at[[0, -1]], axis.down) * scale
        margin = axis.half.max() * scale
        limits = self.part.shape[::-1]
        low = np.floor((ends.min(axis=0) - margin) * SAMPLES)
        high = np.ceil((ends.max(axis=0) + margin) * SAMPLES) + 1
        left, top = np.clip(low, 0, limits).astype(int)
        right, bottom = np.clip(high, 0, limits).astype(int)
        if right <= left or bottom <= top:
            return None
        return slice(top, bottom), slice(left, right)

    def _paint(
        self,
        solid: Solid,
        view: View,
        axis: _Axis,
        where: tuple[tuple[slice, slice], np.ndarray],
        points: _Points,
    ) -> None:
        box, inside = where
        cos, sin = np.cos(view.yaw), np.sin(view.yaw)
        x = points.across * cos - points.near * sin
        z = points.across * sin + points.near * cos
        wide = np.interp(points.along, axis.at, solid.wide)
        deep = np.interp(points.along, axis.at, solid.deep)
        rise = (solid.end[1] - solid.start[1]) / axis.length
        level = (solid.start[1] + rise * points.along - solid.centre) / solid.unit
        rgb = solid.surface.colour(x, level, np.arctan2(x / wide, z / deep))
        self.colour[box][inside] = rgb * _shade(view, axis, points)[:, None]
        if isinstance(solid.part, int):
            self.part[box][inside] = solid.part
        else:
            self.part[box][inside] = np.where(x > 0, *solid.part)

    def picture(self) -> Picture:
        """Darkens creases and averages the samples; labels come from the centres."""
        drawn = self.depth > _FAR
        crease = np.clip((cv2.blur(self.depth, (9, 9)) - self.depth) * 4.0, 0, 0.45)
        colour = self.colour * (1 - crease * drawn)[..., None]
        target, centre = self.size[::-1], SAMPLES // 2
        return Picture(
            colour=cv2.resize(colour, target, interpolation=cv2.INTER_AREA),
            alpha=cv2.resize(np.float32(drawn), target, interpolation=cv2.INTER_AREA),
            labels=self.part[centre::SAMPLES, centre::SAMPLES].copy(),
        )


_FAR = -1.0


@dataclasses.dataclass(frozen=True)
class _Points:
    """Visible points of a solid: along the axis, across it in body heights and as a
    share of the half width, how far they face the camera, and nearness to it."""

    along: np.ndarray
    across: np.ndarray
    share: np.ndarray
    front: np.ndarray
    near: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Axis:
    """A solid's axis and sections as seen in a view, in body heights.

    Attributes:
      start: pixel x, pixel y and depth of the start.
      down: unit vector along the axis in the picture.
      length: of the axis in the picture.
      slope: change of depth along the axis.
      at: places of the sections along the axis.
      half: half widths of the sections.
      lean, bulge: depth of the surface, linear and round over the width.
    """

    start: np.ndarray
    down: np.ndarray
    length: float
    slope: float
    at: np.ndarray
    half: np.ndarray
    lean: np.ndarray
    bulge: np.ndarray


def _axis(solid: Solid, view: View) -> _Axis:
    start, end = view.project(solid.start), view.project(solid.end)
    vector = (end - start)[:2] / view.scale
    seen = max(float(np.linalg.norm(vector)), 1e-4)
    whole = max(float(np.linalg.norm(solid.end - solid.start)), 1e-4)
    # The axis is seen shortened, the round ends beyond it are not.
    on_axis = np.clip(solid.at, 0, whole)
    cos, sin = np.cos(view.yaw), np.sin(view.yaw)
    half = np.hypot(solid.wide * cos, solid.deep * sin)
    return _Axis(
        start=start,
        down=vector / seen,
        length=seen,
        slope=float(end[2] - start[2]) / seen,
        at=on_axis * seen / whole + (solid.at - on_axis),
        half=half,
        # A line across an ellipse: the middle of its two hits, and half their distance.
        lean=(solid.deep**2 - solid.wide**2) * sin * cos / half,
        bulge=solid.wide * solid.deep / half,
    )


def _coordinates(
    box: tuple[slice, slice], axis: _Axis, scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Each sample's place along and across the axis, [rows, columns] each."""
    rows, columns = (np.arange(s.start, s.stop) + 0.5 for s in box)
    x = np.float32((columns / SAMPLES - axis.start[0]) / scale[0])
    y = np.float32((rows / SAMPLES - axis.start[1]) / scale[1])[:, None]
    right, down = np.float32(axis.down)
    return x * right + y * down, x * down - y * right


def _shade(view: View, axis: _Axis, points: _Points) -> np.ndarray:
    """Lambert's law on a round surface, and less light at the rims."""
    x, y, z = view.light
    lit = points.share * (axis.down[1] * x - axis.down[0] * y) + points.front * z
    shade = view.ambient + (1 - view.ambient) * np.maximum(lit, 0)
    return shade * (0.75 + 0.25 * points.front)
