import functools

import jax
import numpy as np
import pytest

from reid_jax.losses.part_triplet import hard_center_triplet, part_average_triplet
from tests.losses import test_triplet

MARGIN = 0.3
LABELS = np.repeat(np.arange(4), 3).astype(np.int32)


def make(seed=0, rows=12, parts=3, width=5):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, parts, width)).astype(np.float32)


@functools.cache
def average():
    loss = functools.partial(part_average_triplet, margin=MARGIN)
    return jax.jit(jax.value_and_grad(loss))


@functools.cache
def center():
    loss = functools.partial(hard_center_triplet, margin=MARGIN)
    return jax.jit(jax.value_and_grad(loss))


def distance(left, right):
    """Eq. 6 and its average over the parts of two rows, float64."""
    gaps = [np.sqrt(((a - b) ** 2).sum()) for a, b in zip(left, right, strict=True)]
    return np.mean(gaps)


def average_by_loops(features, labels, anchors=None, margin=MARGIN):
    """Eq. 7, anchor by anchor; rows labelled -1 do not exist."""
    rows = features.astype(np.float64)
    losses = []
    for i in range(len(rows)) if anchors is None else anchors:
        if labels[i] == -1:
            continue
        positive, negative = [], []
        for j in range(len(rows)):
            if j != i and labels[j] == labels[i]:
                positive.append(distance(rows[i], rows[j]))
            elif labels[j] not in (-1, labels[i]):
                negative.append(distance(rows[i], rows[j]))
        if positive and negative:
            losses.append(max(0, max(positive) - min(negative) + margin))
    return np.mean(losses) if losses else 0.0


def center_by_loops(features, labels):
    rows = features.astype(np.float64)
    losses = []
    for part in range(rows.shape[1]):
        for label in labels:
            own = rows[labels == label, part]
            others = rows[labels != label, part]
            if not len(others):
                losses.append(0)
                continue
            middle = own.mean(0)
            farthest = max(np.linalg.norm(row - middle) for row in own)
            nearest = min(np.linalg.norm(row - middle) for row in others)
            losses.append(max(0, farthest - nearest + MARGIN))
    return np.mean(losses)


def numeric_gradient(loss, features, step=1e-6):
    features = features.astype(np.float64)
    gradient = np.zeros_like(features)
    for index in np.ndindex(*features.shape):
        shift = np.zeros_like(features)
        shift[index] = step
        gradient[index] = (loss(features + shift) - loss(features - shift)) / (2 * step)
    return gradient


@pytest.mark.parametrize(
    ("ours", "loops"), [(average, average_by_loops), (center, center_by_loops)]
)
def test_value_and_gradient_equal_loops(ours, loops):
    features = make()
    value, gradient = ours()(features, LABELS)
    np.testing.assert_allclose(value, loops(features, LABELS), rtol=1e-5)
    expected = numeric_gradient(lambda x: loops(x, LABELS), features)
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


def test_one_part_is_the_ordinary_triplet_loss():
    features = make(parts=1)
    value, _ = average()(features, LABELS)
    expected = test_triplet.brute_force(features[:, 0], LABELS)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_rows_that_do_not_exist():
    features, labels = make(), LABELS.copy()
    labels[[0, 4, 11]] = -1
    value, gradient = average()(features, labels)
    np.testing.assert_allclose(value, average_by_loops(features, labels), rtol=1e-5)
    assert (np.asarray(gradient)[[0, 4, 11]] == 0).all()


def test_chosen_anchors():
    features, anchors = make(), np.array([7, 2, 3])
    loss = jax.jit(functools.partial(part_average_triplet, margin=MARGIN))
    value = loss(features, LABELS, anchors=anchors)
    expected = average_by_loops(features, LABELS, anchors)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_of_equally_hard_rows_the_first_is_taken():
    features = np.array([[0, 0], [1, 0], [-1, 0], [2, 0], [-2, 0]], np.float32)
    labels = np.array([0, 0, 0, 1, 1], np.int32)
    loss = functools.partial(part_average_triplet, margin=3.0, anchors=np.array([0]))
    value, gradient = jax.jit(jax.value_and_grad(loss))(features[:, None], labels)
    assert value == 1 - 2 + 3
    np.testing.assert_allclose(np.asarray(gradient)[:, 0, 0], [0, 1, 0, -1, 0])


@pytest.mark.parametrize("loss", [average, center])
def test_a_part_that_is_never_there_and_a_collapsed_batch(loss):
    features = make()
    features[:, 1] = 0
    loops = average_by_loops if loss is average else center_by_loops
    value, gradient = loss()(features, LABELS)
    np.testing.assert_allclose(value, loops(features, LABELS), rtol=1e-5)
    assert np.isfinite(gradient).all()
    value, gradient = loss()(np.ones_like(features), LABELS)
    np.testing.assert_allclose(value, MARGIN, rtol=1e-5)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("loss", [average, center])
def test_a_single_identity_costs_nothing(loss):
    value, gradient = loss()(make(), np.zeros(12, np.int32))
    assert value == 0
    assert (np.asarray(gradient) == 0).all()
