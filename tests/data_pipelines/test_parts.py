"""Part classes."""

import numpy as np
import pytest

from data_pipelines import parts


def test_names_follow_the_numbering():
    assert parts.PART_NAMES[0] == "background"
    assert len(parts.PART_NAMES) == 9


def test_flip_changes_left_and_right_names_and_nothing_else():
    labels = np.arange(9, dtype=np.uint8)
    for before, after in zip(labels, parts.flip_classes(labels), strict=True):
        name = parts.PART_NAMES[before]
        swapped = {"left": "right", "right": "left"}
        expected = " ".join(swapped.get(word, word) for word in name.split())
        assert parts.PART_NAMES[after] == expected


def test_flip_keeps_shape_unlabelled_and_its_argument():
    labels = np.array([[3, 255], [0, 8]], np.uint8)
    flipped = parts.flip_classes(labels)
    np.testing.assert_array_equal(flipped, [[4, 255], [0, 7]])
    np.testing.assert_array_equal(labels, [[3, 255], [0, 8]])
    assert flipped.dtype == np.uint8


def test_flip_refuses_other_types():
    with pytest.raises(TypeError, match="uint8"):
        parts.flip_classes(np.zeros(3, np.int32))
