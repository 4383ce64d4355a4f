"""The losses of several features as one, from their outputs."""

import jax
import numpy as np
import pytest

from reid_jax.errors import UserError
from reid_jax.losses.circle import circle_loss
from reid_jax.losses.features import FeatureLosses
from reid_jax.losses.triplet import batch_hard_triplet

CLASSES, FEATURES = 5, 3
LABELS = np.repeat(np.arange(3), 2).astype(np.int32)
RNG = np.random.default_rng(0)
OUTPUTS = {
    "before": RNG.normal(size=(6, FEATURES, 4)).astype(np.float32),
    "logits": RNG.uniform(-1, 1, (6, FEATURES, CLASSES)).astype(np.float32),
}
CENTERS = RNG.normal(size=(CLASSES, FEATURES, 4)).astype(np.float32)


def smoothed_cross_entropy(logits, smoothing):
    log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    target = np.eye(CLASSES)[LABELS] * (1 - smoothing) + smoothing / CLASSES
    return -(target * log).sum(-1).mean()


def looped(fields):
    """Each loss of each feature, by name: [features]."""
    found = {"id": [], "triplet": [], "circle": [], "center": []}
    for index in range(FEATURES):
        cosines = OUTPUTS["logits"][:, index].astype(np.float64)
        logits = 8 * (cosines - 0.2 * np.eye(CLASSES)[LABELS])
        found["id"].append(smoothed_cross_entropy(logits, fields.label_smoothing))
        rows = OUTPUTS["before"][:, index]
        found["triplet"].append(batch_hard_triplet(rows, LABELS, margin=None))
        found["circle"].append(circle_loss(rows, LABELS, margin=0.4, scale=8.0))
        apart = rows.astype(np.float64) - CENTERS[LABELS, index]
        found["center"].append((apart**2).sum(1).mean())
    return {name: np.array(losses, np.float64) for name, losses in found.items()}


@pytest.mark.parametrize("weights", [None, (1.0, 1.0), (0.5, 0.5)])
def test_every_loss_by_its_weight(weights):
    """Without parts the mean over features; else the first, and the others' mean."""
    chosen = FeatureLosses(
        label_smoothing=0.1,
        classifier="cosface",
        classifier_margin=0.2,
        classifier_scale=8.0,
        triplet_weight=2.0,
        margin=None,
        circle_weight=0.5,
        circle_margin=0.4,
        circle_scale=8.0,
        center_weight=0.1,
        part_weights=weights or (1.0, 1.0),
    )
    loss, metrics = chosen(OUTPUTS, LABELS, CENTERS, with_parts=weights is not None)
    whole, parts = weights or (1 / FEATURES, 1 - 1 / FEATURES)
    wanted = {
        name: whole * losses[0] + parts * losses[1:].mean()
        for name, losses in looped(chosen).items()
    }
    for name, value in wanted.items():
        np.testing.assert_allclose(metrics[f"loss_{name}"], value, rtol=1e-5)
    by_name = {"id": 1, "triplet": 2, "circle": 0.5, "center": 0.1}
    total = sum(weight * wanted[name] for name, weight in by_name.items())
    np.testing.assert_allclose(loss, total, rtol=1e-5)
    correct = OUTPUTS["logits"][:, 0].argmax(-1) == LABELS
    np.testing.assert_allclose(metrics["accuracy"], correct.mean())


def test_centres_move_feature_by_feature():
    moved = FeatureLosses(center_rate=0.25).moved(OUTPUTS, LABELS, CENTERS)
    wanted = CENTERS.astype(np.float64)
    for row, label in enumerate(LABELS):
        apart = CENTERS[label] - OUTPUTS["before"][row]
        wanted[label] -= 0.25 * 2 / len(LABELS) * apart
    np.testing.assert_allclose(moved, wanted, atol=1e-6)


def test_a_linear_classifier_and_nothing_else():
    chosen = FeatureLosses(triplet_weight=0.0, label_smoothing=0.0)
    _, metrics = jax.eval_shape(lambda: chosen(OUTPUTS, LABELS, None, with_parts=False))
    assert set(metrics) == {"loss_id", "accuracy"}
    with pytest.raises(UserError, match="classifier is one of linear, arcface, cosf"):
        FeatureLosses(classifier="softmax")


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("arcface", {}),
        ("cosface", {}),
        ("circle", {"classifier_margin": 0.25, "classifier_scale": 256.0}),
    ],
)
def test_a_perfect_feature_costs_nothing_by_the_usual_margin_and_scale(kind, fields):
    classes = 751
    outputs = {"before": np.eye(4, 6)[:, None], "logits": np.eye(4, classes)[:, None]}
    outputs = {name: array.astype(np.float32) for name, array in outputs.items()}
    fields = fields | {"label_smoothing": 0, "triplet_weight": 0}
    chosen = FeatureLosses(classifier=kind, **fields)
    _, metrics = chosen(outputs, np.arange(4), None, with_parts=False)
    assert 0 <= metrics["loss_id"] < 1e-5
