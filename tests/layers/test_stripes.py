import itertools

import jax
import numpy as np
import pytest

from reid_jax.errors import UserError
from reid_jax.layers.stripes import (
    stripe_borders,
    stripe_means,
    stripe_of_rows,
    stripe_positions,
)


@pytest.mark.parametrize(
    ("rows", "heights"), [(24, [4] * 6), (16, [2, 3, 3, 2, 3, 3]), (8, [1, 1, 2] * 2)]
)
def test_pcbs_stripes_cover_all_rows(rows, heights):
    """384 x 128 pixels are 24 rows, and six equal stripes; 256 x 128 are 16."""
    borders = stripe_borders(rows, 6)
    assert list(np.diff(borders)) == heights
    assert (borders[0], borders[-1]) == (0, rows)


def test_stripes_are_symmetric_and_cover_all_rows():
    assert stripe_of_rows(22, 4).tolist() == [0] * 5 + [1] * 6 + [2] * 6 + [3] * 5
    assert stripe_of_rows(3, 2).tolist() == [0, 1, 1]
    assert stripe_of_rows(8, 4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    for rows, stripes in itertools.product(range(1, 25), range(1, 9)):
        if stripes <= rows:
            found = stripe_of_rows(rows, stripes)
            assert set(found) == set(range(stripes))
            assert (np.diff(found) >= 0).all()
            if rows % 2 == 0 or stripes % 2 == 1:  # else a border cuts the middle row
                np.testing.assert_array_equal(found[::-1], stripes - 1 - found)


def test_more_stripes_than_rows():
    with pytest.raises(UserError, match="6 rows cannot be cut into 7 stripes"):
        stripe_of_rows(6, 7)


def test_means_equal_loops():
    maps = np.random.default_rng(0).normal(size=(2, 6, 3, 5)).astype(np.float32)
    found = jax.jit(stripe_means, static_argnums=1)(maps, 4)
    # An accelerator would drop digits of float32.
    assert "HIGHEST" in str(jax.make_jaxpr(stripe_means, static_argnums=1)(maps, 4))
    for stripe, rows in enumerate(([0], [1, 2], [3, 4], [5])):
        expected = maps[:, rows].astype(np.float64).mean((1, 2))
        np.testing.assert_allclose(found[:, stripe], expected, rtol=1e-5, atol=1e-6)


def test_positions_start_at_the_papers_numbers():
    positions = stripe_positions((22, 11), 4)
    assert (positions.shape, positions.dtype) == ((22, 11, 22, 11), np.float32)
    start = {0: 1.0, 1: 0.8, 2: 0.6, 3: 0.4}
    stripes = [0] * 5 + [1] * 6 + [2] * 6 + [3] * 5
    for a, c in itertools.product(range(22), repeat=2):
        gap = abs(stripes[a] - stripes[c])
        np.testing.assert_allclose(positions[a, :, c], start[gap], rtol=1e-6)
    assert stripe_positions((8, 1), 8).min() == 0
