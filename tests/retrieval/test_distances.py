"""Distances against float64 NumPy and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from reid_jax.retrieval.distances import euclidean, normalise


def test_euclidean_equals_scipy_in_float64():
    rng = np.random.default_rng(0)
    query, gallery = rng.normal(size=(7, 96)), rng.normal(size=(11, 96))
    result = euclidean(jnp.float32(query), jnp.float32(gallery))
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, cdist(query, gallery), rtol=1e-5)


def test_euclidean_computes_half_precision_in_float32():
    x = jnp.float32(np.random.default_rng(1).normal(size=(5, 64))).astype(jnp.bfloat16)
    exact = cdist(np.asarray(x, np.float64), np.asarray(x, np.float64)[::-1])
    result = euclidean(x, x[::-1])
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, exact, rtol=1e-5, atol=1e-2)


def test_equal_vectors_have_distance_zero_and_finite_gradient():
    x = jnp.float32(np.random.default_rng(2).normal(size=(20, 333)) * 1e3)
    distance = euclidean(x, x)
    assert (distance >= 0).all()
    assert float(jnp.diagonal(distance).max()) < 30  # 1e-7 of squared norms 3e8
    zero = jnp.zeros((2, 4))
    assert (euclidean(zero, zero) == 0).all()
    gradient = jax.grad(lambda a: euclidean(a, zero).sum())(zero)
    np.testing.assert_array_equal(gradient, 0)


def test_euclidean_does_not_hide_nan():
    assert jnp.isnan(euclidean(jnp.full((1, 3), jnp.nan), jnp.ones((1, 3)))).all()


def test_normalise_equals_numpy():
    x = np.random.default_rng(3).normal(size=(3, 4, 5)) * 50
    expected = x / np.linalg.norm(x, axis=-1, keepdims=True)
    np.testing.assert_allclose(normalise(jnp.float32(x)), expected, rtol=1e-6)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-18, 1e-11, 1.0])
def test_normalise_is_finite_at_and_near_zero(size):
    x = jnp.array([[size, 0.0, 0.0], [3.0, 4.0, 0.0]])
    value, gradient = jax.value_and_grad(lambda x: normalise(x)[:, :2].sum())(x)
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient).all()
    np.testing.assert_allclose(normalise(x)[0, 0], float(size > 1e-12), rtol=1e-6)
    np.testing.assert_allclose(normalise(x)[1], [0.6, 0.8, 0.0], rtol=1e-6)


def test_huge_vectors_keep_their_direction():
    x = np.random.default_rng(3).normal(size=(6, 512)) * 10.0 ** np.array(
        [[-6], [0], [14], [17], [25], [37]]
    )
    wanted = x / np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_allclose(normalise(jnp.float32(x)), wanted, rtol=1e-5, atol=1e-7)
    assert jnp.isnan(normalise(jnp.array([1.0, jnp.inf]))).any()


def test_scaling_a_vector_changes_the_gradient_as_it_must():
    x = np.random.default_rng(4).normal(size=(1, 8))
    weights = jnp.arange(8.0)

    def gradient(x):
        return jax.grad(lambda v: (normalise(v) * weights).sum())(jnp.float32(x))

    np.testing.assert_allclose(gradient(x * 1e20) * 1e20, gradient(x), rtol=1e-4)
