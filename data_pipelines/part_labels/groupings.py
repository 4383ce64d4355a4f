"""Groupings of part classes into the few parts that a method learns.

The groupings of PifPaf's classes are those of BPBreID (Somers et al., 2023), with
its names; DROP's ablation over 3 to 8 parts uses the same. `four_hpnet` is that of
HPNet (Huang et al., 2020). For the library's own eight classes and for LIP's clothes
each name stands for the nearest split into as many parts.

Sets may overlap, as BPBreID's do (`eight` has the limb between the hips in both torso
and left leg): the first set that names a class has it. That is also what the arg-max
over the groups' greatest confidences gives, because both groups then have the same.
A class that no set names (`five_v` lacks two limbs of the torso) is unlabelled.
"""

from typing import Any

import numpy as np

from data_pipelines.part_labels.kinds import UNLABELLED, check_kind
from reid_jax.errors import UserError

Grouping = tuple[frozenset[int], ...]
"""The classes of each group; group k of the result is set k - 1."""


def _channels(*ranges: tuple[int, int] | int) -> frozenset[int]:
    """Classes of PifPaf channels, given one by one or as (first, last)."""
    pairs = [r if isinstance(r, tuple) else (r, r) for r in ranges]
    return frozenset(
        channel + 1 for first, last in pairs for channel in range(first, last + 1)
    )


_HEAD = _channels((0, 4), (29, 35))
_TORSO = _channels(11, 12, (21, 24))
_LEFT_ARM = _channels(5, 7, 9, 25, 27)
_RIGHT_ARM = _channels(6, 8, 10, 26, 28)
_LEGS = _channels((11, 14), (17, 20))
_LEGS_BELOW_HIPS = _channels(13, 14, (17, 21))
_FEET = _channels(15, 16)

_PIFPAF = {
    "three_v": {
        "head": _HEAD,
        "torso and arms": _channels((5, 10), (22, 28)),
        "legs and feet": _channels((11, 21)),
    },
    "four_v": {
        "head": _HEAD,
        "torso and arms": _channels((5, 12), (21, 28)),
        "legs": _LEGS,
        "feet": _FEET,
    },
    "five_v": {
        "head": _HEAD,
        "upper arms and torso": _channels((5, 8), (24, 26)),
        "lower arms and torso": _channels((9, 12), 23, 27, 28),
        "legs": _LEGS,
        "feet": _FEET,
    },
    "six_new": {
        "head": _HEAD,
        "torso": _TORSO,
        "left arm": _LEFT_ARM,
        "right arm": _RIGHT_ARM,
        "legs": _LEGS_BELOW_HIPS,
        "feet": _FEET,
    },
    "seven_new": {
        "head": _HEAD,
        "upper torso": _channels((22, 24)),
        "lower torso": _channels(11, 12, 21),
        "left arm": _LEFT_ARM,
        "right arm": _RIGHT_ARM,
        "legs": _LEGS_BELOW_HIPS,
        "feet": _FEET,
    },
    "eight": {
        "head": _HEAD,
        "torso": _TORSO,
        "left arm": _LEFT_ARM,
        "right arm": _RIGHT_ARM,
        "left leg": _channels(13, 17, 18, 21),
        "right leg": _channels(14, 19, 20),
        "left foot": _channels(15),
        "right foot": _channels(16),
    },
}

_HPNET = {
    "three_v": {"head": {1}, "torso and arms": {2, 3, 4}, "legs and feet": {5, 6, 7}},
    "four_v": {
        "head": {1},
        "torso and arms": {2, 3, 4},
        "legs": {5, 6},
        "feet": {7},
    },
    "four_hpnet": {
        "head": {1},
        "torso and arms": {2, 3, 4},
        "upper legs": {5},
        "lower legs and feet": {6, 7},
    },
}

_LIP_HEAD = {1, 2, 4, 13}
_LIP_UPPER = {3, 5, 6, 7, 10, 11, 14, 15}
_LIP_LEGS = {8, 9, 12, 16, 17}
_LIP_SHOES = {18, 19}

_LIP = {
    "three_v": {
        "head": _LIP_HEAD,
        "torso and arms": _LIP_UPPER,
        "legs and feet": _LIP_LEGS | _LIP_SHOES,
    },
    "four_v": {
        "head": _LIP_HEAD,
        "torso and arms": _LIP_UPPER,
        "legs": _LIP_LEGS,
        "feet": _LIP_SHOES,
    },
}

_PARTS = {
    "three_v": {
        "head": {1},
        "torso and arms": {2, 3, 4},
        "legs and feet": {5, 6, 7, 8},
    },
    "four_v": {
        "head": {1},
        "torso and arms": {2, 3, 4},
        "legs": {5, 6},
        "feet": {7, 8},
    },
    "five_v": {
        "head": {1},
        "torso": {2},
        "arms": {3, 4},
        "legs": {5, 6},
        "feet": {7, 8},
    },
    "six_new": {
        "head": {1},
        "torso": {2},
        "left arm": {3},
        "right arm": {4},
        "legs": {5, 6},
        "feet": {7, 8},
    },
    "seven_new": {
        "head": {1},
        "torso": {2},
        "left arm": {3},
        "right arm": {4},
        "left leg": {5},
        "right leg": {6},
        "feet": {7, 8},
    },
    "eight": {
        "head": {1},
        "torso": {2},
        "left arm": {3},
        "right arm": {4},
        "left leg": {5},
        "right leg": {6},
        "left foot": {7},
        "right foot": {8},
    },
}

_GROUPINGS = {"parts": _PARTS, "pifpaf": _PIFPAF, "hpnet": _HPNET, "lip": _LIP}


def known_groupings(kind: str) -> tuple[str, ...]:
    """Names that `grouping` accepts for a kind of part labels."""
    return tuple(_GROUPINGS[check_kind(kind)])


def grouping(name: str, kind: str) -> Grouping:
    """The classes that make up each part.

    Args:
      name: `three_v`, `four_v`, `five_v`, `six_new`, `seven_new`, `eight` or
        `four_hpnet`.
      kind: kind of the part labels (`part_labels.kinds`).

    Raises:
      UserError: the kind is unknown, or has no such grouping.
    """
    return tuple(map(frozenset, _named(name, kind).values()))


def group_names(name: str, kind: str) -> tuple[str, ...]:
    """What the groups of `grouping(name, kind)` are called, in the same order."""
    return tuple(_named(name, kind))


def _named(name: str, kind: str) -> dict[str, Any]:
    known = known_groupings(kind)
    if name not in known:
        raise UserError(
            f"Part labels of kind {kind!r} have no grouping {name!r}. Known: "
            f"{', '.join(known)}."
        )
    return _GROUPINGS[kind][name]


def reduce(parts: Any, groups: Grouping) -> Any:
    """Part labels as group labels.

    Args:
      parts: uint8 part labels of any shape; a NumPy or JAX array, traced or not.
      groups: from `grouping`, for the kind of the labels.

    Returns:
      uint8 of the same shape and library: 0 background, 1 to K the first group that
      names the class, 255 where unlabelled or named by no group.
    """
    xp = parts.__array_namespace__()
    return xp.take(xp.asarray(_table(groups)), parts.astype("int32"))


def _table(groups: Grouping) -> np.ndarray:
    """Class -> group, uint8 [256]."""
    table = np.full(256, UNLABELLED, np.uint8)
    table[0] = 0
    for group in range(len(groups), 0, -1):  # The first group writes last and wins.
        table[list(groups[group - 1])] = group
    return table
