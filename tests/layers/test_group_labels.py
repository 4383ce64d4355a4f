import numpy as np
import pytest

from data_pipelines.part_labels import groupings
from data_pipelines.part_labels.kinds import UNLABELLED
from reid_jax.errors import UserError
from reid_jax.layers.group_labels import group_masks, label_tables, nearest_labels

KINDS = {"pifpaf": "four_v", "hpnet": "four_hpnet", "parts": "four_v"}


@pytest.mark.parametrize("kind", KINDS)
def test_tables_agree_with_the_groupings(kind):
    """`groupings.reduce` says the same as numbers; the union is what is not 0."""
    groups = groupings.grouping(KINDS[kind], kind)
    classes = np.arange(256, dtype=np.uint8)
    reduced = groupings.reduce(classes, groups)
    table, known = label_tables([sorted(group) for group in groups])
    np.testing.assert_array_equal(known, reduced != UNLABELLED)
    for group in range(4):
        np.testing.assert_array_equal(table[:, group], reduced == group + 1)
    np.testing.assert_array_equal(table[:, 4], known & (reduced > 0))


@pytest.mark.parametrize("groups", [(), ((1,), ()), ((0, 1),), ((255,),)])
def test_groups_that_mean_nothing(groups):
    with pytest.raises(UserError, match="part_groups"):
        label_tables(groups)


@pytest.mark.parametrize("size", [(4, 2), (5, 3), (12, 8), (1, 1)])
def test_nearest_equals_a_loop_over_centres(size):
    labels = np.random.default_rng(0).integers(0, 256, (2, 12, 8), np.uint8)
    found = nearest_labels(labels, size)
    for row in range(size[0]):
        for column in range(size[1]):
            y = int((row + 0.5) * 12 / size[0])
            x = int((column + 0.5) * 8 / size[1])
            np.testing.assert_array_equal(found[:, row, column], labels[:, y, x])


def test_masks_are_the_groups_and_their_union():
    tables = label_tables(((1, 9), (2, 1), (3,)))
    parts = np.array([[1, 2], [3, 0], [9, 4], [255, 2]], np.uint8)[None]
    masks, known = group_masks(parts, tables, (4, 2))
    expected = np.zeros((4, 4, 2), bool)
    expected[0, 0, 0] = expected[0, 2, 0] = True  # the first group that names 1
    expected[1, 0, 1] = expected[1, 3, 1] = expected[2, 1, 0] = True
    expected[3] = expected[:3].any(0)
    np.testing.assert_array_equal(masks[0], expected)
    np.testing.assert_array_equal(known[0], ~np.isin(parts[0], (4, 255)))
