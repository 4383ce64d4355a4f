import functools

import jax
import numpy as np
import pytest

from reid_jax.errors import UserError
from reid_jax.losses.parsing import (
    UNLABELLED,
    parsing_accuracy,
    parsing_loss,
    part_targets,
)

GROUPS = ((1, 4), (2,), (2, 3))


def labels(seed=0, shape=(2, 8, 4)):
    return np.random.default_rng(seed).choice([0, 1, 2, 3, 4, 5, 255], shape)


def targets_by_loops(parts, groups, size):
    batch, height, width = parts.shape
    rows, columns = height // size[0], width // size[1]
    result = np.empty((batch, *size), int)
    for b, i, j in np.ndindex(batch, *size):
        votes = [0] * (len(groups) + 1)
        for y in range(i * rows, (i + 1) * rows):
            for x in range(j * columns, (j + 1) * columns):
                name = parts[b, y, x]
                if name == 0:
                    votes[0] += 1
                    continue
                for index, group in enumerate(groups, start=1):
                    if name in group:
                        votes[index] += 1
                        break
        result[b, i, j] = votes.index(max(votes)) if max(votes) else UNLABELLED
    return result


@pytest.mark.parametrize("size", [(8, 4), (4, 2), (2, 2)])
def test_targets_are_the_most_frequent_groups(size):
    parts = labels()
    parts[1, :4, :2] = 255  # cells without any label
    parts[0, 4:, 2:] = 5  # a class of no group
    found = part_targets(parts.astype(np.uint8), GROUPS, size)
    np.testing.assert_array_equal(found, targets_by_loops(parts, GROUPS, size))


def test_groups_that_are_none():
    parts = labels().astype(np.uint8)
    for groups in (((),), ((0, 1),), ((255,),)):
        with pytest.raises(UserError, match="at least one part class"):
            part_targets(parts, groups, (4, 2))
    with pytest.raises(UserError, match="do not divide"):
        part_targets(parts, GROUPS, (3, 2))


def loss_by_loops(logits, targets, smoothing, spatial):
    """Eq. 8 in float64, place by place."""
    logits = logits.astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    batch, height, width, classes = logits.shape
    total, count = 0.0, 0
    for b, h, w in np.ndindex(batch, height, width):
        if targets[b, h, w] == UNLABELLED:
            continue
        count += 1
        for k in range(classes):
            q = smoothing / classes
            if targets[b, h, w] == k:
                q = 1 - (classes - 1) / classes * smoothing
            total -= q * np.log(probabilities[b, h, w, k])
            for y, x in ((h + 1, w), (h, w + 1)):
                if y < height and x < width and targets[b, y, x] != UNLABELLED:
                    gap = probabilities[b, y, x, k] - probabilities[b, h, w, k]
                    total += spatial * abs(gap)
    return total / count if count else 0.0


def example(seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(2, 3, 4, 4)).astype(np.float32)
    return logits, rng.choice([0, 1, 2, 3, UNLABELLED], (2, 3, 4))


@functools.cache
def value_and_gradient(smoothing, spatial):
    loss = functools.partial(parsing_loss, smoothing=smoothing, spatial=spatial)
    return jax.jit(jax.value_and_grad(loss))


@pytest.mark.parametrize(("smoothing", "spatial"), [(0.1, 0.5), (0.0, 0.0)])
def test_value_and_gradient_equal_loops(smoothing, spatial):
    logits, targets = example()
    value, gradient = value_and_gradient(smoothing, spatial)(logits, targets)
    expected = loss_by_loops(logits, targets, smoothing, spatial)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    numeric = np.zeros_like(logits, np.float64)
    for index in np.ndindex(*logits.shape):
        shift = np.zeros_like(numeric)
        shift[index] = 1e-5
        up, down = (
            loss_by_loops(logits + s, targets, smoothing, spatial)
            for s in (shift, -shift)
        )
        numeric[index] = (up - down) / 2e-5
    np.testing.assert_allclose(gradient, numeric, atol=1e-5)


def test_an_image_without_labels_changes_nothing():
    logits, targets = example()
    targets[1] = UNLABELLED
    value, gradient = value_and_gradient(0.1, 0.5)(logits, targets)
    alone, _ = value_and_gradient(0.1, 0.5)(logits[:1], targets[:1])
    np.testing.assert_allclose(value, alone, rtol=1e-6)
    assert (np.asarray(gradient)[1] == 0).all()
    nothing, gradient = value_and_gradient(0.1, 0.5)(
        logits, np.full_like(targets, UNLABELLED)
    )
    assert nothing == 0
    assert (np.asarray(gradient) == 0).all()


def test_saturated_probabilities_stay_finite():
    logits, targets = example()
    value, gradient = value_and_gradient(0.1, 0.5)(1e4 * logits, targets)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_accuracy_of_all_places_and_of_parts():
    targets = np.array([[[0, 0, 1, 2, UNLABELLED]]])
    logits = np.zeros((1, 1, 5, 3), np.float32)
    for place, found in enumerate([0, 1, 1, 1, 2]):
        logits[0, 0, place, found] = 1
    found = parsing_accuracy(logits, targets)
    assert found["parsing_accuracy"] == 0.5
    assert found["parts_accuracy"] == 0.5
    targets[0, 0, 1] = 1
    assert parsing_accuracy(logits, targets)["parsing_accuracy"] == 0.75
    nothing = parsing_accuracy(logits, np.full_like(targets, UNLABELLED))
    assert nothing == {"parsing_accuracy": 0, "parts_accuracy": 0}
