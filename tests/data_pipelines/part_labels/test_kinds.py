"""Part classes."""

import numpy as np
import pytest

from data_pipelines.part_labels import kinds
from reid_jax.errors import UserError


def test_names_follow_the_numbering():
    assert kinds.PART_NAMES[0] == "background"
    assert len(kinds.PART_NAMES) == 9


def test_flip_changes_left_and_right_names_and_nothing_else():
    labels = np.arange(9, dtype=np.uint8)
    for before, after in zip(labels, kinds.flip_classes(labels), strict=True):
        name = kinds.PART_NAMES[before]
        swapped = {"left": "right", "right": "left"}
        expected = " ".join(swapped.get(word, word) for word in name.split())
        assert kinds.PART_NAMES[after] == expected


def test_flip_keeps_shape_unlabelled_and_its_argument():
    labels = np.array([[3, 255], [0, 8]], np.uint8)
    flipped = kinds.flip_classes(labels)
    np.testing.assert_array_equal(flipped, [[4, 255], [0, 7]])
    np.testing.assert_array_equal(labels, [[3, 255], [0, 8]])
    assert flipped.dtype == np.uint8


def test_flip_refuses_other_types():
    with pytest.raises(TypeError, match="uint8"):
        kinds.flip_classes(np.zeros(3, np.int32))


# Channels that change places, by number: COCO's joints, then the limbs between them.
PIFPAF_SWAPS = {
    (1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16),
    (17, 19), (18, 20), (22, 23), (25, 26), (27, 28), (30, 31), (32, 33), (34, 35),
}  # fmt: skip


def test_flip_of_pifpaf_swaps_the_channels_of_the_sides():
    labels = np.arange(256, dtype=np.uint8)
    flipped = kinds.flip_classes(labels, "pifpaf")
    expected = labels.copy()
    for left, right in PIFPAF_SWAPS:
        expected[[left + 1, right + 1]] = [right + 1, left + 1]
    np.testing.assert_array_equal(flipped, expected)


def test_flip_of_lip_swaps_its_last_six_classes():
    labels = np.arange(256, dtype=np.uint8)
    expected = labels.copy()
    expected[14:20] = [15, 14, 17, 16, 19, 18]  # arms, legs, shoes
    np.testing.assert_array_equal(kinds.flip_classes(labels, "lip"), expected)
    assert len(kinds.LIP_NAMES) == 20
    assert kinds.LIP_NAMES[14:16] == ("left arm", "right arm")


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_flipping_twice_changes_nothing(kind):
    labels = np.arange(256, dtype=np.uint8)
    once = kinds.flip_classes(labels, kind)
    np.testing.assert_array_equal(kinds.flip_classes(once, kind), labels)
    # Only HPNet's classes do not tell left from right.
    assert (once == labels).all() == (kind == "hpnet")


def test_an_unknown_kind_is_named():
    with pytest.raises(UserError, match=r"'densepose'.*parts, pifpaf, hpnet"):
        kinds.flip_classes(np.zeros(3, np.uint8), "densepose")
