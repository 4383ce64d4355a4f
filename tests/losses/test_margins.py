"""ArcFace, CosFace and circle loss against pytorch-metric-learning and loops."""

import functools
import math
import pathlib

import jax
import numpy as np
import pytest

from reid_jax.errors import UserError
from reid_jax.losses.angular import KINDS, margin_logits
from reid_jax.losses.circle import circle_loss
from reid_jax.losses.identity import cross_entropy
from reid_jax.retrieval.distances import normalise

GOLDEN = dict(
    np.load(pathlib.Path(__file__).parents[1] / "goldens" / "margins.npz").items()
)
FEATURES, WEIGHTS = (GOLDEN[k].astype(np.float32) for k in ("features", "weights"))
LABELS = GOLDEN["labels"].astype(np.int32)
MARGIN, SCALE = float(GOLDEN["margin"]), float(GOLDEN["scale"])


@functools.cache
def of_classes(kind):
    def loss(features, weights):
        cosines = normalise(features) @ normalise(weights.T).T
        given = {"kind": kind, "margin": MARGIN, "scale": SCALE}
        return cross_entropy(margin_logits(cosines, LABELS, **given), LABELS)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


@functools.cache
def of_pairs(groups=1):
    given = {"margin": MARGIN, "scale": SCALE, "groups": groups}
    return jax.jit(jax.value_and_grad(functools.partial(circle_loss, **given)))


@pytest.mark.parametrize("kind", KINDS)
def test_heads_are_those_of_pytorch_metric_learning(kind):
    value, gradients = of_classes(kind)(FEATURES, WEIGHTS)
    np.testing.assert_allclose(value, GOLDEN[kind], rtol=1e-5)
    for name, found in zip(("features", "weights"), gradients, strict=True):
        wanted = GOLDEN[f"{kind}/{name}"]
        np.testing.assert_allclose(found, wanted, atol=2e-5 * np.abs(wanted).max())


def test_circle_loss_is_that_of_pytorch_metric_learning():
    value, gradient = of_pairs()(FEATURES, LABELS)
    np.testing.assert_allclose(value, GOLDEN["pairs"], rtol=1e-5)
    wanted = GOLDEN["pairs/features"]
    np.testing.assert_allclose(gradient, wanted, atol=2e-5 * np.abs(wanted).max())


def units(rows):
    rows = np.asarray(rows, np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def looped_logit(kind, cosine, own):
    """One logit, from the papers' formulas, with the angle itself for ArcFace."""
    if kind == "circle":
        if own:
            return SCALE * max(1 + MARGIN - cosine, 0) * (cosine - (1 - MARGIN))
        return SCALE * max(cosine + MARGIN, 0) * (cosine - MARGIN)
    if own and kind == "cosface":
        cosine -= MARGIN
    elif own:
        angle = math.acos(cosine)
        beyond = angle + MARGIN > math.pi
        cosine = (
            cosine - MARGIN * math.sin(MARGIN) if beyond else math.cos(angle + MARGIN)
        )
    return SCALE * cosine


@pytest.mark.parametrize("kind", KINDS)
def test_heads_are_loops_in_float64(kind):
    cosines = units(FEATURES) @ units(WEIGHTS.T).T
    assert cosines[0, LABELS[0]] < -math.cos(MARGIN)  # the angle exceeds pi
    wanted = [
        [looped_logit(kind, value, label == i) for i, value in enumerate(row)]
        for row, label in zip(cosines, LABELS, strict=True)
    ]
    given = {"kind": kind, "margin": MARGIN, "scale": SCALE}
    found = margin_logits(cosines.astype(np.float32), LABELS, **given)
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def looped_circle(features, labels, groups=1):
    losses = []
    for rows, names in zip(
        np.split(units(features), groups), np.split(labels, groups), strict=True
    ):
        for i, anchor in enumerate(rows):
            sums, counts = {True: 0.0, False: 0.0}, {True: 0, False: 0}
            for j, other in enumerate(rows):
                if i == j:
                    continue
                own, value = names[i] == names[j], float(anchor @ other)
                logit = looped_logit("circle", value, own)
                sums[own] += math.exp(-logit if own else logit)
                counts[own] += 1
            if counts[True] and counts[False]:
                losses.append(math.log1p(sums[True] * sums[False]))
    return np.mean(losses) if losses else 0.0


@pytest.mark.parametrize("groups", [1, 2])
def test_circle_loss_is_a_loop_in_float64(groups):
    value, _ = of_pairs(groups)(FEATURES, LABELS)
    wanted = looped_circle(FEATURES, LABELS, groups)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)


@pytest.mark.parametrize(
    "labels", [[9, *LABELS[1:]], np.zeros(12), np.arange(12), [0, *range(1, 11), 1]]
)
def test_anchors_without_pairs_are_left_out(labels):
    labels = np.asarray(labels, np.int32)
    value, gradient = of_pairs()(FEATURES, labels)
    wanted = looped_circle(FEATURES, labels)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    assert np.isfinite(gradient).all()
    assert np.any(gradient) == bool(wanted)


def test_groups_must_be_equal():
    with pytest.raises(UserError, match="mining_groups=5"):
        circle_loss(FEATURES, LABELS, margin=MARGIN, scale=SCALE, groups=5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sign", [1, -1])
def test_features_on_their_class_or_opposite_have_finite_gradients(kind, sign):
    features = sign * WEIGHTS.T[LABELS]
    value, gradients = of_classes(kind)(features, WEIGHTS)
    assert np.isfinite(value)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
