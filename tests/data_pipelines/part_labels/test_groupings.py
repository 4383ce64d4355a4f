"""Groupings against the names of joints and limbs, and against BPBreID's order."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data_pipelines.part_labels import groupings, label_files
from data_pipelines.part_labels.kinds import CLASS_NAMES, KINDS, PIFPAF_NAMES
from reid_jax.errors import UserError

FACE = ("nose", "eye", "ear")
ALL = [(kind, name) for kind in KINDS for name in groupings.known_groupings(kind)]


def joined(name):
    """The joints that a class of PifPaf joins, without their sides: one or two."""
    return [end.split(" ")[-1] for end in name.split(" - ")]


def classes(rule):
    return {i for i, name in enumerate(PIFPAF_NAMES) if i and rule(name)}


def limb(*ends):
    return lambda name: sorted(joined(name)) == sorted(ends)


def any_of(*rules):
    return lambda name: any(rule(name) for rule in rules)


def side(which, rule):
    """Classes of one side of the body only."""
    other = {"left": "right", "right": "left"}[which]
    return lambda name: rule(name) and which in name and other not in name


HEAD = any_of(*(lambda name, j=j: j in joined(name) for j in FACE))
HIPS = limb("hip")
HIP_LINE = limb("hip", "hip")
RIGHT_FLANK = side("right", limb("shoulder", "hip"))
FLANKS = limb("shoulder", "hip")
COLLAR = limb("shoulder", "shoulder")
SHOULDERS, ELBOWS, WRISTS = limb("shoulder"), limb("elbow"), limb("wrist")
UPPER_ARMS, LOWER_ARMS = limb("shoulder", "elbow"), limb("elbow", "wrist")
KNEES, FEET = limb("knee"), limb("ankle")
LEG_LIMBS = any_of(limb("ankle", "knee"), limb("knee", "hip"))
ARMS = any_of(SHOULDERS, ELBOWS, WRISTS, UPPER_ARMS, LOWER_ARMS)
TORSO = any_of(HIPS, HIP_LINE, FLANKS, COLLAR)
LOWER_BODY = any_of(HIPS, HIP_LINE, KNEES, LEG_LIMBS)
UNDER_HIPS = any_of(KNEES, LEG_LIMBS)
LEFT_ARM, RIGHT_ARM = side("left", ARMS), side("right", ARMS)
WITH_HIP_LINE = any_of(UNDER_HIPS, HIP_LINE)
HIPS_TO_KNEES = any_of(HIPS, UNDER_HIPS)

# BPBreID's groupings in the words of the joints that they hold.
IN_WORDS = {
    "three_v": [HEAD, any_of(ARMS, FLANKS, COLLAR), any_of(LOWER_BODY, FEET)],
    "four_v": [HEAD, any_of(ARMS, TORSO), HIPS_TO_KNEES, FEET],
    "five_v": [
        HEAD,
        any_of(SHOULDERS, ELBOWS, UPPER_ARMS, COLLAR),
        any_of(WRISTS, HIPS, LOWER_ARMS, RIGHT_FLANK),
        HIPS_TO_KNEES,
        FEET,
    ],
    "six_new": [HEAD, TORSO, LEFT_ARM, RIGHT_ARM, WITH_HIP_LINE, FEET],
    "seven_new": [
        HEAD,
        any_of(FLANKS, COLLAR),
        any_of(HIPS, HIP_LINE),
        LEFT_ARM,
        RIGHT_ARM,
        WITH_HIP_LINE,
        FEET,
    ],
    "eight": [
        HEAD,
        TORSO,
        LEFT_ARM,
        RIGHT_ARM,
        any_of(side("left", UNDER_HIPS), HIP_LINE),
        side("right", UNDER_HIPS),
        side("left", FEET),
        side("right", FEET),
    ],
}


@pytest.mark.parametrize("name", IN_WORDS)
def test_pifpaf_groups_hold_the_joints_that_their_words_say(name):
    expected = [classes(rule) for rule in IN_WORDS[name]]
    assert list(groupings.grouping(name, "pifpaf")) == expected


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_each_grouping_has_as_many_named_groups_as_it_says(kind, name):
    count = ["three", "four", "five", "six", "seven", "eight"].index(
        name.split("_")[0]
    ) + 3
    groups = groupings.grouping(name, kind)
    assert len(groups) == len(groupings.group_names(name, kind)) == count
    assert all(groups)
    assert set().union(*groups) <= set(range(1, len(CLASS_NAMES[kind])))


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_what_is_left_out_and_what_overlaps(kind, name):
    groups = groupings.grouping(name, kind)
    left_out = set(range(1, len(CLASS_NAMES[kind]))) - set().union(*groups)
    twice = {c for c in range(256) if sum(c in g for g in groups) > 1}
    hips = {
        c for c, n in enumerate(CLASS_NAMES[kind]) if n in ("left hip", "right hip")
    }
    hip_line, flank = 21 + 1, 22 + 1
    assert left_out == (
        {hip_line, flank} if (kind, name) == ("pifpaf", "five_v") else set()
    )
    if kind == "pifpaf":
        assert twice == {
            "three_v": set(),
            "four_v": hips,
            "five_v": hips,
        }.get(name, {hip_line})
    else:
        assert twice == set()


@pytest.mark.parametrize("kind", ["hpnet", "parts"])
def test_groups_are_called_like_their_classes(kind):
    for name in groupings.known_groupings(kind):
        called = groupings.group_names(name, kind)
        for group, members in zip(called, groupings.grouping(name, kind), strict=True):
            for label in (CLASS_NAMES[kind][c] for c in members):
                part = label.split()[-1]
                assert part in group or {"foot": "feet"}.get(part, "-") in group
                for side_name in ("left", "right"):
                    assert side_name not in group or side_name in label
    assert groupings.grouping("four_hpnet", "hpnet")[2:] == ({5}, {6, 7})


def test_lip_groups_hold_what_is_worn_there():
    expected = [
        {"hat", "hair", "sunglasses", "face"},
        {
            *("upper clothes", "dress", "coat", "jumpsuits", "scarf", "glove"),
            *("left arm", "right arm"),
        },
        {"socks", "pants", "skirt", "left leg", "right leg"},
        {"left shoe", "right shoe"},
    ]
    groups = groupings.grouping("four_v", "lip")
    assert [{CLASS_NAMES["lip"][c] for c in group} for group in groups] == expected
    merged = groupings.grouping("three_v", "lip")
    assert merged == (groups[0], groups[1], groups[2] | groups[3])


@pytest.mark.parametrize(("kind", "name"), [("hpnet", "eight"), ("pifpaf", "nine")])
def test_an_unknown_grouping_lists_the_known(kind, name):
    with pytest.raises(UserError, match=f"'{name}'.*three_v"):
        groupings.grouping(name, kind)


def grouped_first(fields, groups):
    """BPBreID's order: group by channel maximum, then background and arg-max."""
    channels = [[c - 1 for c in sorted(g)] for g in groups]
    grouped = np.stack([fields[c].max(axis=0) for c in channels]).clip(0, 1)
    background = (grouped.max(axis=0) < 0.5)[None].astype(float)
    return np.concatenate([background, grouped]).argmax(axis=0)


FIELDS = hnp.arrays(
    np.float64, (36, 3, 2), elements=st.floats(0, 1), unique=True, fill=st.nothing()
)


@pytest.mark.parametrize("name", IN_WORDS)
@given(fields=FIELDS)
def test_class_then_group_is_group_then_class(name, fields):
    # Also with the overlaps: a winner that two groups hold ties, the first has it.
    groups = groupings.grouping(name, "pifpaf")
    ours = groupings.reduce(label_files.classes_of_fields(fields), groups)
    theirs = grouped_first(fields, groups)
    if name == "five_v":
        # Where a limb wins that no group holds, nothing is claimed.
        winner = fields.argmax(axis=0)
        missing = np.isin(winner, [21, 22]) & (fields.max(axis=0) >= 0.5)
        assert (ours[missing] == 255).all()
        ours, theirs = ours[~missing], theirs[~missing]
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_reduce_agrees_with_a_search_and_works_in_jax(kind, name):
    groups = groupings.grouping(name, kind)
    count = len(CLASS_NAMES[kind])
    parts = np.array([*range(count), 255, 255], np.uint8).reshape(1, -1)

    def search(label):
        if label == 0:
            return 0
        return next((k for k, g in enumerate(groups, 1) if label in g), 255)

    expected = [[search(label) for label in parts[0]]]
    reduced = groupings.reduce(parts, groups)
    assert reduced.dtype == np.uint8
    np.testing.assert_array_equal(reduced, expected)
    traced = jax.jit(lambda p: groupings.reduce(p, groups))(parts)
    assert traced.dtype == np.uint8
    np.testing.assert_array_equal(traced, expected)
