import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.errors import UserError
from reid_jax.layers.routing import (
    Grid,
    choice,
    coarseness,
    gumbel_softmax,
    resized,
    run_if_active,
    scaled,
    sizes_of_scales,
)

LOGITS = np.log([0.5, 0.3, 0.15, 0.05]).astype(np.float32) + 3
PROBABILITIES = np.array([0.5, 0.3, 0.15, 0.05])


@functools.cache
def samples(temperature, straight_through=False, rows=20_000):
    draw = functools.partial(
        gumbel_softmax, temperature=temperature, straight_through=straight_through
    )
    logits = jnp.broadcast_to(LOGITS, (rows, 4))
    return np.asarray(jax.jit(draw)(jax.random.key(0), logits))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_frequencies_of_the_largest_entry_are_the_probabilities(temperature):
    """Whatever the temperature: the Gumbel-max trick."""
    drawn = samples(temperature)
    frequencies = np.bincount(drawn.argmax(1), minlength=4) / len(drawn)
    # Four standard deviations of a frequency.
    limit = 4 * np.sqrt(PROBABILITIES * (1 - PROBABILITIES) / len(drawn))
    assert (np.abs(frequencies - PROBABILITIES) < limit).all()


def test_samples_are_soft_choices_and_sharpen_as_the_temperature_falls():
    largest = []
    for temperature in (0.1, 1.0, 10.0):
        drawn = samples(temperature)
        assert (drawn >= 0).all()
        np.testing.assert_allclose(drawn.sum(1), 1, rtol=1e-5)
        largest.append(drawn.max(1).mean())
    assert largest[0] > 0.9 > largest[1] > 0.5 > largest[2] > 0.25


def test_straight_through_is_the_hard_sample_with_the_gradient_of_the_soft():
    hard, soft = samples(1.0, True), samples(1.0)
    np.testing.assert_array_equal(hard, np.eye(4)[soft.argmax(1)])
    values = np.random.default_rng(0).normal(size=4).astype(np.float32)

    def outcome(logits, straight_through):
        drawn = gumbel_softmax(
            jax.random.key(5),
            logits,
            temperature=0.7,
            straight_through=straight_through,
        )
        return (drawn * values).sum()

    hard, soft = (jax.grad(outcome)(LOGITS, flag) for flag in (True, False))
    np.testing.assert_allclose(hard, soft, rtol=1e-6)
    # The softmax's Jacobian in float64: y_i (v_i - sum of v y) / temperature.
    noise = np.asarray(jax.random.gumbel(jax.random.key(5), (4,)), np.float64)
    weights = np.exp((LOGITS + noise) / 0.7)
    weights /= weights.sum()
    expected = weights * (values - (values * weights).sum()) / 0.7
    np.testing.assert_allclose(soft, expected, rtol=1e-4)


def test_choice_is_the_first_largest_entry():
    logits = np.array([[0.1, 2, 2], [3, -1, 0]], np.float32)
    np.testing.assert_array_equal(choice(logits), [[0, 1, 0], [1, 0, 0]])
    gradient = jax.grad(lambda x: (choice(x) * 5).sum())(logits)
    np.testing.assert_array_equal(gradient, np.zeros((2, 3)))


@pytest.mark.parametrize(("layers", "cells"), [(3, 6), (5, 12), (7, 18)])
def test_only_reachable_cells_exist(layers, cells):
    """Against a walk over all routes."""
    grid = Grid(layers)
    reached = {(0, 0)}
    for layer, scale in sorted(
        (layer, scale) for layer in range(layers - 1) for scale in range(3)
    ):
        if (layer, scale) in reached:
            targets = {s for s in range(3) if abs(s - scale) <= 1}
            assert set(grid.exits(layer, scale)) == targets
            reached |= {(layer + 1, s) for s in targets}
    assert reached == {(i, s) for i in range(layers) for s in grid.cells(i)}
    assert len(reached) == cells
    assert grid.exits(layers - 1, 0) == ()


def test_a_grid_without_layers():
    with pytest.raises(UserError, match="has no cell"):
        Grid(0)


def test_sizes_are_those_of_convolutions_with_stride_two():
    assert sizes_of_scales((24, 8), 3) == [(24, 8), (12, 4), (6, 2)]
    assert sizes_of_scales((7, 5), 3) == [(7, 5), (4, 3), (2, 2)]


def test_resizing_is_bilinear_between_centres():
    column = np.array([0.0, 1, 3], np.float32).reshape(1, 3, 1, 1)
    found = resized(column, (6, 1)).ravel()
    np.testing.assert_allclose(found, [0, 0.25, 0.75, 1.5, 2.5, 3], atol=1e-6)
    # Of every three places the middle one, as PyTorch, which does not smooth.
    column = np.array([0.0, 1, 7, 2, 5, 3], np.float32).reshape(1, 6, 1, 1)
    np.testing.assert_allclose(resized(column, (2, 1)).ravel(), [1, 5], atol=1e-6)


def test_what_is_inactive_is_not_run():
    calls = []

    class Noted(nn.Module):
        @nn.compact
        def __call__(self, x):
            jax.debug.callback(lambda: calls.append(1))
            return nn.Dense(3)(x)

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x, activity):
            skip = not self.is_initializing()
            inner = Noted(name="inner")
            return run_if_active(inner, activity, Noted.__call__, x, skip=skip)

    x = np.ones((1, 2), np.float32)
    none, half = jnp.zeros(1), jnp.full(1, 0.5)
    variables = Outer().init(jax.random.key(0), x, none)
    jax.effects_barrier()
    calls.clear()
    run = jax.jit(Outer().apply)
    np.testing.assert_array_equal(run(variables, x, none), np.zeros((1, 3)))
    jax.effects_barrier()
    assert not calls
    expected = x @ variables["params"]["inner"]["Dense_0"]["kernel"]
    np.testing.assert_allclose(run(variables, x, half), expected, rtol=1e-6)
    jax.effects_barrier()
    assert len(calls) == 1


def test_coarseness_is_the_mean_scale_of_the_cells():
    nan = np.nan
    straight = [[1, nan, nan], [1, 0, nan], [1, 0, 0], [1, 0, 0]]
    down = [[1, nan, nan], [0, 1, nan], [0, 0, 1], [0, 0, 1]]
    mixed = [[1, nan, nan], [0.5, 0.5, nan], [0.2, 0.3, 0.5], [0, 0.5, 0.5]]
    found = coarseness(np.array([straight, down, mixed]))
    np.testing.assert_allclose(found, [0, 5 / 4, (0.5 + 1.3 + 1.5) / 4], rtol=1e-6)


def test_a_number_for_each_row_gets_its_gradient_in_single():
    rng = np.random.default_rng(0)
    maps, far = (rng.standard_normal((3, 24, 8, 64)) for _ in range(2))
    maps, far = (jnp.array(x, jnp.bfloat16) for x in (maps, far))
    weights = jnp.array([0.3, 0.5, 2.0])

    def loss(weights):
        out = scaled(maps, weights)
        assert out.dtype == jnp.bfloat16
        return (out.astype(jnp.float32) * far.astype(jnp.float32)).sum()

    wide = (np.asarray(x, np.float64) for x in (maps, far))
    wanted = np.multiply(*wide).sum((1, 2, 3))
    np.testing.assert_allclose(jax.grad(loss)(weights), wanted, rtol=1e-4)
