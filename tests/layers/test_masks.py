import jax
import numpy as np
import pytest

from reid_jax.errors import UserError
from reid_jax.layers import masks
from reid_jax.layers.pixels import standardise


def test_pcb_stripes_on_the_grid_of_256_by_128():
    stripes = masks.stripes((16, 8), (6,))
    rows = stripes.reshape(6, 16, 8)
    assert (rows == rows[:, :, :1]).all()
    heights = [list(np.flatnonzero(stripe[:, 0])) for stripe in rows]
    assert heights == [
        [0, 1],
        [2, 3, 4],
        [5, 6, 7],
        [8, 9],
        [10, 11, 12],
        [13, 14, 15],
    ]


def test_each_granularity_covers_the_grid_once():
    stripes = masks.stripes((21, 10), (2, 3))
    assert stripes.shape == (5, 210)
    assert (stripes[:2].sum(0) == 1).all()
    assert (stripes[2:].sum(0) == 1).all()


def test_more_stripes_than_rows():
    with pytest.raises(UserError, match="6 stripes"):
        masks.stripes((4, 2), (2, 6))


@pytest.mark.parametrize("stride", [(4, 4), (3, 2)])
def test_semantics_equal_a_loop_over_windows(stride):
    rng = np.random.default_rng(0)
    parts = rng.choice([0, 1, 2, 7, 255], (2, 13, 10), p=[0.7, 0.1, 0.1, 0.05, 0.05])
    groups = ((1, 2), (7,), (3, 4))
    found = masks.semantics(parts.astype(np.uint8), groups, patch_size=4, stride=stride)
    expected = [
        [
            [
                bool(np.isin(image[row : row + 4, column : column + 4], group).any())
                for row in range(0, 13 - 3, stride[0])
                for column in range(0, 10 - 3, stride[1])
            ]
            for group in groups
        ]
        for image in parts
    ]
    np.testing.assert_array_equal(found, expected)
    assert not np.asarray(found)[:, 2].any()


@pytest.mark.parametrize("group", [(), (1, 255), (-1,)])
def test_part_classes_that_do_not_exist(group):
    parts = np.zeros((1, 4, 4), np.uint8)
    with pytest.raises(UserError, match="part_groups"):
        masks.semantics(parts, ((1,), group), patch_size=4, stride=(4, 4))


def test_masked_mean_of_an_empty_part_is_zero():
    values = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    mask = np.array([[1, 0, 1, 0], [0, 0, 0, 0]], bool)
    mean = np.asarray(masks.masked_mean(values, mask))
    np.testing.assert_allclose(mean[:, 0], values[:, [0, 2]].mean(1), rtol=1e-6)
    assert (mean[:, 1] == 0).all()
    per_image = np.asarray(masks.masked_mean(values, np.stack([mask, ~mask])))
    np.testing.assert_allclose(per_image[1, 1], values[1].mean(0), rtol=1e-6)
    # An accelerator would drop digits of float32.
    assert "HIGHEST" in str(jax.make_jaxpr(masks.masked_mean)(values, mask))


def test_partition_indices():
    subsets = np.array([[[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 1, 1]]], bool)
    indices = masks.partition_indices(subsets, (2, 2))
    np.testing.assert_array_equal(indices, [[[0, 1, -1], [0, 1, 1]]])


def test_relative_weights():
    weights = np.array([[[0.1, 0.4, 0], [0, 0, 0]]], np.float32)
    subsets = np.array([[[1, 1, 0], [0, 0, 0]]], bool)
    expected = [[[0.25, 1, np.nan], [np.nan] * 3]]
    np.testing.assert_allclose(masks.relative_weights(weights, subsets), expected)


def test_standardise():
    images = np.array([[[[0, 255, 51]]]], np.uint8)
    found = standardise(images, (0.5, 0.5, 0.1), (0.5, 0.25, 0.2))
    np.testing.assert_allclose(found, [[[[-1, 2, 0.5]]]], rtol=1e-6)
