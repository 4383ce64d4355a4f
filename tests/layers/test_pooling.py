import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.layers.pooling import GeneralizedMean, weighted_average, weighted_max


def example(seed=0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    return features, rng.random((2, 3, 4, 2)).astype(np.float32)


def average_by_loops(features, masks):
    result = np.zeros((2, 2, 5))
    for b, k, c in np.ndindex(*result.shape):
        weights = masks[b, :, :, k]
        result[b, k, c] = (weights * features[b, :, :, c]).sum() / max(
            weights.sum(), 1e-6
        )
    return result


def max_by_loops(features, masks):
    result = np.zeros((2, 2, 5))
    for b, k, c in np.ndindex(*result.shape):
        result[b, k, c] = (masks[b, :, :, k] * features[b, :, :, c]).max()
    return result


@pytest.mark.parametrize(
    ("ours", "loops"),
    [(weighted_average, average_by_loops), (weighted_max, max_by_loops)],
)
def test_value_and_gradients_equal_loops(ours, loops):
    given = example()
    weights = np.random.default_rng(1).normal(size=(2, 2, 5)).astype(np.float32)
    np.testing.assert_allclose(jax.jit(ours)(*given), loops(*given), rtol=1e-5)
    gradients = jax.jit(
        jax.grad(lambda f, m: (ours(f, m) * weights).sum(), argnums=(0, 1))
    )(*given)
    exact = [x.astype(np.float64) for x in given]
    for which, gradient in enumerate(gradients):
        for index in np.ndindex(*gradient.shape):
            up, down = ([x.copy() for x in exact] for _ in range(2))
            up[which][index] += 1e-6
            down[which][index] -= 1e-6
            slope = ((loops(*up) - loops(*down)) * weights).sum() / 2e-6
            np.testing.assert_allclose(gradient[index], slope, rtol=1e-4, atol=1e-5)


def test_a_mask_of_zeros_and_equal_places():
    features, masks = example()
    masks[:] = 0
    for pool in (weighted_average, weighted_max):
        assert (np.asarray(pool(features, masks)) == 0).all()
        gradients = jax.jit(
            jax.grad(lambda f, m, pool=pool: pool(f, m).sum(), argnums=(0, 1))
        )(features, masks)
        assert all(np.isfinite(g).all() for g in gradients)
    masks[:] = 1
    slope = jax.jit(jax.grad(lambda f: weighted_max(f, masks).sum()))
    gradient = slope(np.ones_like(features))
    first = np.zeros((3, 4))
    first[0, 0] = 2  # of both masks
    np.testing.assert_array_equal(gradient[0, :, :, 0], first)


def test_half_precision_pools_in_single():
    features, masks = example()
    half = jax.numpy.asarray(features, jax.numpy.bfloat16)
    for pool, loops in (
        (weighted_average, average_by_loops),
        (weighted_max, max_by_loops),
    ):
        found = pool(half, masks)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, loops(features, masks), atol=2e-2)
    # Weights are rounded as a whole: the mean of ones is one.
    ones, even = jnp.ones_like(half), np.full_like(masks, 0.3)
    np.testing.assert_allclose(weighted_average(ones, even), 1, rtol=1e-6)


@pytest.mark.parametrize("exponent", [1.0, 3.0, 8.0, 40.0])
def test_generalised_means_of_silent_channels(exponent):
    """The powers of what is almost nothing would be nothing in float32."""
    maps = np.random.default_rng(0).uniform(-1, 5, (2, 4, 3, 5)).astype(np.float32)
    maps[0, ..., 1] = 0

    def loss(p, x):
        return GeneralizedMean().apply({"params": {"p": p}}, x)

    p = jnp.array([exponent])
    wide = np.maximum(maps, 1e-6).astype(np.float64)
    powers = wide**exponent
    wanted = powers.mean((1, 2)) ** (1 / exponent)
    np.testing.assert_allclose(loss(p, maps), wanted, rtol=1e-5)
    by_p, by_x = jax.grad(lambda *a: loss(*a).sum(), (0, 1))(p, maps)
    share = wanted ** (1 - exponent) / 12
    slope = share[:, None, None] * wide ** (exponent - 1) * (maps > 1e-6)
    np.testing.assert_allclose(by_x, slope, rtol=1e-4, atol=1e-7)
    logs = (powers * np.log(wide)).mean((1, 2)) / powers.mean((1, 2))
    change = wanted * (logs / exponent - np.log(powers.mean((1, 2))) / exponent**2)
    np.testing.assert_allclose(by_p, [change.sum()], rtol=1e-3)
