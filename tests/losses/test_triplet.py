import functools

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from reid_jax.errors import UserError
from reid_jax.losses.triplet import batch_hard_triplet, hardest_pairs

LABELS = np.repeat(np.arange(4), 3).astype(np.int32)
MARGIN = 0.3


@functools.cache
def loss_and_gradient(groups=1):
    loss = functools.partial(batch_hard_triplet, margin=MARGIN, groups=groups)
    return jax.jit(jax.value_and_grad(loss))


def make(seed=0, rows=12, width=5):
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


def brute_force(features, labels, groups=1):
    """Loops in float64."""
    losses = []
    for rows, names in zip(
        np.split(features.astype(np.float64), groups),
        np.split(labels, groups),
        strict=True,
    ):
        for i, anchor in enumerate(rows):
            distances = [np.sqrt(((anchor - other) ** 2).sum()) for other in rows]
            positive = [
                d for j, d in enumerate(distances) if names[j] == names[i] and j != i
            ]
            negative = [d for j, d in enumerate(distances) if names[j] != names[i]]
            if positive and negative:
                losses.append(max(0, max(positive) - min(negative) + MARGIN))
    return np.mean(losses) if losses else 0.0


def numeric_gradient(features, labels, groups, step=1e-6):
    features = features.astype(np.float64)
    gradient = np.zeros_like(features)
    for index in np.ndindex(*features.shape):
        shift = np.zeros_like(features)
        shift[index] = step
        up = brute_force(features + shift, labels, groups)
        down = brute_force(features - shift, labels, groups)
        gradient[index] = (up - down) / (2 * step)
    return gradient


@pytest.mark.parametrize("groups", [1, 2])
def test_value_and_gradient_equal_brute_force(groups):
    features = make()
    value, gradient = loss_and_gradient(groups)(features, LABELS)
    np.testing.assert_allclose(value, brute_force(features, LABELS, groups), rtol=1e-5)
    expected = numeric_gradient(features, LABELS, groups)
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


def test_groups_mine_apart():
    features = make()
    one, _ = loss_and_gradient(1)(features, LABELS)
    two, _ = loss_and_gradient(2)(features, LABELS)
    assert two < one  # fewer negatives to choose from
    with pytest.raises(UserError, match="mining_groups=5"):
        batch_hard_triplet(features, LABELS, margin=MARGIN, groups=5)


def test_far_from_the_origin_keeps_its_digits():
    features = make() * 0.01
    value, _ = loss_and_gradient()(features + np.float32(64), LABELS)
    expected = brute_force(features + np.float32(64), LABELS)
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_a_collapsed_batch_costs_the_margin_and_has_a_finite_gradient():
    value, gradient = loss_and_gradient()(np.ones((12, 5), np.float32), LABELS)
    np.testing.assert_allclose(value, MARGIN, rtol=1e-6)
    assert np.isfinite(gradient).all()


def test_anchors_without_a_positive_are_left_out():
    labels = LABELS.copy()
    labels[0] = 9
    value, gradient = loss_and_gradient()(make(), labels)
    np.testing.assert_allclose(value, brute_force(make(), labels), rtol=1e-5)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("labels", [np.zeros(12, np.int32), np.arange(12)])
def test_nothing_to_mine_gives_zero(labels):
    value, gradient = loss_and_gradient()(make(), labels.astype(np.int32))
    assert value == 0
    assert (np.asarray(gradient) == 0).all()


def test_of_equal_candidates_the_first_is_taken():
    features = np.array([[0, 0], [1, 0], [-1, 0], [2, 0], [-2, 0]], np.float32)
    labels = np.array([0, 0, 0, 1, 1], np.int32)
    mined = jax.jit(hardest_pairs)(features, labels)
    np.testing.assert_allclose(mined.positive, [1, 2, 2, 4, 4])
    np.testing.assert_allclose(mined.negative, [2, 1, 1, 1, 1])
    slope = jax.jit(jax.grad(lambda x: hardest_pairs(x, labels).negative[0]))
    gradient = slope(features)
    np.testing.assert_allclose(gradient[3], [1, 0])
    np.testing.assert_allclose(gradient[4], [0, 0])


@pytest.mark.parametrize("groups", [1, 2])
def test_mining_sees_the_whole_batch_on_four_devices(groups):
    features = make()
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    sharded = jax.device_put((features, LABELS), sharding)
    one, four = (
        loss_and_gradient(groups)(features, LABELS),
        loss_and_gradient(groups)(*sharded),
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), one, four
    )


def test_soft_margin_is_the_softplus_of_the_same_pairs():
    features = make()
    hardest = jax.jit(hardest_pairs)(features, LABELS)
    excess = np.asarray(hardest.positive, np.float64) - hardest.negative
    wanted = np.log1p(np.exp(excess)).mean()
    got = jax.jit(functools.partial(batch_hard_triplet, margin=None))(features, LABELS)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
