import functools

import jax
import numpy as np

from reid_jax.losses.pairs import mixup_cross_entropy, pair_distances, pair_triplet

LABELS = np.array([0, 0, 1, 1, 2, 2], np.int32)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_mixup_equals_equation_8_by_loops():
    logits = draw(6, 6, 3)
    total = 0.0
    for u in range(6):
        for v in range(6):
            scores = logits[u, v].astype(np.float64)
            log = scores - np.log(np.exp(scores).sum())
            total -= 0.8 * log[LABELS[u]] + 0.2 * log[LABELS[v]]
    found = mixup_cross_entropy(logits, LABELS, alpha=0.8)
    np.testing.assert_allclose(found, total / 36, rtol=1e-6)


def test_distances_of_the_two_conditional_features():
    features = draw(4, 4, 5)
    expected = [
        [np.linalg.norm(features[u, v] - features[v, u]) for v in range(4)]
        for u in range(4)
    ]
    np.testing.assert_allclose(pair_distances(features), expected, atol=2e-6)
    slope = jax.jit(jax.grad(lambda x: pair_distances(x).sum()))
    assert np.isfinite(slope(features)).all()
    same = slope(np.ones((4, 4, 5), np.float32))
    assert (np.asarray(same) == 0).all()


def triplet_by_loops(distances, labels, margin):
    losses = []
    for a in range(len(labels)):
        positives = [
            distances[a, i]
            for i in range(len(labels))
            if labels[i] == labels[a] and i != a
        ]
        negatives = [
            distances[a, i] for i in range(len(labels)) if labels[i] != labels[a]
        ]
        if positives and negatives:
            losses.append(max(0, max(positives) - min(negatives) + margin))
    return np.mean(losses) if losses else 0


def test_triplet_equals_loops():
    distances = np.abs(draw(6, 6, seed=1))
    loss = jax.jit(functools.partial(pair_triplet, margin=0.3))
    for labels in (LABELS, np.array([0, 0, 1, 2, 3, 3], np.int32)):
        found = loss(distances, labels)
        expected = triplet_by_loops(distances, labels, 0.3)
        assert expected > 0.3
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    for labels in (np.zeros(6, np.int32), np.arange(6, dtype=np.int32)):
        assert loss(distances, labels) == 0


def test_of_equal_distances_one_has_the_gradient():
    slope = jax.jit(jax.grad(lambda d: pair_triplet(d, LABELS, margin=0.3)))
    gradient = np.asarray(slope(np.ones((6, 6))))
    np.testing.assert_allclose(np.sort(gradient, 1)[:, [0, -1]], [[-1 / 6, 1 / 6]] * 6)
    assert (np.count_nonzero(gradient, axis=1) == 2).all()
