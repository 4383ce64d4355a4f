import jax
import numpy as np

from reid_jax.layers.heat_maps import activation, relative


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
