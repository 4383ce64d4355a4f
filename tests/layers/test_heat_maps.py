import jax
import numpy as np

from reid_jax.layers.heat_maps import activation, relative, strongest

GRID = (3, 2)
PLACES = 6


def test_activation_is_the_norm_and_has_no_gradient():
    maps = np.array([[[[3, 4], [0, 0]]]], np.float32)
    np.testing.assert_allclose(activation(maps), [[[5, 0]]])
    gradient = jax.grad(lambda x: activation(x).sum())(maps)
    np.testing.assert_array_equal(gradient, np.zeros_like(maps))


def test_relative_takes_each_map_to_its_own_range():
    maps = np.array([[[1, 3], [2, 5]], [[-4, -4], [-4, -2]], [[7, 7], [7, 7]]], float)
    found = relative(maps)
    np.testing.assert_allclose(found[0], [[0, 0.5], [0.25, 1]])
    np.testing.assert_allclose(found[1], [[0, 0], [0, 1]])
    np.testing.assert_array_equal(found[2], np.zeros((2, 2)))


def test_strongest_places_and_their_partners():
    strengths = np.random.default_rng(3).random((PLACES, PLACES)).astype(np.float32)
    query, candidate, strength = strongest(strengths, GRID, count=4)
    order = sorted(range(PLACES), key=lambda i: -strengths[i].max())[:4]

    def centre(place):
        row, column = divmod(int(place), GRID[1])
        return [(row + 0.5) / GRID[0], (column + 0.5) / GRID[1]]

    np.testing.assert_allclose(query, [centre(i) for i in order])
    np.testing.assert_allclose(
        candidate, [centre(strengths[i].argmax()) for i in order]
    )
    np.testing.assert_allclose(
        strength, [strengths[i].max() / strengths.max() for i in order]
    )
    assert (np.asarray(strongest(0 * strengths, GRID, count=9)[2]) == 0).all()
