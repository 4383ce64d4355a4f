import functools

import jax
import numpy as np
import pytest

from reid_jax.errors import UserError
from reid_jax.losses.visible_triplet import visible_triplet
from tests.losses import test_triplet

LABELS = np.repeat(np.arange(4), 3).astype(np.int32)
MARGIN = 0.3


@functools.cache
def loss_and_gradient(groups=1):
    loss = functools.partial(visible_triplet, margin=MARGIN, groups=groups)
    return jax.jit(jax.value_and_grad(loss))


def make(seed=0, seen=0.5):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(12, 3, 4)).astype(np.float32), rng.random((12, 3)) < seen


def by_loops(features, visible, labels, groups=1):
    """In float64."""
    losses = []
    for rows in np.split(np.arange(len(labels)), groups):
        for a in rows:
            positive, negative = [], []
            for b in rows:
                common = [
                    k
                    for k in range(visible.shape[1])
                    if visible[a, k] and visible[b, k]
                ]
                if a == b or not common:
                    continue
                gaps = features[a].astype(np.float64) - features[b]
                distance = np.mean([np.linalg.norm(gaps[k]) for k in common])
                same = labels[a] == labels[b]
                (positive if same else negative).append(distance)
            if positive and negative:
                losses.append(max(0, max(positive) - min(negative) + MARGIN))
    return np.mean(losses) if losses else 0.0


@pytest.mark.parametrize("groups", [1, 2])
def test_value_and_gradient_equal_loops(groups):
    features, visible = make()
    value, gradient = loss_and_gradient(groups)(features, visible, LABELS)
    expected = by_loops(features, visible, LABELS, groups)
    assert expected > 0
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    step = 1e-6
    for place in np.random.default_rng(1).permutation(12 * 12)[:30]:
        shift = np.zeros(features.shape)
        shift.flat[place] = step
        up = by_loops(features + shift, visible, LABELS, groups)
        down = by_loops(features - shift, visible, LABELS, groups)
        slope = (up - down) / (2 * step)
        np.testing.assert_allclose(
            np.asarray(gradient).flat[place], slope, rtol=1e-3, atol=1e-5
        )


def test_one_part_seen_everywhere_is_the_ordinary_loss():
    features, _ = make()
    value, _ = loss_and_gradient()(features[:, :1], np.ones((12, 1), bool), LABELS)
    expected = test_triplet.brute_force(features[:, 0], LABELS)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize("features", [make()[0], np.zeros((12, 3, 4), np.float32)])
def test_nothing_visible_and_equal_features_stay_finite(features):
    for visible, expected in ((False, 0.0), (True, None)):
        value, gradient = loss_and_gradient()(
            features, np.full((12, 3), visible), LABELS
        )
        assert np.isfinite(gradient).all()
        if expected is not None:
            assert value == expected
            assert (np.asarray(gradient) == 0).all()


def test_what_is_not_visible_gets_no_gradient():
    features, visible = make()
    _, gradient = loss_and_gradient()(features, visible, LABELS)
    gradient = np.abs(gradient).sum(2)
    assert (gradient[~visible] == 0).all()
    assert (gradient[visible] > 0).any()


def test_groups_that_do_not_divide_the_batch():
    with pytest.raises(UserError, match="mining_groups=5"):
        visible_triplet(*make(), LABELS, margin=MARGIN, groups=5)
