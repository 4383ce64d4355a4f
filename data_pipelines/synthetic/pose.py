"""How a person stands or walks: joint positions in body coordinates.

x points to the person's left, y up, z forward; the unit is the body height and the
ground is y = 0.
"""

import dataclasses

import numpy as np

HIP, KNEE_LENGTH, SHIN_LENGTH = 0.49, 0.22, 0.225
SHOULDER, ARM_LENGTH, FOREARM_LENGTH = 0.785, 0.165, 0.145
ANKLE = 0.045
_ARMS = {
    "swing": 0.58,
    "phone": 0.10,
    "pocket": 0.12,
    "front": 0.10,
    "straps": 0.10,
}


@dataclasses.dataclass(frozen=True)
class Pose:
    """Phase and size of the stride, and what the arms do.

    Attributes:
      phase: of the walk, in radians.
      stride: amplitude of the legs, in radians; near 0 the person stands.
      arms: kind of arm posture of the (left, right) arm.
      swing: amplitude of the arms, in radians.
      lean: forward lean of the upper body, in radians.
    """

    phase: float
    stride: float
    arms: tuple[str, str]
    swing: float
    lean: float


@dataclasses.dataclass(frozen=True)
class Joints:
    """Positions, float64 [3] each; the pairs are (left, right)."""

    hips: tuple[np.ndarray, np.ndarray]
    knees: tuple[np.ndarray, np.ndarray]
    ankles: tuple[np.ndarray, np.ndarray]
    heels: tuple[np.ndarray, np.ndarray]
    toes: tuple[np.ndarray, np.ndarray]
    shoulders: tuple[np.ndarray, np.ndarray]
    elbows: tuple[np.ndarray, np.ndarray]
    wrists: tuple[np.ndarray, np.ndarray]
    pelvis: np.ndarray
    chest: np.ndarray
    head: np.ndarray


def pose(rng: np.random.Generator, *, bag: str) -> Pose:
    """Draws a pose; what a person carries bounds what their arms do."""
    walks = rng.random() < 0.75
    kinds = list(_ARMS)
    both = rng.choice(kinds, p=np.array(list(_ARMS.values())) / sum(_ARMS.values()))
    arms = [str(both), str(both)]
    if both in ("phone", "pocket") or rng.random() < 0.3:
        arms[rng.integers(2)] = "swing"
    if bag != "backpack":
        arms = ["front" if kind == "straps" else kind for kind in arms]
    return Pose(
        phase=rng.uniform(0, 2 * np.pi),
        stride=rng.uniform(0.25, 0.5) if walks else rng.uniform(0, 0.08),
        arms=(arms[0], arms[1]),
        swing=rng.uniform(0.2, 0.55) if walks else rng.uniform(0, 0.12),
        lean=rng.normal(0.03, 0.03),
    )


def carrying(given: Pose, *, left: bool) -> Pose:
    """The same pose with the left or the right arm hanging under a load."""
    arms = ("carry", given.arms[1]) if left else (given.arms[0], "carry")
    return dataclasses.replace(given, arms=arms)


def joints(given: Pose, *, shoulders: float, hips: float) -> Joints:
    """Places the joints of a body with the given widths (factors)."""
    legs = [_leg(given, side, hips) for side in (0, 1)]
    lift = ANKLE - min(leg[2][1] for leg in legs)
    raised = [[point + np.array([0, lift, 0]) for point in leg] for leg in legs]
    pelvis = np.array([0, HIP + lift, 0])
    arms = [_arm(given, side, shoulders, pelvis) for side in (0, 1)]
    hip, knee, ankle, heel, toe = zip(*raised, strict=True)
    shoulder, elbow, wrist = zip(*arms, strict=True)
    return Joints(
        hips=hip,
        knees=knee,
        ankles=ankle,
        heels=heel,
        toes=toe,
        shoulders=shoulder,
        elbows=elbow,
        wrists=wrist,
        pelvis=pelvis,
        chest=_leant((0, 0.33, 0), given.lean) + pelvis,
        head=_leant((0, 0.435, 0.008), given.lean) + pelvis,
    )


def _leg(given: Pose, side: int, hips: float) -> list[np.ndarray]:
    """Hip, knee, ankle, heel and toe of the left (0) or right (1) leg."""
    phase = given.phase + side * np.pi
    thigh = given.stride * np.sin(phase) + 0.25 * given.stride
    bend = 0.08 + 1.7 * given.stride * max(0.0, np.cos(phase)) ** 1.5
    out = 1 - 2 * side
    hip = np.array([out * 0.05 * hips, HIP, 0])
    knee = hip + KNEE_LENGTH * _down(thigh, out * 0.02)
    ankle = knee + SHIN_LENGTH * _down(thigh - bend, -out * 0.01)
    tilt = max(0.0, bend - 0.3 - thigh)
    foot = _leant((out * 0.015, 0, 1), tilt)
    heel = ankle - 0.022 * foot - (0, 0.020, 0)
    return [hip, knee, ankle, heel, heel + 0.105 * foot]


def _arm(
    given: Pose, side: int, shoulders: float, pelvis: np.ndarray
) -> list[np.ndarray]:
    """Shoulder, elbow and wrist of the left (0) or right (1) arm."""
    out = 1 - 2 * side
    swing = -given.swing * np.sin(given.phase + side * np.pi)
    upper, spread, bend, inward = {
        "swing": (swing, 0.10, 0.2 + max(0.0, swing), 0.0),
        "carry": (0.3 * swing, 0.10, 0.08, 0.0),
        "phone": (0.5, 0.15, 2.3, 0.3),
        "pocket": (-0.35, 0.28, 0.75, 0.35),
        "front": (0.15, 0.10, 1.25, 0.6),
        "straps": (-0.1, 0.12, 2.2, 0.15),
    }[given.arms[side]]
    at = (out * 0.098 * shoulders, SHOULDER - HIP, 0)
    shoulder = pelvis + _leant(at, given.lean)
    elbow = shoulder + ARM_LENGTH * _down(upper, out * spread)
    wrist = elbow + FOREARM_LENGTH * _down(upper + bend, -out * inward + out * 0.04)
    return [shoulder, elbow, wrist]


def _down(forward: float, sideways: float) -> np.ndarray:
    """Unit vector that hangs down, turned forward and sideways (radians)."""
    return np.array(
        [
            np.sin(sideways),
            -np.cos(forward) * np.cos(sideways),
            np.sin(forward) * np.cos(sideways),
        ]
    )


def _leant(vector: tuple[float, float, float], angle: float) -> np.ndarray:
    """Rotates a vector forward about the x axis."""
    x, y, z = vector
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([x, y * cos - z * sin, y * sin + z * cos])
