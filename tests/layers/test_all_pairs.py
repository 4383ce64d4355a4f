import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.layers.all_pairs import all_pairs
from reid_jax.runtime import sharding

SCALE = np.float32([0.5, 1.0, -2.0])


def compare(scale, u, v):
    """A symmetric function of two rows with a gradient everywhere."""
    common = scale * jnp.sin(u["x"]) * jnp.sin(v["x"])
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

    def naive(scale, images):
        every = jax.vmap(
            jax.vmap(lambda u, v: compare(scale, u, v)[0], (None, 0)), (0, None)
        )
        return every(images, images)

    def blocks(scale, images):
        return all_pairs(compare, scale, images, block=block)

    def both(function):
        def loss(*inputs):
            return weighted(function(*inputs))

        return jax.jit(lambda *x: (function(*x), jax.grad(loss, (0, 1))(*x)))(
            *(SCALE, images)
        )

    (expected, wanted), (found, gradients) = both(naive), both(blocks)
    x, y, scale = (np.float64(each) for each in (images["x"], images["y"], SCALE))
    for u, v in np.ndindex(size, size):  # the reference's own reference
        value = x[u] + scale * np.sin(x[u]) * np.sin(x[v]) * y[v]
        np.testing.assert_allclose(expected[u, v], value, atol=1e-6)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradients, wanted
    )


def test_each_of_eight_devices_computes_its_own_pairs():
    """All images are gathered once, and their gradients never summed over devices."""
    mesh = sharding.make_mesh()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 24, 64)).astype(np.float32)
    weights = rng.normal(size=(64,)).astype(np.float32)

    def products(weights, x, mesh):
        def product(weights, u, v):
            return (u * weights @ v.T).sum(1), (v * weights @ u.T).sum(1)

        with sharding.within(mesh):
            # As a block: the compiler counts what is in a loop once.
            return weighted(all_pairs(product, weights, x, block=16))

    step = jax.jit(jax.value_and_grad(products, argnums=(0, 1)), static_argnums=2)
    one = step.lower(weights, x, None).compile()
    split = (
        jax.device_put(weights, sharding.replicated(mesh)),
        jax.device_put(x, sharding.batch_sharding(mesh)),
    )
    eight = step.lower(*split, mesh).compile()
    flops = [c.cost_analysis()["flops"] for c in (one, eight)]
    assert flops[1] < flops[0] / 6  # an eighth, and what is not divided
    gathers = re.findall(r"= \S+ (all-gather|reduce-scatter)\(", eight.as_text())
    assert gathers == ["all-gather"]
    (value, gradients), (found, wanted) = eight(*split), one(weights, x)
    np.testing.assert_allclose(value, found, rtol=1e-5)
    for gradient, expected in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-3)


def test_images_that_the_devices_do_not_divide():
    images = rows(6)
    alone = all_pairs(compare, SCALE, images, block=2)
    with sharding.within(sharding.make_mesh()):
        found = jax.jit(lambda x: all_pairs(compare, SCALE, x, block=2))(images)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, alone)


def test_parts_of_a_batch_in_a_loop():
    """As a training step goes through micro-batches, with the gradient of each."""
    mesh = sharding.make_mesh()
    parts = np.random.default_rng(0).normal(size=(2, 8, 3)).astype(np.float32)

    def loss(x):
        def product(_, u, v):
            return u * jnp.sin(v), v * jnp.sin(u)

        return weighted(all_pairs(product, None, x, block=2))

    @jax.jit
    def looped(parts):
        with sharding.within(mesh):
            return jax.lax.map(jax.value_and_grad(loss), parts)

    values, gradients = looped(
        jax.device_put(parts, sharding.batch_sharding(mesh, axis=1))
    )
    for part, value, gradient in zip(parts, values, gradients, strict=True):
        wanted, expected = jax.value_and_grad(loss)(part)
        np.testing.assert_allclose(value, wanted, rtol=1e-5)
        np.testing.assert_allclose(gradient, expected, atol=1e-5)
