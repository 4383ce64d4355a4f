"""Centre loss and the step of its centres, against BoT's form of them in float64."""

import jax
import numpy as np

from reid_jax.losses.center import center_loss, moved_centers

RATE = 0.5
LABELS = np.array([0, 0, 0, 2, 2, 4], np.int32)
RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(6, 3)).astype(np.float32)
CENTERS = RNG.normal(size=(5, 3)).astype(np.float32)


def bots(features, centers):
    """All distances, those of other classes masked to 0 and clamped; float64."""
    total = 0.0
    for feature, label in zip(features.astype(np.float64), LABELS, strict=True):
        for index, center in enumerate(centers.astype(np.float64)):
            square = feature @ feature + center @ center - 2 * feature @ center
            total += min(max(square * (index == label), 1e-12), 1e12)
    return total / len(features)


def numeric_gradient(function, array, step=1e-6):
    gradient = np.zeros(array.shape)
    for place in np.ndindex(*array.shape):
        shift = np.zeros(array.shape)
        shift[place] = step
        gradient[place] = (function(array + shift) - function(array - shift)) / step / 2
    return gradient


def test_value_and_gradients():
    loss = jax.value_and_grad(center_loss, argnums=(0, 1))
    value, (of_features, of_centers) = loss(FEATURES, CENTERS, LABELS)
    np.testing.assert_allclose(value, bots(FEATURES, CENTERS), rtol=1e-6)
    wanted = numeric_gradient(lambda x: bots(x, CENTERS), FEATURES.astype(np.float64))
    np.testing.assert_allclose(of_features, wanted, atol=1e-6)
    assert not np.any(of_centers)


def test_centres_take_a_step_of_sgd():
    """`centers -= rate * d loss / d centers`, which their weight does not change."""
    slope = numeric_gradient(lambda c: bots(FEATURES, c), CENTERS.astype(np.float64))
    moved = np.asarray(moved_centers(FEATURES, CENTERS, LABELS, rate=RATE))
    np.testing.assert_allclose(moved, CENTERS - RATE * slope, atol=1e-6)
    np.testing.assert_array_equal(moved[[1, 3]], CENTERS[[1, 3]])  # not in the batch
