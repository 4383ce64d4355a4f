"""Eqs 3-6 of CpaCol against double loops in float64."""

import functools

import jax
import numpy as np
import pytest

from reid_jax.losses.contrastive import contrastive, inter_image, intra_image

LABELS = np.array([0, 0, 1, 1, 2, 2], np.int32)
TEXT, CODE = (0.0, 0.0), (0.75, 0.05)


def components(shape=(6, 5), seed=0):
    rng = np.random.default_rng(seed)
    # A common direction, so that similarities lie on both sides of 0.
    focused, rest = rng.normal(size=(2, *shape)) + 0.7 * rng.normal(size=shape[-1])
    return focused.astype(np.float32), rest.astype(np.float32)


def clamped(left, right):
    cosine = left @ right / (np.linalg.norm(left) * np.linalg.norm(right))
    return min(max(cosine, 0.0005), 0.9995)


def by_loops(focused, rest, same, decays):
    focused, rest = focused.astype(np.float64), rest.astype(np.float64)
    count = len(focused)
    negative = positive_focused = positive_rest = 0.0
    for i in range(count):
        others = {
            name: [clamped(x[i], x[j]) for j in range(count)]
            for name, x in (("focused", focused), ("rest", rest))
        }
        for j in range(count):
            negative -= np.log(1 - clamped(focused[i], rest[j]))
            weights = []
            for decay, row in zip(decays, others.values(), strict=True):
                larger = [
                    n for n in range(count) if (-row[n], n) < (-row[j], j)
                ]  # the first of equal ones leads
                rank = len(larger)
                weights.append(np.exp(-decay * (rank - 1)) if decay else 1.0)
            if same[i, j]:
                positive_focused -= weights[0] * np.log(others["focused"][j])
            positive_rest -= weights[1] * np.log(others["rest"][j])
    return (negative + positive_focused + positive_rest) / count**2


@pytest.mark.parametrize("decays", [TEXT, CODE], ids=["text", "code"])
def test_inter_image_equals_a_double_loop(decays):
    focused, rest = components()
    same = LABELS[:, None] == LABELS
    found = jax.jit(functools.partial(inter_image, decays=decays))(
        focused, rest, LABELS
    )
    np.testing.assert_allclose(found, by_loops(focused, rest, same, decays), rtol=1e-5)


def test_groups_of_images_are_compared_among_themselves():
    focused, rest = components()
    found = jax.jit(functools.partial(inter_image, decays=CODE, groups=3))(
        focused, rest, LABELS
    )
    everything = np.ones((2, 2), bool)
    rows = [slice(i, i + 2) for i in (0, 2, 4)]
    expected = [by_loops(focused[r], rest[r], everything, CODE) for r in rows]
    np.testing.assert_allclose(found, np.mean(expected), rtol=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_intra_image_is_the_mean_of_double_loops(decay):
    focused, rest = components((3, 4, 5))
    found = jax.jit(functools.partial(intra_image, decay=decay))(focused, rest)
    everything = np.ones((4, 4), bool)
    expected = np.mean(
        [
            by_loops(f, r, everything, (decay, decay))
            for f, r in zip(focused, rest, strict=True)
        ]
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_gradient_equals_differences():
    focused, rest = components()
    same = LABELS[:, None] == LABELS

    def loss(f, r):
        return contrastive(f, r, same, decays=CODE)

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(focused, rest)
    for index in (0, 1):
        for place in ((0, 0), (2, 3), (5, 4)):
            values = []
            for step in (1e-5, -1e-5):
                inputs = [focused.astype(np.float64), rest.astype(np.float64)]
                inputs[index][place] += step
                values.append(by_loops(*inputs, same, CODE))
            expected = (values[0] - values[1]) / 2e-5
            np.testing.assert_allclose(
                gradients[index][place], expected, rtol=1e-3, atol=1e-5
            )


@pytest.mark.parametrize("attention", [0.0, 1.0])
def test_a_saturated_attention_gives_finite_values_and_gradients(attention):
    """One component is exactly zero then, and the other is the whole image."""
    maps = np.random.default_rng(0).normal(size=(6, 8, 5)).astype(np.float32)

    @jax.jit
    @jax.value_and_grad
    def loss(maps):
        focused, rest = (maps * attention).mean(1), (maps * (1 - attention)).mean(1)
        return inter_image(focused, rest, LABELS) + intra_image(
            (maps * attention).reshape(6, 4, 2, 5).mean(2),
            (maps * (1 - attention)).reshape(6, 4, 2, 5).mean(2),
        )

    value, gradient = loss(maps)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


def test_opposite_and_equal_components_cost_the_clamped_logarithms():
    one = np.ones((3, 2), np.float32)
    same = np.ones((3, 3), bool)
    equal = contrastive(one, one, same)
    np.testing.assert_allclose(equal, -np.log(0.0005) - 2 * np.log(0.9995), rtol=1e-4)
    opposite = contrastive(one, -one, same)
    np.testing.assert_allclose(opposite, -3 * np.log(0.9995), rtol=1e-3)
