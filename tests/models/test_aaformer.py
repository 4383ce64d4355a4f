import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from data_pipelines.part_labels import groupings
from data_pipelines.part_labels.kinds import CLASS_NAMES
from reid_jax.backbones import fused_attention
from reid_jax.errors import UserError
from reid_jax.layers import masks
from reid_jax.layers.pixels import standardise
from reid_jax.models import aaformer
from reid_jax.models.aaformer import Options, align, auto_assignment
from tests.backbones import vit_in_numpy
from tests.layers.test_sinkhorn import exponential_domain
from tests.losses import test_identity, test_triplet
from tests.models.steps import training_step
from tests.variables import random_variables

SIZE, CLASSES = (16, 12), 4
TINY = {"patch_size": 4, "stride": (4, 4), "width": 12, "depth": 2, "heads": 3}
TINY |= {"mlp_ratio": 2}
PATCHES = 12


def make(module=aaformer, **fields):
    return module.Method(CLASSES, SIZE, **TINY | fields)


def batch(rows=8, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (rows, *SIZE, 3), dtype=np.uint8),
        "parts": rng.integers(0, 9, (rows, *SIZE), dtype=np.uint8),
        "label": np.repeat(np.arange(CLASSES), rows // CLASSES).astype(np.int32),
    }


def variables_of(method, seed=0):
    return random_variables(method.init, batch(), seed=seed)


# Section III-B against loops.


def subsets_by_loops(query, key, assignment, granularities, normalised):
    """Queries of PARTs [P, d] and keys of patches [N, d] to bool [P, N]."""
    if normalised:
        query = query / np.linalg.norm(query, axis=1, keepdims=True)
        key = key / np.linalg.norm(key, axis=1, keepdims=True)
    scores = query @ key.T
    subsets, first = np.zeros(scores.shape, bool), 0
    for count in granularities:
        group = scores[first : first + count]
        if assignment == "ot":
            group = exponential_domain(group, 0.05, 3)
        for patch in range(scores.shape[1]):
            subsets[first + group[:, patch].argmax(), patch] = True
        first += count
    return subsets


def align_by_loops(query, key, value, subsets, parts_visible):
    """One head of one image, [L, d] each, token by token."""
    parts = len(subsets)
    length = len(query)
    output = np.zeros_like(value)
    for token in range(length):
        if 1 <= token <= parts:
            seen = [1 + parts + n for n in np.flatnonzero(subsets[token - 1])]
        else:
            seen = [t for t in range(length) if parts_visible or not 1 <= t <= parts]
        if seen:
            output[token] = vit_in_numpy.softmax_attention(
                query[token : token + 1], key[seen], value[seen]
            )[0]
    return output


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"assignment": "nn", "granularities": (4,), "parts_visible": False},
        {"normalise_scores": False, "granularities": (2, 3, 4)},
        {"assignment": "stripes"},
    ],
    ids=["ot", "nn", "raw", "stripes"],
)
def test_network_equals_numpy_loops(fields):
    method = make(**fields)
    variables = variables_of(method)
    images = standardise(batch(4)["image"], (0.5,) * 3, (0.5,) * 3)
    assignment = fields.get("assignment", "ot")
    granularities = fields.get("granularities", (2, 3))
    given = masks.stripes((4, 3), granularities) if assignment == "stripes" else None
    found = jax.jit(functools.partial(method.module.apply, train=False))(
        variables, images, given
    )
    parts = sum(granularities)

    def attend(query, key, value):
        subsets = given
        if subsets is None:
            subsets = subsets_by_loops(
                query[1 : 1 + parts],
                key[1 + parts :],
                assignment,
                granularities,
                fields.get("normalise_scores", True),
            )
        visible = fields.get("parts_visible", True)
        return align_by_loops(query, key, value, subsets, visible)

    params = jax.tree.map(lambda leaf: leaf.astype(np.float64), variables["params"])
    expected = vit_in_numpy.forward(
        np.asarray(images, np.float64),
        params["backbone"],
        patch_size=4,
        stride=(4, 4),
        heads=3,
        attend=attend,
    )
    np.testing.assert_allclose(
        found["before"], expected[:, : 1 + parts], rtol=1e-4, atol=1e-4
    )


def qkv(seed=0, parts=3, heads=2, size=4):
    shape = (3, 2, 1 + parts + PATCHES, heads, size)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def some_subsets():
    subsets = np.zeros((3, PATCHES), bool)
    subsets[0, :5] = True
    subsets[1, 5:] = True
    return subsets  # the third is empty


def test_a_part_depends_on_its_subset_only():
    query, key, value = qkv()
    run = jax.jit(align)
    # Waits: the arrays changed below may be what the device reads.
    before = np.asarray(run(query, key, value, some_subsets())[0])
    outside = 1 + 3 + 7
    for array in (query, key, value):
        array[:, outside] += 1
        array[:, 0] += 1  # CLS is no key of a PART either
    after = run(query, key, value, some_subsets())[0]
    np.testing.assert_array_equal(before[:, 1], after[:, 1])
    assert (before[:, 2] != after[:, 2]).all()
    assert (before[:, 0] != after[:, 0]).all()


def test_an_empty_part_gives_zeros_and_finite_gradients():
    subsets = some_subsets()
    output, weights = jax.jit(align)(*qkv(), subsets)
    assert (np.asarray(output)[:, 3] == 0).all()
    assert (np.asarray(weights)[:, :, 2] == 0).all()
    np.testing.assert_allclose(np.asarray(weights)[:, :, :2].sum(-1), 1, rtol=1e-5)
    gradients = jax.jit(
        jax.grad(lambda inputs: (align(*inputs, subsets)[0] ** 2).sum())
    )(tuple(qkv()))
    for gradient in gradients:
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("parts_visible", [True, False])
def test_the_kernel_is_the_layer_in_one_piece(monkeypatch, parts_visible):
    """By Pallas' interpreter, in place of the plain form that CPUs use."""
    for name, kernel in (
        ("_plain", fused_attention.forward_kernel),
        ("_plain_gradients", fused_attention.backward_kernel),
    ):
        interpreted = functools.partial(kernel, interpret=True)
        monkeypatch.setattr(fused_attention, name, interpreted)
    inputs, subsets = qkv(), some_subsets()

    def layer(fused):
        def run(*inputs):
            given = {"parts_visible": parts_visible, "fused": fused}
            return align(*inputs, subsets, **given)

        @jax.jit
        def both(*inputs):
            output, pull = jax.vjp(lambda *x: run(*x)[0], *inputs)
            return *run(*inputs), *pull(jnp.cos(output))

        return both(*inputs)

    for found, wanted in zip(layer(True), layer(False), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_assignment_is_exclusive_within_a_granularity_and_differs_between_heads():
    query, key, _ = qkv(parts=5)
    subsets = np.asarray(auto_assignment(Options(), query[:, 1:6], key[:, 6:]))
    assert subsets.shape == (2, 2, 5, PATCHES)
    assert (subsets[:, :, :2].sum(2) == 1).all()
    assert (subsets[:, :, 2:].sum(2) == 1).all()
    assert (subsets[:, 0] != subsets[:, 1]).any()


# Section III-C.


def test_objective_is_the_sum_of_its_equations():
    method = make(drop_path=0.0, bn_groups=2, mining_groups=2)
    variables, data = variables_of(method), batch()
    outputs, _ = jax.jit(
        functools.partial(
            method.module.apply, train=True, mutable=["batch_stats"], rngs={}
        )
    )(variables, standardise(data["image"], (0.5,) * 3, (0.5,) * 3))
    (loss, (metrics, _)), _ = training_step(method)(variables, data, jax.random.key(0))
    logits = np.asarray(outputs["logits"], np.float64)
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    targets = test_identity.soft_targets(data["label"], CLASSES, 0.1)
    identity = -(targets[:, None] * log_probabilities).sum(-1).mean()  # Eq. 6
    features = np.asarray(outputs["before"])
    whole, parts = (
        test_triplet.brute_force(rows, data["label"], 2)
        for rows in (features[:, 0], features[:, 1:].reshape(8, -1))
    )
    np.testing.assert_allclose(metrics["loss_id"], identity, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss_triplet"], (whole + parts) / 2, rtol=1e-4)
    np.testing.assert_allclose(loss, identity + (whole + parts) / 2, rtol=1e-4)
    hits = logits[:, 0].argmax(-1) == data["label"]
    np.testing.assert_allclose(metrics["accuracy"], hits.mean(), rtol=1e-6)


PATHS = {
    "none": {"tokens": "none"},
    "cls": {"tokens": "cls"},
    "pool, parsing": {"tokens": "pool", "assignment": "parsing"},
    "nearest neighbour, hidden": {"assignment": "nn", "parts_visible": False},
    "stripes": {"assignment": "stripes", "granularities": (3,)},
    "parsing": {"assignment": "parsing"},
    "half precision": {"dtype": "bfloat16", "normalise_scores": False},
}


@pytest.mark.parametrize("path", PATHS)
def test_training_step_is_finite(path):
    method = make(**{"depth": 1} | PATHS[path])
    assert method.train_inputs == method.embed_inputs
    assert method.train_inputs == (("parts",) if "parsing" in path else ())
    data = batch()
    data["parts"][:, 3:] = 0  # most regions are absent
    (loss, (_, collections)), gradients = training_step(method)(
        variables_of(method), data, jax.random.key(0)
    )
    assert np.isfinite(loss)
    for leaf in jax.tree.leaves((gradients, collections)):
        assert np.isfinite(leaf).all()
    if method.options.tokens == "part":
        learned = gradients["backbone"]["extra_tokens"]
        assert np.abs(learned).max() > 0


def test_one_and_eight_devices_agree():
    method = make(drop_path=0.3)
    variables, data, rng = variables_of(method), batch(16), jax.random.key(3)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    run = training_step(method)
    one = run(variables, data, rng)
    sharded = jax.device_put(data, NamedSharding(mesh, PartitionSpec("data")))
    replicated = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
    eight = run(replicated, sharded, rng)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one, eight
    )


# Testing.


def test_embedding_rows_are_independent_unit_vectors_of_equal_tokens():
    method = make()
    variables, images = variables_of(method), batch()["image"]
    embed = jax.jit(method.embed)
    vectors = np.asarray(embed(variables, images)["vector"])
    assert vectors.shape == (8, 6 * 12)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    tokens = np.linalg.norm(vectors.reshape(8, 6, 12), axis=2)
    np.testing.assert_allclose(tokens, 6**-0.5, rtol=1e-5)
    images = np.concatenate([images[:1], batch(seed=1)["image"][1:]])
    changed = np.asarray(embed(variables, images)["vector"])
    np.testing.assert_allclose(changed[0], vectors[0], atol=1e-6)
    assert np.abs(changed[1:] - vectors[1:]).max() > 1e-3
    distances = method.distance({"vector": vectors}, {"vector": changed})
    expected = np.linalg.norm(vectors[:, None] - changed[None], axis=2)
    np.testing.assert_allclose(distances, expected, atol=1e-3)


@pytest.mark.parametrize("feature", ["after", "before"])
def test_features_after_and_before_the_normalisation(feature):
    method = make(feature=feature, vector="raw")
    variables, data = variables_of(method), batch(4)
    embedding = jax.jit(method.embed)(variables, data["image"])
    images = standardise(data["image"], (0.5,) * 3, (0.5,) * 3)
    apply = jax.jit(functools.partial(method.module.apply, train=False))
    tokens = np.asarray(apply(variables, images)[feature]).reshape(4, -1)
    found = np.asarray(embedding["vector"] * embedding["length"][:, None])
    np.testing.assert_allclose(found, tokens, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        method.distance(embedding, embedding),
        np.linalg.norm(tokens[:, None] - tokens[None], axis=2),
        atol=1e-2,
    )


def test_spreids_regions_are_the_groupings_of_their_kinds():
    for kind, (foreground, *regions) in aaformer.SPREID_REGIONS.items():
        assert tuple(map(frozenset, regions)) == groupings.grouping("four_v", kind)
        assert foreground == tuple(range(1, len(CLASS_NAMES[kind])))


def test_regions_are_numbered_as_the_kind_of_the_labels():
    data = batch(1)
    data["parts"][:] = 0
    data["parts"][:, 12:] = 18  # a left shoe of LIP's in the last row of patches
    subsets = make(assignment="parsing").given_subsets(SIZE, data["parts"])
    wanted = np.zeros((1, 5, 4, 3), bool)
    wanted[:, [0, 4], 3] = True  # the foreground and shoes
    np.testing.assert_array_equal(subsets, wanted.reshape(1, 5, 12))
    own = make(assignment="parsing", part_groups=((18,), (1,)))
    np.testing.assert_array_equal(
        own.given_subsets(SIZE, data["parts"]), wanted[:, [0, 1]].reshape(1, 2, 12)
    )
    assert own.options.counts == (2,)


def test_pictures_of_auto_alignment():
    method = make()
    pictures = method.pictures(variables_of(method), batch(4))
    segments, maps = pictures["parts"], pictures["attention"]
    assert segments.titles == ("2 parts", "3 parts")
    assert segments.values.shape == (4, 2, 4, 3)
    assert (segments.values >= 0).all()
    assert maps.titles[0] == "part 1 of 2"
    assert len(maps.titles) == 5
    values = np.asarray(maps.values)
    for part, (group, index) in enumerate([(0, 0), (0, 1), (1, 2), (1, 3), (1, 4)]):
        taken = np.asarray(segments.values)[:, group] == index
        np.testing.assert_array_equal(np.isfinite(values[:, part]), taken)
    # Another granularity has other colours, and each part is its own measure.
    assert segments.groups == maps.titles
    assert "each part's own maximum" in maps.scale
    assert maps.about.startswith("layer 2 of 2, head 1")
    assert segments.about.startswith("layer 2 of 2, head 1")
    np.testing.assert_allclose(np.nanmax(values, axis=(2, 3)), 1, rtol=1e-6)
    assert np.nanmin(values) >= 0


def test_pictures_of_fixed_partitions():
    method = make(tokens="pool", assignment="stripes")
    pictures = method.pictures({}, batch(2))
    assert set(pictures) == {"parts"}
    np.testing.assert_array_equal(pictures["parts"].values[1, 0, :, 0], [0, 0, 1, 1])
    parsing = make(tokens="pool", assignment="parsing")
    data = batch(2)
    data["parts"][:] = 0
    data["parts"][:, :4] = 1
    pictures = parsing.pictures({}, data)
    rows = pictures["parts"].values[0, 0, :, 0]
    np.testing.assert_array_equal(rows, [1, -1, -1, -1])  # the head, no longer the body
    assert make(tokens="none").pictures({}, batch(2)) == {}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens": "pool"}, "no part tokens"),
        ({"tokens": "parts"}, "tokens is one of"),
        ({"assignment": "sinkhorn"}, "assignment is one of"),
        ({"feature": "bn"}, "feature is one of"),
        ({"vector": "unit"}, "vector is one of"),
        ({"assignment": "parsing", "part_kind": "pifpaf"}, "parts, hpnet, lip"),
        ({"granularities": ()}, "at least one"),
        ({"granularities": (2, 0)}, "at least one"),
        ({"heads": 5}, "5 heads"),
    ],
)
def test_mistakes(fields, message):
    with pytest.raises(UserError, match=message):
        make(**fields)


def test_parsing_without_part_labels():
    method = make(assignment="parsing")
    with pytest.raises(UserError, match="part labels"):
        method.embed(variables_of(method), jnp.zeros((1, *SIZE, 3), jnp.uint8))
