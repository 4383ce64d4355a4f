"""Blocks of pairs: equal results, bounded memory, each device its own rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from reid_jax.errors import UserError
from reid_jax.layers.correlation4d import CorrelationStack, similarity
from reid_jax.layers.pair_blocks import in_blocks
from tests.variables import random_variables

STACK = CorrelationStack(((3, 2, 4), (3, 2, 8)))


def network(params, maps, others):
    return STACK.apply({"params": params}, similarity(maps, others))["vector"]


@pytest.fixture(scope="module")
def example():
    maps = np.random.default_rng(0).normal(size=(13, 1, 6, 4, 5)).astype(np.float32)
    params = random_variables(STACK.init, similarity(maps, maps), seed=1)["params"]
    return params, maps


def pair_loss(params, maps, block):
    """Every image with its neighbour and the one after, gathered within a block."""
    rows = jnp.tile(jnp.arange(13), 2)
    shift = jnp.repeat(jnp.array([1, 2]), 13)

    def pairs(first, second):
        return network(params, maps[first], maps[second])

    vectors = in_blocks(pairs, rows, (rows + shift) % 13, block=block)
    return jnp.square(vectors).mean(), vectors


gradients_of = jax.jit(jax.grad(pair_loss, (0, 1), has_aux=True), static_argnums=2)


@pytest.mark.parametrize("block", [1, 8, 25, 100])
def test_any_block_gives_the_same(example, block):
    expected, vectors = gradients_of(*example, 26)
    gradients, got = gradients_of(*example, block)
    assert got.shape == (26, 8)
    np.testing.assert_allclose(got, vectors, rtol=1e-5, atol=1e-6)
    for a, b in zip(*map(jax.tree.leaves, (gradients, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_pairs_keep_their_places():
    pairs = {"a": jnp.arange(7), "b": jnp.arange(14).reshape(7, 2)}

    def function(some, third):
        return {"sum": some["a"] + some["b"].sum(1) + third, "a": some["a"]}

    expected = function(pairs, 10 * jnp.arange(7))
    for block in (1, 2, 3, 6, 7):
        got = in_blocks(function, pairs, 10 * jnp.arange(7), block=block)
        jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_memory_does_not_grow_with_the_pairs(example):
    """Not by the correlations, and backwards not by what lies behind them either."""

    def loss(params, maps):
        vectors = in_blocks(lambda a: network(params, a, a), maps, block=8)
        return jnp.square(vectors).mean()

    params, maps = example
    sizes = []
    for count in (32, 256):
        some = np.resize(maps, (count, *maps.shape[1:]))
        compiled = jax.jit(jax.grad(loss)).lower(params, some).compile()
        sizes.append(compiled.memory_analysis().temp_size_in_bytes)
    correlations = (256 - 32) * 24 * 24 * 4
    assert sizes[1] - sizes[0] < correlations


def test_each_device_computes_its_own_pairs(example):
    """An eighth of the operations, and no maps from elsewhere."""
    params, maps = example
    maps = np.resize(maps, (64, *maps.shape[1:]))
    mesh = Mesh(np.array(jax.devices()), ("data",))
    sharded = jax.device_put(maps, NamedSharding(mesh, PartitionSpec("data")))
    run = jax.jit(
        lambda params, maps, others: in_blocks(
            lambda a, b: network(params, a, b), maps, others, block=16
        )
    )
    np.testing.assert_allclose(
        run(params, sharded, sharded[:, :, ::-1]),
        run(params, maps, maps[:, :, ::-1]),
        rtol=1e-5,
        atol=1e-6,
    )
    alone = run.lower(params, maps, maps).compile()
    together = run.lower(params, sharded, sharded).compile()
    assert "all-gather" not in together.as_text()
    flops = [compiled.cost_analysis()["flops"] for compiled in (alone, together)]
    assert flops[1] == pytest.approx(flops[0] / 8, rel=0.2)


def test_a_block_of_nothing_is_an_error():
    with pytest.raises(UserError, match="at least 1"):
        in_blocks(lambda a: a, jnp.zeros(3), block=0)
    with pytest.raises(ValueError, match=r"\[2, 3\]"):
        in_blocks(lambda a, b: a, jnp.zeros(3), jnp.zeros(2), block=1)
