import jax
import numpy as np
import pytest
from scipy import special

from reid_jax.losses.identity import accuracy, cross_entropy


def case(rows=6, classes=5):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (rows, classes)).astype(np.float32)
    return logits, rng.integers(0, classes, rows).astype(np.int32)


def soft_targets(labels, classes, smoothing):
    targets = np.full((len(labels), classes), smoothing / classes)
    targets[np.arange(len(labels)), labels] += 1 - smoothing
    return targets


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_value_and_gradient_equal_soft_targets_in_float64(smoothing):
    logits, labels = case()
    targets = soft_targets(labels, 5, smoothing)
    log_probabilities = special.log_softmax(logits.astype(np.float64), axis=1)
    value, gradient = jax.jit(
        jax.value_and_grad(lambda x: cross_entropy(x, labels, smoothing=smoothing))
    )(logits)
    np.testing.assert_allclose(
        value, -(targets * log_probabilities).sum(1).mean(), rtol=1e-6
    )
    expected = (np.exp(log_probabilities) - targets) / len(labels)
    np.testing.assert_allclose(gradient, expected, atol=1e-7)


def test_huge_and_half_precision_logits():
    logits, labels = case()
    assert np.isfinite(cross_entropy(1e30 * logits, labels, smoothing=0.1))
    assert cross_entropy(logits.astype("float16"), labels).dtype == np.float32


def test_accuracy():
    logits = np.eye(4, dtype=np.float32)
    assert accuracy(logits, np.array([0, 1, 0, 3])) == 0.75
