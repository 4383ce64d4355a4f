import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from reid_jax.layers.all_pairs import by_images, by_offset


def compare(u, v):
    """A symmetric function of two rows with a gradient everywhere."""
    common = jnp.sin(u["x"]) * jnp.sin(v["x"])
    return u["x"] + common * v["y"], v["x"] + common * u["y"]


def rows(size):
    rng = np.random.default_rng(size)
    draw = {"x": rng.normal(size=(size, 3)), "y": rng.normal(size=(size, 1))}
    return jax.tree.map(np.float32, draw)


def weighted(result):
    weights = jnp.cos(jnp.arange(result.size).reshape(result.shape))
    return (result * weights).sum()


@pytest.mark.parametrize(("size", "block"), [(1, 1), (5, 2), (6, 1), (6, 7)])
def test_every_pair_of_images_for_any_block(size, block):
    images = rows(size)

    def naive(images):
        every = jax.vmap(jax.vmap(lambda u, v: compare(u, v)[0], (None, 0)), (0, None))
        return every(images, images)

    def blocks(images):
        return by_images(*by_offset(compare, images, block=block))

    def both(function):
        return jax.jit(
            lambda x: (function(x), jax.grad(lambda x: weighted(function(x)))(x))
        )(images)

    (expected, wanted), (found, gradient) = both(naive), both(blocks)
    x, y = np.float64(images["x"]), np.float64(images["y"])
    for u, v in np.ndindex(size, size):  # the reference's own reference
        value = x[u] + np.sin(x[u]) * np.sin(x[v]) * y[v]
        np.testing.assert_allclose(expected[u, v], value, atol=1e-6)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    for name, leaf in gradient.items():
        np.testing.assert_allclose(leaf, wanted[name], atol=1e-5)


def test_each_of_eight_devices_computes_its_own_pairs():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    x = np.random.default_rng(0).normal(size=(16, 24, 64)).astype(np.float32)

    def products(x):
        def product(u, v):
            return (u @ v.T).sum(1), (v @ u.T).sum(1)

        return weighted(by_images(*by_offset(product, x, block=1)))

    step = jax.jit(jax.value_and_grad(products))
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    one, eight = (step.lower(value).compile() for value in (x, sharded))
    flops = [c.cost_analysis()["flops"] for c in (one, eight)]
    assert flops[1] < flops[0] / 6  # an eighth, and what is not divided
    results = one(x), eight(sharded)
    np.testing.assert_allclose(results[1][0], results[0][0], rtol=1e-5)
    np.testing.assert_allclose(results[1][1], results[0][1], rtol=1e-4, atol=1e-4)
