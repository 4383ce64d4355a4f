"""`row=authors-code` against the definitions of the authors' code in NumPy, float64.

Two GPUs each see half of the rows; their losses are averaged. What CorreL puts out is a
distance there, the negative of the logit here.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

import configs.cpacol
from reid_jax.losses import verification
from tests.models.cpacol_tiny import CLASSES, batch, extract, make, step, variables_of

GPUS, LAYERS, PARTS, STRIPES, D = 2, 2, 3, 4, 5
ROW = configs.cpacol.ROWS["authors-code"]
FIELDS = {
    name.removeprefix("model."): value
    for name, value in ROW.items()
    if name.startswith("model.")
}
LABELS = np.repeat(np.arange(CLASSES), 2).astype(np.int32)


def on_gpus(loss):
    """The mean over the GPUs of a loss of each one's rows."""

    def averaged(*rows):
        shares = (
            jax.tree.map(lambda x, gpu=gpu: np.split(x, GPUS)[gpu], rows)
            for gpu in range(GPUS)
        )
        return np.mean([loss(*share) for share in shares])

    return averaged


def clamped_cosines(left, right):
    left, right = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (left, right))
    return np.clip(left @ right.T, 0.0005, 0.9995)


def pushed_apart(focused, rest):
    return -np.log(1 - clamped_cosines(focused, rest)).mean()


def pulled_together(features, beta, mask=1.0):
    similarity = clamped_cosines(features, features)
    order = np.argsort(-similarity, axis=1, kind="stable")
    rank = np.argsort(order, axis=1) - 1
    return (-np.log(similarity) * np.exp(-beta * rank) * mask).mean()


def cross_entropy(logits, labels):
    return -special.log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean()


def soft_triplet(features, labels):
    gaps = np.linalg.norm(features[:, None] - features[None], axis=2)
    same = labels[:, None] == labels
    farthest = np.where(same, gaps, -np.inf).max(1)
    nearest = np.where(same, np.inf, gaps).min(1)
    return np.log1p(np.exp(farthest - nearest)).mean()


def contrast(layers, labels):
    """Inter-image terms, and half of the intra-image ones, of one GPU's rows."""
    same = labels[:, None] == labels
    loss = 0.0
    for layer in layers:
        focused, rest = layer["focused"], layer["rest"]
        loss += pulled_together(focused, 0.75, same) + pulled_together(rest, 0.05)
        loss += pushed_apart(focused, rest)
        images = zip(layer["stripes_focused"], layer["stripes_rest"], strict=True)
        stripes = [
            pulled_together(f, 0.1) + pulled_together(r, 0.1) + pushed_apart(f, r)
            for f, r in images
        ]
        loss += 0.5 * np.mean(stripes)
    return loss


def stage_one(outputs, epoch):
    """The loss of stage one; `epoch` counts from 1."""

    @on_gpus
    def loss(outputs, labels):
        terms = 0.0
        for one, name in (cross_entropy, "logits"), (soft_triplet, "before"):
            tokens = [one(outputs[name][:, t], labels) for t in range(1 + PARTS)]
            terms += 0.5 * tokens[0] + 0.5 * np.mean(tokens[1:])
        layers = outputs["attention"]
        terms += (0.0 if epoch < 2 else 1.0) * contrast(layers, labels)
        return terms + sum(cross_entropy(a["logits"], labels) for a in layers)

    return loss(outputs, LABELS)


@on_gpus
def stage_two(logits):
    """The loss of stage two, of logits [B, 2] of positives and negatives."""
    positive, negative = -logits.T
    entropy = np.logaddexp(0, positive).sum() + np.logaddexp(0, -negative).sum()
    return entropy + np.maximum(0, positive - negative + 0.3).mean()


def random_outputs():
    rng = np.random.default_rng(0)

    def draw(*shape):
        # A common direction, so that similarities lie on both sides of 0.
        return (rng.normal(size=shape) + 0.5 * rng.normal(size=shape[-1:])).astype("f4")

    layers = tuple(
        {
            "focused": draw(8, D),
            "rest": draw(8, D),
            "stripes_focused": draw(8, STRIPES, D),
            "stripes_rest": draw(8, STRIPES, D),
            "logits": draw(8, CLASSES),
        }
        for _ in range(LAYERS)
    )
    return {
        "before": draw(8, 1 + PARTS, D),
        "logits": draw(8, 1 + PARTS, CLASSES),
        "attention": layers,
    }


def check_gradients(found, loss, inputs):
    """Compares some components of each array's gradient with central differences."""
    rng = np.random.default_rng(1)
    exact, tree = jax.tree.flatten(jax.tree.map(np.float64, inputs))
    for leaf, gradient in zip(exact, jax.tree.leaves(found), strict=True):
        gradient = np.asarray(gradient)
        for place in rng.integers(0, leaf.size, 10):
            values = []
            for shift in (1e-6, -1e-6):
                leaf.flat[place] += shift
                values.append(loss(jax.tree.unflatten(tree, exact)))
                leaf.flat[place] -= shift
            np.testing.assert_allclose(
                gradient.flat[place],
                (values[0] - values[1]) / 2e-6,
                rtol=1e-5,
                atol=1e-5 * max(np.abs(gradient).max(), 1e-3),
            )


@pytest.mark.parametrize("epoch", [1, 2])
def test_stage_one_equals_the_codes(epoch):
    method, outputs = make(**FIELDS), random_outputs()

    @functools.partial(jax.jit, static_argnums=1)
    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(outputs, completed):
        return method._extraction_loss(outputs, LABELS, jnp.float32(completed))

    (loss, _), gradients = run(outputs, epoch - 0.01 if epoch == 1 else 1.0)
    expected = functools.partial(stage_one, epoch=epoch)
    exact = jax.tree.map(np.float64, outputs)
    np.testing.assert_allclose(loss, expected(exact), rtol=1e-5)
    check_gradients(gradients, expected, outputs)


def test_stage_two_equals_the_codes():
    logits = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    excess = logits[:, 1] - logits[:, 0] + 0.3
    assert (excess > 0).any()
    assert (excess < 0).any()
    loss = jax.value_and_grad(make(**FIELDS)._verification_loss, has_aux=True)
    (value, _), gradient = jax.jit(loss)(logits)
    np.testing.assert_allclose(value, stage_two(logits.astype(np.float64)), rtol=1e-5)
    check_gradients(gradient, stage_two, logits)


def test_the_sum_has_the_step_of_128_pairs():
    """A tenth of the rate, and the gradient of 128 times the mean, on either GPU."""
    logits = np.random.default_rng(0).normal(size=(128, 2)).astype(np.float32)

    def gradient(**fields):
        method = make(**fields)
        return jax.grad(lambda x: method._verification_loss(x)[0])(logits)

    code = gradient(verification_reduction="sum", mining_groups=2)
    np.testing.assert_allclose(code, 128 * gradient(), rtol=1e-6)
    assert (
        configs.cpacol.get_config("row=authors-code").stages.correlate.to_dict()[
            "identities"
        ]
        == 32
    )


def hardest_on_gpus(cls):
    """Rows of the farthest positive and the nearest negative on the same GPU."""
    gaps = np.linalg.norm(cls[:, None] - cls[None], axis=2)
    half = len(cls) // GPUS
    positive, negative = [], []
    for i, label in enumerate(LABELS):
        own = range(i // half * half, i // half * half + half)
        positive.append(max(own, key=lambda j: (LABELS[j] == label) * gaps[i, j]))
        negative.append(
            min(own, key=lambda j: (LABELS[j] == label) * 9999 + gaps[i, j])
        )
    return np.array([positive, negative])


def test_stage_two_mines_by_the_raw_cls_feature_on_each_gpu():
    method = make(**FIELDS)
    cls = np.random.default_rng(0).normal(size=(8, D)) * np.arange(1, 9)[:, None]
    hardest = hardest_on_gpus(cls)
    unit = cls / np.linalg.norm(cls, axis=1, keepdims=True)
    assert not np.array_equal(hardest, hardest_on_gpus(unit))
    find = jax.jit(method._partners)
    found = find(cls.astype(np.float32), LABELS, jax.random.key(5), 20.0)
    np.testing.assert_array_equal(found, hardest)
    drawn = verification.random_partners(LABELS, jax.random.key(5), groups=GPUS)
    early = find(cls.astype(np.float32), LABELS, jax.random.key(5), 19.9)
    np.testing.assert_array_equal(early, drawn)


def test_the_objective_is_made_of_these_pairs():
    method = make(**FIELDS)
    variables, data = variables_of(method), batch(8)
    # So that the normalised CLS feature would choose others.
    variables["params"]["heads"]["bn"]["scale"][0, 1:] = 0
    outputs = extract(method, variables, data["image"])
    hardest, others = (
        hardest_on_gpus(np.asarray(outputs[name][:, 0], np.float64))
        for name in ("before", "after")
    )
    assert not np.array_equal(hardest, others)
    (loss, (metrics, _)), _ = step(method, "correlate")(
        variables, data, jax.random.key(5), 20.0
    )
    params = {"params": variables["params"]["correl"]}
    own = {name: variables[name]["correl"] for name in ("params", "batch_stats")}
    maps, _ = method.module.correl.apply(
        own, outputs["levels"], train=True, mutable=["batch_stats"], method="embed"
    )
    apply = jax.jit(functools.partial(method.module.correl.apply, params))
    logits = np.stack([apply(maps, maps[rows]) for rows in hardest], axis=1)
    np.testing.assert_allclose(loss, stage_two(logits.astype(np.float64)), rtol=1e-5)
    assert {*metrics} == {"loss_verification", "loss_ranking", "pair_accuracy"}


def test_the_logit_joins_the_distance():
    method = make(**FIELDS)
    variables = variables_of(method)
    scorer = method.pair_scorer("correlate")
    maps = jax.jit(scorer.pair_maps)(variables, batch(8)["image"])
    query = maps[:2]
    candidates = jnp.broadcast_to(maps[None, 2:], (2, 6, *maps.shape[1:]))
    logits = jax.jit(scorer.score_pairs)(variables, query, candidates)
    score = make(**FIELDS | {"fusion_score": "similarity"}).pair_scorer("correlate")
    similarity = jax.jit(score.score_pairs)(variables, query, candidates)
    np.testing.assert_allclose(special.logit(np.float64(similarity)), logits, rtol=1e-4)
    distances = np.random.default_rng(0).random((2, 6)).astype(np.float32)
    columns = np.broadcast_to(np.arange(6, dtype=np.int32), (2, 6))
    z_score = functools.partial(stats.zscore, axis=1)
    expected = z_score(distances) + 0.3 * z_score(-np.asarray(logits, np.float64))
    np.testing.assert_allclose(
        jax.jit(scorer.fuse)(distances, columns, logits), expected, atol=1e-4
    )
