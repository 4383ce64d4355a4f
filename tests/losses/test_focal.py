import functools
import math

import jax
import numpy as np
import pytest

from reid_jax.losses.focal import focal_loss


def make(seed=0, shape=(3, 4, 2)):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, shape).astype(np.float32)
    return logits, rng.random(shape) < 0.3, rng.random(shape) < 0.8


def by_loops(logits, targets, labelled, gamma=2.0, alpha=0.25):
    """Lin et al., Eq. 5, with probabilities in float64."""
    total, positives = 0.0, 0
    for place in np.ndindex(*logits.shape):
        if not labelled[place]:
            continue
        p = 1 / (1 + math.exp(-float(logits[place])))
        if targets[place]:
            positives += 1
            total -= alpha * (1 - p) ** gamma * math.log(p)
        else:
            total -= (1 - alpha) * p**gamma * math.log(1 - p)
    return total / max(positives, 1)


@pytest.mark.parametrize("options", [{}, {"gamma": 0.5, "alpha": 0.6}])
def test_value_and_gradient_equal_loops(options):
    logits, targets, labelled = make()
    loss = functools.partial(focal_loss, **options)
    value, gradient = jax.jit(jax.value_and_grad(loss))(logits, targets, labelled)
    np.testing.assert_allclose(
        value, by_loops(logits, targets, labelled, **options), rtol=1e-5
    )
    step = 1e-5
    for place in np.ndindex(*logits.shape):
        up, down = logits.astype(np.float64), logits.astype(np.float64)
        up[place] += step
        down[place] -= step
        slope = by_loops(up, targets, labelled, **options)
        slope -= by_loops(down, targets, labelled, **options)
        expected = slope / (2 * step)
        np.testing.assert_allclose(gradient[place], expected, rtol=1e-3, atol=1e-6)


def test_unlabelled_places_do_not_count():
    logits, targets, labelled = make()
    value = focal_loss(logits, targets, labelled)
    targets = targets ^ ~labelled
    logits = np.where(labelled, logits, -logits + 7)
    np.testing.assert_allclose(focal_loss(logits, targets, labelled), value, rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_saturated_masks_and_no_labels_stay_finite(gamma):
    logits = np.array([-200.0, 200, -200, 200, 0], np.float32)
    targets = np.array([True, True, False, False, True])
    loss = functools.partial(focal_loss, gamma=gamma)
    grad = jax.jit(jax.value_and_grad(loss))
    value, gradient = grad(logits, targets, np.ones(5, bool))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    value, gradient = grad(logits, targets, np.zeros(5, bool))
    assert value == 0
    assert (np.asarray(gradient) == 0).all()
