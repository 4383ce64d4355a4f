"""The solids that a person in a pose is made of.

Each solid is a stack of elliptical sections along an axis. Parts follow the person's
own left and right. A coat counts as torso where it covers the legs, a skirt as the
leg of its side, hair and hats as head; carried objects have a label of their own.
"""

import dataclasses
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from data_pipelines.synthetic import cloth, identity, pose

HEAD, TORSO, ARM, LEG, FOOT = 1, 2, (3, 4), (5, 6), (7, 8)
CARRIED = 254
"""Label of what a person carries, which is background in a part map."""
_THICK = {"jacket": 1.10, "coat": 1.12}
_HEM = {"jacket": -0.02, "coat": 0.0}
_CAP = np.sin(np.linspace(0, np.pi / 2, 5))


class Surface(Protocol):
    """What colours a solid: see `cloth`."""

    def colour(self, x: np.ndarray, y: np.ndarray, turn: np.ndarray) -> np.ndarray:
        """Returns the colour [N, 3] of surface points [N]."""


@dataclasses.dataclass(frozen=True)
class Solid:
    """Elliptical sections along an axis; lengths in body heights.

    Attributes:
      start, end: ends of the axis, float64 [3].
      at: places of the sections as distances from `start`, increasing [N].
      wide, deep: half axes of the sections to the side and forward [N].
      part: class of the part map, or (left, right) classes by the side of the axis.
      surface: colours the points.
      centre: if given, the surface gets heights relative to it, in units of `unit`.
    """

    start: np.ndarray
    end: np.ndarray
    at: np.ndarray
    wide: np.ndarray
    deep: np.ndarray
    part: int | tuple[int, int]
    surface: Surface
    centre: float = 0.0
    unit: float = 1.0


def limb(
    start: np.ndarray,
    end: np.ndarray,
    radii: tuple[float, ...],
    part: int,
    surface: Surface,
) -> Solid:
    """A round limb with round ends; `radii` are evenly spaced from start to end."""
    length = float(np.linalg.norm(end - start))
    first, last = radii[0], radii[-1]
    at = np.concatenate(
        [
            -first * _CAP[:0:-1],
            np.linspace(0, length, len(radii)),
            length + last * _CAP[1:],
        ]
    )
    cap = np.sqrt(1 - _CAP[1:] ** 2) + 0.02
    radius = np.concatenate([first * cap[::-1], radii, last * cap])
    return Solid(start, end, at, radius, radius, part, surface)


def stack(
    top: np.ndarray,
    bottom: np.ndarray,
    sections: list[tuple[float, float, float]],
    part: int | tuple[int, int],
    surface: Surface,
) -> Solid:
    """A trunk from (share of the axis, half width, half depth) sections."""
    share, wide, deep = np.array(sections).T
    at = share * float(np.linalg.norm(bottom - top))
    return Solid(top, bottom, at, wide, deep, part, surface)


def solids(person: identity.Person, stance: pose.Pose) -> list[Solid]:
    """Builds the person."""
    if person.bag in ("handbag", "suitcase"):
        stance = pose.carrying(stance, left=person.bag_left)
    joints = pose.joints(stance, shoulders=person.shoulders, hips=person.hips)
    return [
        *_legs(person, joints),
        *_trunk(person, joints),
        *_arms(person, joints),
        *_head(person, joints),
        *_bag(person, joints),
    ]


def _legs(person: identity.Person, joints: pose.Joints) -> Iterator[Solid]:
    width, loose = person.width, person.loose * person.width
    trousers = person.lower == "trousers"
    thigh_cloth = person.legs_skin if person.lower == "skirt" else person.lower_cloth
    shin_cloth = person.lower_cloth if trousers else person.legs_skin
    shin = (0.037, 0.036, 0.030) if trousers else (0.034, 0.036, 0.022)
    for side in (0, 1):
        hip, knee, ankle = joints.hips[side], joints.knees[side], joints.ankles[side]
        bare = person.lower == "skirt"
        thigh = np.array((0.040, 0.049, 0.041)) * width
        if not bare:
            thigh = np.array((0.055, 0.052, 0.041)) * loose
        below = np.array(shin) * (loose if trousers else width)
        yield limb(hip, knee, tuple(thigh), LEG[side], thigh_cloth)
        yield limb(knee, ankle, tuple(below), LEG[side], shin_cloth)
        toe, heel = joints.toes[side], joints.heels[side]
        yield limb(heel, toe, (0.026, 0.024, 0.018), FOOT[side], person.shoe)


def _trunk(person: identity.Person, joints: pose.Joints) -> Iterator[Solid]:
    wide, hips = person.width * person.shoulders, person.width * person.hips
    thick = _THICK.get(person.upper, 1.0)
    deep = person.width * thick
    hem = moved(joints.pelvis, 0, _HEM.get(person.upper, 0.03), 0)
    sections = [
        (0.00, 0.034 * wide, 0.034 * deep),
        (0.06, 0.066 * wide, 0.044 * deep),
        (0.14, 0.098 * wide * thick, 0.058 * deep),
        (0.38, 0.101 * wide * thick, 0.071 * deep),
        (0.72, 0.088 * (wide + hips) / 2 * thick, 0.066 * deep),
        (1.00, 0.100 * hips * thick, 0.073 * deep),
    ]
    top = moved(joints.chest, 0, 0.022, 0)
    yield stack(top, hem, sections, TORSO, person.torso_cloth)
    if person.upper != "coat":
        yield _waist(person, joints, hips)
    yield from _hanging(person, joints, hips)


def _waist(person: identity.Person, joints: pose.Joints, hips: float) -> Solid:
    """The top of the trousers or skirt, which counts as torso."""
    deep = 0.070 * person.width
    sections = [
        (0.0, 0.095 * hips, deep),
        (0.7, 0.098 * hips, deep),
        (1, 0.085 * hips, deep),
    ]
    start, end = moved(joints.pelvis, 0, 0.05, 0), moved(joints.pelvis, 0, -0.05, 0)
    return stack(start, end, sections, TORSO, person.lower_cloth)


def _hanging(
    person: identity.Person, joints: pose.Joints, hips: float
) -> Iterator[Solid]:
    """Skirt and coat tail, wide enough for the legs inside."""
    wide = 0.118 * hips * max(person.loose, 1.0)
    if person.lower == "skirt":
        end = np.array([0, person.skirt_hem, 0])
        deep = 1.2 * _stride_depth(person, joints, person.skirt_hem)
        sections = [
            (0.00, 0.100 * hips, 0.076 * person.width),
            (0.25, 0.114 * hips, max(0.084 * person.width, 0.6 * deep)),
            (1.00, wide, deep),
        ]
        yield stack(joints.pelvis, end, sections, LEG, person.lower_cloth)
    if person.upper == "coat":
        hem = person.skirt_hem + 0.03
        end = np.array([0, hem, 0])
        deep = 1.25 * _stride_depth(person, joints, hem)
        sections = [
            (0.0, 0.110 * hips, 0.080 * person.width),
            (1.0, 1.12 * wide, deep),
        ]
        top = moved(joints.pelvis, 0, 0.03, 0)
        yield stack(top, end, sections, TORSO, person.torso_cloth)


def _stride_depth(person: identity.Person, joints: pose.Joints, hem: float) -> float:
    """How far forward or back the legs reach at the height of a hem."""
    reach = 0.0
    for hip, knee in zip(joints.hips, joints.knees, strict=True):
        share = min((hip[1] - hem) / max(hip[1] - knee[1], 0.05), 1.2)
        reach = max(reach, abs(hip[2] + share * (knee[2] - hip[2])))
    return reach + 0.060 * person.width * max(person.loose, 1.0)


def _arms(person: identity.Person, joints: pose.Joints) -> Iterator[Solid]:
    width = person.width
    thick = {"jacket": 1.2, "coat": 1.25}.get(person.upper, 1.0) * width
    upper = person.skin if person.upper == "vest" else person.sleeve_cloth
    bare = person.upper in ("shirt", "vest")
    for side in (0, 1):
        shoulder, elbow = joints.shoulders[side], joints.elbows[side]
        wrist = joints.wrists[side]
        radii = (0.035 * thick, 0.033 * thick, 0.027 * thick)
        yield limb(shoulder, elbow, radii, ARM[side], upper)
        sleeve = person.skin if bare else person.sleeve_cloth
        radii = (
            (0.027 * width, 0.019 * width) if bare else (0.028 * thick, 0.023 * thick)
        )
        yield limb(elbow, wrist, radii, ARM[side], sleeve)
        hand = wrist + 0.035 * _unit(wrist - elbow)
        yield limb(wrist, hand, (0.017, 0.020), ARM[side], person.skin)


def _head(person: identity.Person, joints: pose.Joints) -> Iterator[Solid]:
    centre = joints.head
    neck = limb(joints.chest, centre, (0.030 * person.width, 0.028), HEAD, person.skin)
    yield neck
    radius, angle = 0.070, np.linspace(0, np.pi, 13)
    top = moved(centre, 0, radius, 0)
    ring = np.sqrt(np.sin(angle))
    yield Solid(
        top,
        moved(centre, 0, -radius, 0),
        radius * (1 - np.cos(angle)),
        0.048 * ring + 1e-3,
        0.057 * ring + 1e-3,
        HEAD,
        person.head_cloth,
        centre=centre[1],
        unit=radius,
    )
    yield from _hair(person, centre)


def _hair(person: identity.Person, centre: np.ndarray) -> Iterator[Solid]:
    """What stands out from the head: long hair, tail, bun, brim, hood."""
    hat = cloth.plain(person.head_cloth.hat)

    def at(x: float, y: float, z: float) -> np.ndarray:
        return moved(centre, x, y, z)

    if person.head == "long":
        sections = [(0.0, 0.05, 0.035), (0.5, 0.058, 0.036), (1.0, 0.045, 0.022)]
        yield stack(
            at(0, 0.03, -0.03), at(0, -0.13, -0.045), sections, HEAD, person.hair
        )
    elif person.head == "ponytail":
        start, end = at(0, 0.035, -0.06), at(0, -0.09, -0.085)
        yield limb(start, end, (0.016, 0.022, 0.010), HEAD, person.hair)
    elif person.head == "bun":
        yield limb(
            at(0, 0.06, -0.045),
            at(0, 0.065, -0.05),
            (0.028, 0.028),
            HEAD,
            person.hair,
        )
    elif person.head == "cap":
        start, end = at(0, 0.028, 0.05), at(0, 0.02, 0.085)
        yield Solid(
            start,
            end,
            np.array([0, 0.036]),
            np.full(2, 0.04),
            np.full(2, 0.012),
            HEAD,
            hat,
        )
    elif person.head == "hood":
        sections = [(0.0, 0.052, 0.04), (1.0, 0.066, 0.055)]
        yield stack(at(0, 0.02, -0.018), at(0, -0.085, -0.02), sections, HEAD, hat)


def _bag(person: identity.Person, joints: pose.Joints) -> Iterator[Solid]:
    side = 0 if person.bag_left else 1
    out, surface = 1 - 2 * side, person.bag_cloth
    dark = cloth.plain(surface.base * 0.6)
    if person.bag == "backpack":
        back = -0.068 * person.width - 0.045
        top, bottom = (
            moved(joints.chest, 0, -0.015, back),
            moved(joints.pelvis, 0, 0.08, back),
        )
        sections = [
            (0.0, 0.05, 0.03),
            (0.12, 0.078, 0.05),
            (0.9, 0.086, 0.06),
            (1.0, 0.07, 0.05),
        ]
        yield stack(top, bottom, sections, CARRIED, surface)
    elif person.bag == "handbag":
        hand = moved(joints.wrists[side], 0, -0.05, 0)
        yield limb(hand, moved(hand, 0, -0.05, 0), (0.008, 0.008), CARRIED, dark)
        sections = [(0.0, 0.022, 0.055), (1.0, 0.03, 0.075)]
        yield stack(
            moved(hand, 0, -0.04, 0),
            moved(hand, 0, -0.16, 0),
            sections,
            CARRIED,
            surface,
        )
    elif person.bag == "sling":
        top = moved(joints.pelvis, out * 0.118 * person.width, 0.06, -0.02)
        sections = [(0.0, 0.028, 0.07), (1.0, 0.032, 0.075)]
        yield stack(top, moved(top, 0, -0.11, 0), sections, CARRIED, surface)
    elif person.bag == "suitcase":
        hand = moved(joints.wrists[side], 0, -0.03, 0)
        foot = np.array([out * 0.20, 0.02, -0.16])
        yield limb(hand, moved(foot, 0, 0.3, 0), (0.008, 0.008), CARRIED, dark)
        sections = [(0.0, 0.07, 0.04), (0.05, 0.085, 0.05), (1.0, 0.085, 0.05)]
        yield stack(moved(foot, 0, 0.27, 0), foot, sections, CARRIED, surface)


def moved(point: np.ndarray, x: float, y: float, z: float) -> np.ndarray:
    """The point [3] shifted to the left, up and forward."""
    return point + np.array([x, y, z])


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-6)
