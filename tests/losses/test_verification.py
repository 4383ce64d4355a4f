import collections
import functools

import jax
import numpy as np
import pytest

from reid_jax.errors import UserError
from reid_jax.losses import verification

LABELS = np.repeat(np.arange(3), 4).astype(np.int32)


def test_verification_loss_is_the_mean_binary_cross_entropy():
    rng = np.random.default_rng(0)
    logits, same = rng.normal(size=(5, 2)) * 3, rng.random((5, 2)) < 0.5
    score = 1 / (1 + np.exp(-logits))
    expected = -np.mean(np.where(same, np.log(score), np.log(1 - score)))
    loss = functools.partial(verification.verification_loss, logits.astype(np.float32))
    np.testing.assert_allclose(loss(same), expected, rtol=1e-5)
    halves = loss(same, reduction="sum", groups=2)
    np.testing.assert_allclose(halves, expected * 10 / 2, rtol=1e-5)


def test_verification_loss_of_saturated_logits_is_finite():
    logits = np.array([1e4, -1e4], np.float32)
    loss = jax.jit(jax.value_and_grad(verification.verification_loss))
    value, gradient = loss(logits, np.array([False, True]))
    np.testing.assert_allclose(value, 1e4)
    np.testing.assert_allclose(gradient, [0.5, -0.5])


def test_margin_ranking_loss_equals_a_loop():
    positive, negative = np.array([0.9, 0.2, 0.5]), np.array([0.1, 0.4, 0.3])
    costs = [max(0, n - p + 0.3) for p, n in zip(positive, negative, strict=True)]
    found = verification.margin_ranking_loss(positive, negative, margin=0.3)
    np.testing.assert_allclose(found, np.mean(costs), rtol=1e-6)


def test_random_partners_are_drawn_evenly_from_the_right_images():
    draw = jax.jit(jax.vmap(verification.random_partners, in_axes=(None, 0)))
    partners = draw(LABELS, jax.random.split(jax.random.key(0), 2000))
    for row in (0, 7):
        found = collections.Counter(np.asarray(partners.positive)[:, row].tolist())
        others = [i for i in range(12) if i != row and LABELS[i] == LABELS[row]]
        assert set(found) == {*others}
        assert min(found.values()) > 2000 / 3 * 0.85
        found = collections.Counter(np.asarray(partners.negative)[:, row].tolist())
        assert set(found) == {i for i in range(12) if LABELS[i] != LABELS[row]}
        assert min(found.values()) > 2000 / 8 * 0.75


def test_hardest_partners_equal_a_loop():
    distances = np.random.default_rng(0).random((12, 12)).astype(np.float32)
    partners = verification.hardest_partners(LABELS, distances)
    for i in range(12):
        same = [j for j in range(12) if j != i and LABELS[j] == LABELS[i]]
        other = [j for j in range(12) if LABELS[j] != LABELS[i]]
        assert partners.positive[i] == max(same, key=lambda j, i=i: distances[i, j])
        assert partners.negative[i] == min(other, key=lambda j, i=i: distances[i, j])


def test_partners_stay_within_their_group():
    """Two groups of two identities, whose distances would choose the other group."""
    labels = np.repeat(np.arange(4), 2).astype(np.int32)
    distances = np.random.default_rng(0).random((8, 8)).astype(np.float32)
    partners = verification.hardest_partners(labels, distances, groups=2)
    for i in range(8):
        own = [j for j in range(8) if j // 4 == i // 4 and labels[j] != labels[i]]
        assert partners.negative[i] == min(own, key=lambda j, i=i: distances[i, j])
    keys = jax.random.split(jax.random.key(0), 200)
    draw = functools.partial(verification.random_partners, groups=2)
    drawn = jax.jit(jax.vmap(draw, in_axes=(None, 0)))(labels, keys)
    for i in range(8):
        own = {j for j in range(8) if j // 4 == i // 4 and labels[j] != labels[i]}
        assert {*np.asarray(drawn.negative)[:, i].tolist()} == own
    np.testing.assert_array_equal(drawn.positive[0], np.arange(8) ^ 1)


def test_unequal_groups_are_refused():
    with pytest.raises(UserError, match="mining_groups=5 does not divide"):
        verification.hardest_partners(LABELS, np.zeros((12, 12)), groups=5)
