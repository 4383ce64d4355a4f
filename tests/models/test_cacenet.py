import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.errors import UserError
from reid_jax.layers.graph import Edges
from reid_jax.models import cacenet
from reid_jax.runtime import sharding
from tests.layers.test_graph import by_laplacian
from tests.losses import test_identity
from tests.losses.test_pairs import triplet_by_loops
from tests.models.steps import training_step
from tests.variables import random_variables

SIZE, CLASSES = (48, 32), 4
TINY = {"width": 2, "blocks": (1, 1, 1, 1), "embed_width": 6, "graph_width": 5}
TINY |= {"map_dtype": "float32"}
CODE = {"adjacency": "embedded", "update": "residual", "pool": "avg_max"}
CODE |= {"non_local": True, "shared_encoder": True, "unit_triplet": True}
CODE |= {"label_smoothing": 0.1, "margin": 0.5, "mixup_weight": 2.0}
PATHS = {
    "paper": {},
    "normal": {"graph": "normal"},
    "individual graph": {"graph": "individual"},
    "alignment": {"graph": "none"},
    "individual": {"graph": "none", "align": "none"},
    "part": {"align": "part"},
    "similarity": {"align": "similarity"},
    "full": {"align": "full"},
    "semantic": {"align": "semantic", "part_groups": ((1,), (2, 3))},
    "attention": {"start": "normal", "centred": True, "threshold": 0.05},
    "code": CODE,
}


class Patches(nn.Module):
    """One layer in place of a ResNet, which would take most of the tests' time."""

    width: int = 2
    dtype: str = "float32"

    @nn.compact
    def __call__(self, images, *, train):
        maps = nn.Conv(32 * self.width, (16, 16), (16, 16), dtype=self.dtype)(images)
        return {"layer4": jax.nn.relu(maps)}


def make(backbone=None, **fields):
    method = cacenet.Method(CLASSES, SIZE, **TINY | fields)
    if backbone is not None:
        method.module = method.module.clone(backbone=backbone)
    return method


def batch(rows=4, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(CLASSES).repeat(max(rows // CLASSES, 2))[:rows]
    # Few pixels have a part, so that places differ in what they show.
    classes = rng.integers(0, 800, (rows, *SIZE))
    return {
        "image": rng.integers(0, 256, (rows, *SIZE, 3), dtype=np.uint8),
        "parts": np.where(classes < 4, classes, 0).astype(np.uint8),
        "label": labels.astype(np.int32),
    }


def variables_of(method, seed=0):
    variables = random_variables(method.init, batch(), seed=seed)
    for name in {"intra", "inter"} & variables["params"].keys():
        variables["params"][name] += 1
    return variables


@functools.cache
def results(path):
    """Everything that a path computes on one batch, in one compilation."""
    method, data = make(Patches(), **PATHS[path]), batch()
    variables = variables_of(method)
    network = method.module

    def run(params, rest, data):
        variables = {"params": params, **rest}
        images = method.standardise(data["image"])
        parts = method.places(data["parts"])

        def objective(params):
            loss, metrics, _ = method.objective(
                {"params": params, **rest},
                data,
                rng=jax.random.key(0),
                epoch=0.0,
                stage="train",
            )
            return loss, metrics

        found = {"step": jax.value_and_grad(objective, has_aux=True)(params)}
        for train in (False, True):
            outputs, _ = network.apply(
                variables, images, parts, train=train, mutable=["batch_stats"]
            )
            found["train" if train else "test"] = outputs
        found["maps"] = network.apply(variables, images, train=False, method="maps")
        scorer = method.pair_scorer("train")
        if scorer is not None:
            given = data["parts"] if scorer.inputs else None
            maps = scorer.pair_maps(variables, data["image"], None, given)
            every = jax.tree.map(lambda x: jnp.broadcast_to(x, (4, *x.shape)), maps)
            found["scores"] = scorer.score_pairs(variables, maps, every)
            for metric in ("cosine", "euclidean"):
                options = dataclasses.replace(method.options, pair_metric=metric)
                found[metric] = network.clone(options=options).apply(
                    variables,
                    scorer.unpacked(maps),
                    scorer.unpacked(every),
                    method="pair_distance",
                )
        return found

    rest = {"batch_stats": variables["batch_stats"]}
    found = jax.tree.map(np.asarray, jax.jit(run)(variables["params"], rest, data))
    return method, variables, found


# Section 3 against loops over pairs of places, in float64.


def cosines(u, v, diagonal=1.0):
    """Cosines of all places of two maps [N, D], weighted per channel."""
    return np.array(
        [
            [sum(x * diagonal * y) / np.linalg.norm(x) / np.linalg.norm(y) for y in v]
            for x in u
        ]
    )


def places_by_loops(parts, groups):
    """bool [P, N]: which places of 16 x 16 pixels show which group of classes."""
    rows, columns = SIZE[0] // 16, SIZE[1] // 16
    found = np.zeros((len(groups), rows * columns), bool)
    for place in range(rows * columns):
        top, left = 16 * (place // columns), 16 * (place % columns)
        cell = parts[top : top + 16, left : left + 16]
        for index, group in enumerate(groups):
            found[index, place] = np.isin(cell, group).any()
    return found


def edges_by_loops(path, params, u, v, parts):
    """The blocks of a pair's adjacency, from maps [N, D] and parts of both."""
    zero, one = np.zeros((len(u), len(u))), np.ones((len(u), len(u)))
    if path == "part":
        return Edges(zero, np.eye(len(u)), zero)
    if path == "full":
        return Edges(one, one, one)
    if path == "similarity":
        table, cross = cosines(u, v), zero.copy()
        for i in range(len(u)):
            cross[i, table[i].argmax()] = cross[table[:, i].argmax(), i] = 1
        return Edges(zero, cross, zero)
    if path == "semantic":

        def shared(p, q):
            return np.array([[(a & b).any() for b in q.T] for a in p.T], float)

        first, second = parts
        return Edges(
            shared(first, first), shared(first, second), shared(second, second)
        )
    if path == "code":
        embedded = [x @ params["similar"] for x in (u, v)]
        own = [np.maximum(cosines(e, e), 0) * (1 - np.eye(len(u))) for e in embedded]
        return Edges(own[0], np.maximum(cosines(*embedded), 0), own[1])
    if path == "attention":
        u, v = (x - x.mean(0) for x in (u, v))
        own = [np.maximum(cosines(x, x, params["intra"]) - 0.05, 0) for x in (u, v)]
        cross = np.maximum(cosines(u, v, params["inter"]) - 0.05, 0)
        return Edges(own[0], cross, own[1])
    own = [np.maximum(cosines(x, x, params["intra"]), 0) for x in (u, v)]
    if path == "individual graph":
        return Edges(own[0], zero, own[1])
    return Edges(own[0], np.maximum(cosines(u, v, params["inter"]), 0), own[1])


def conditional_by_loops(path, variables, maps, parts):
    """f(u|v) of all pairs in test mode, [B, B, E]."""
    params = jax.tree.map(np.float64, variables["params"])
    places = maps.reshape(len(maps), -1, maps.shape[-1]).astype(np.float64)
    encoder = "encoder" if path == "code" else "own_pair_encoder"
    result = np.zeros((len(maps), len(maps), TINY["embed_width"]))
    for a, u in enumerate(places):
        for b, v in enumerate(places):
            shown = (parts[a], parts[b]) if parts is not None else None
            edges = edges_by_loops(path, params, u, v, shown)
            sign = 1.0 if path == "normal" else -1.0
            if path == "code":
                values = [x @ params["project"] for x in (u, v)]
                nodes = by_laplacian(edges, *values, sign, detach=True)[0]
                nodes = u + nodes @ params["expand"]
                pooled = np.concatenate([nodes.mean(0), nodes.max(0)])
            else:
                nodes = by_laplacian(edges, u, v, sign)[0] @ params["theta"]
                pooled = nodes.mean(0)
            reduced = pooled @ params[encoder]["reduce"]["kernel"]
            running = variables["batch_stats"][encoder]["bn"]
            norm = params[encoder]["bn"]
            unit = (reduced - running["mean"]) / np.sqrt(running["var"] + 1e-5)
            result[a, b] = unit * norm["scale"] + norm["bias"]
    return result


GRAPHS = [path for path in PATHS if path not in ("alignment", "individual")]


@pytest.mark.parametrize("path", GRAPHS)
def test_conditional_features_and_scores_equal_loops(path):
    method, variables, found = results(path)
    parts = None
    if path == "semantic":
        parts = [
            places_by_loops(p, method.options.part_groups) for p in batch()["parts"]
        ]
        assert 0 < np.mean(parts) < 1
        given = method.places(jnp.asarray(batch()["parts"]))
        np.testing.assert_array_equal(given, parts)
    expected = conditional_by_loops(path, variables, found["maps"], parts)
    np.testing.assert_allclose(
        found["test"]["pair_feature"], expected, rtol=1e-3, atol=1e-4
    )
    unit = expected / np.linalg.norm(expected, axis=2, keepdims=True)
    gaps = 1 - (unit * unit.swapaxes(0, 1)).sum(-1)
    np.testing.assert_allclose(found["cosine"], gaps, atol=1e-4)
    lengths = np.linalg.norm(expected - expected.swapaxes(0, 1), axis=2)
    np.testing.assert_allclose(found["euclidean"], lengths, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(found["scores"], found[method.options.pair_metric])
    assert np.ptp(expected, axis=0).max() > 0.1


def test_scores_of_an_alignment_are_its_training_distances():
    _, _, found = results("alignment")
    np.testing.assert_allclose(
        found["scores"], found["test"]["pair_distance"], atol=1e-5
    )
    assert found["train"]["pair_distance"].shape == (4, 4)


# Sections 3.2 and 3.4.2.


@pytest.mark.parametrize("path", PATHS)
def test_everything_learns(path):
    _, _, found = results(path)
    (loss, _), gradients = found["step"]
    assert np.isfinite(loss)
    for where, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(leaf).all(), where
        # The output is as far from the classifier's as ever; all else has a share.
        assert np.any(leaf), jax.tree_util.keystr(where)


@pytest.mark.parametrize("path", ["paper", "code", "alignment", "individual"])
def test_objective_is_the_sum_of_its_equations(path):
    method, _, found = results(path)
    (loss, metrics), _ = found["step"]
    labels, outputs = batch()["label"], found["train"]

    def log_softmax(logits):
        logits = logits.astype(np.float64)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    def compared(features):
        if path != "code":
            return features
        return features / np.linalg.norm(features, axis=-1, keepdims=True)

    smoothing = 0.1 if path == "code" else 0.0
    targets = test_identity.soft_targets(labels, CLASSES, smoothing)
    expected = {
        "loss_id": -(targets * log_softmax(outputs["logits"])).sum(-1).mean(),
        "loss_triplet": triplet_by_loops(
            all_distances(compared(outputs["feature"])), labels, method.options.margin
        ),
    }
    if path in ("paper", "code"):
        log = log_softmax(outputs["pair_logits"])
        expected["loss_pair_id"] = -method.options.mixup_weight * np.mean(
            [
                0.9 * log[u, v, labels[u]] + 0.1 * log[u, v, labels[v]]
                for u, v in np.ndindex(4, 4)
            ]
        )
        paired = compared(outputs["pair_feature"])
        gaps = np.linalg.norm(paired - paired.swapaxes(0, 1), axis=-1)
        # The normalisation sees every pair once, those of an image with itself too.
        norm = results(path)[1]["params"]
        norm = norm["encoder" if path == "code" else "own_pair_encoder"]["bn"]
        unit = (outputs["pair_feature"] - norm["bias"]) / norm["scale"]
        np.testing.assert_allclose(unit.mean((0, 1)), 0, atol=1e-4)
        np.testing.assert_allclose(unit.var((0, 1)), 1, atol=0.05)
    elif path == "alignment":
        gaps = outputs["pair_distance"]
    if path != "individual":
        expected["loss_pair_triplet"] = triplet_by_loops(
            gaps, labels, method.options.margin
        )
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-3, atol=1e-5)
    assert {*metrics} == {*expected, "accuracy"}
    np.testing.assert_allclose(loss, sum(expected.values()), rtol=1e-3)


def all_distances(features):
    return np.linalg.norm(features[:, None] - features[None], axis=-1)


def agree(one, other):
    """Losses to 1e-5, gradients and statistics to 1e-4 of their array's largest."""
    (values, gradients), (others, further) = one, other
    exact = (values[0], values[1][0]), (others[0], others[1][0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *exact)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a, b, atol=1e-5 + 1e-4 * np.abs(b).max()
        ),
        (gradients, values[1][1]),
        (further, others[1][1]),
    )


@pytest.mark.parametrize(
    "fields", [{}, {**CODE, "dropout": 0.5}], ids=["paper", "code"]
)
def test_devices_and_blocks_do_not_matter(fields):
    data, rng = batch(8), jax.random.key(3)
    method = make(Patches(), pair_block=1, **fields)
    variables = variables_of(method)
    one = training_step(method)(variables, data, rng)
    mesh = sharding.make_mesh()
    sharded = jax.device_put(data, sharding.batch_sharding(mesh))
    replicated = jax.device_put(variables, sharding.replicated(mesh))
    many = make(Patches(), pair_block=3, **fields)
    with sharding.within(mesh):
        agree(one, training_step(many)(replicated, sharded, rng))


# Section 3.5.


def test_embedding_rows_are_independent_unit_vectors():
    method = make(Patches(), flip_test=True)
    variables, images = variables_of(method), batch()["image"]
    embed = jax.jit(method.embed)
    vectors = np.asarray(embed(variables, images)["vector"])
    assert vectors.shape == (4, 6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    changed = np.concatenate([images[:1], batch(seed=1)["image"][1:]])
    other = np.asarray(embed(variables, changed)["vector"])
    np.testing.assert_allclose(other[0], vectors[0], atol=1e-6)
    assert np.abs(other[1:] - vectors[1:]).max() > 1e-3
    # The test feature is that of both the image and its mirror image.
    mirrored = np.asarray(embed(variables, images[:, :, ::-1])["vector"])
    np.testing.assert_allclose(mirrored, vectors, atol=1e-5)
    plain = jax.jit(make(Patches()).embed)
    both = [plain(variables, x)["vector"] for x in (images, images[:, :, ::-1])]
    assert np.abs(np.subtract(*map(np.asarray, both))).max() > 1e-3
    mean = np.add(*map(np.asarray, both))
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, mean, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_maps_may_be_stored_in_half_precision(dtype):
    _, variables, found = results("paper")
    scorer = make(Patches(), map_dtype=dtype).pair_scorer("train")
    maps = jax.jit(scorer.pair_maps)(variables, batch()["image"])
    assert {x.dtype for x in maps.values()} == {jnp.dtype(dtype)}
    stored = jax.tree.map(np.asarray, maps)
    every = jax.tree.map(lambda x: np.broadcast_to(x, (4, *x.shape)), stored)
    scores = jax.jit(scorer.score_pairs)(variables, stored, every)
    assert scores.dtype == np.float32
    error = np.abs(scores - found["scores"]).max() / np.ptp(found["scores"])
    assert 0 < error < (0.02 if dtype == "float16" else 0.2)


@pytest.mark.parametrize("fields", [{}, CODE], ids=["paper", "code"])
def test_half_precision_networks_train(fields):
    method = make(Patches(dtype="bfloat16"), **fields)
    (loss, _), gradients = training_step(method)(
        variables_of(method), batch(), jax.random.key(0)
    )
    path = "code" if fields else "paper"
    np.testing.assert_allclose(loss, results(path)[2]["step"][0][0], rtol=0.1)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("path", ["paper", "individual graph", "semantic", "code"])
def test_functions_for_any_number_of_images_can_be_exported(path):
    method = make(Patches(), **PATHS[path])
    variables = variables_of(method)
    scorer = method.pair_scorer("train")

    b, q, k = jax.export.symbolic_shape("b, q, k")

    def arguments(tree, *sizes):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((*sizes, *x.shape[1:]), x.dtype), tree
        )

    data = batch()
    given = data["image"], None, data["parts"] if scorer.inputs else None
    maps = jax.eval_shape(scorer.pair_maps, variables, *given)
    for function, inputs in (
        (lambda *x: method.embed(variables, x[0]), arguments(given, b)),
        (lambda *x: scorer.pair_maps(variables, *x), arguments(given, b)),
        (
            lambda *x: scorer.score_pairs(variables, *x),
            (arguments(maps, q), arguments(maps, q, k)),
        ),
    ):
        assert jax.export.export(jax.jit(function))(*inputs).out_avals


def test_pictures_of_pairs():
    method, variables, found = results("paper")
    scorer = method.pair_scorer("train")
    maps = jax.tree.map(
        np.asarray, jax.jit(scorer.pair_maps)(variables, batch()["image"])
    )
    query = jax.tree.map(lambda x: x[:1], maps)
    candidates = jax.tree.map(lambda x: x[None, 1:], maps)
    pictures = scorer.pictures(variables, query, candidates)
    assert set(pictures) == {"conditional", "correspondences"}
    conditional, lines = pictures["conditional"], pictures["correspondences"]
    for item in (conditional, lines):
        np.testing.assert_allclose(item.score, found["scores"][:1, 1:], atol=1e-5)
    assert conditional.query.shape == conditional.candidate.shape == (1, 3, 3, 2)
    params = jax.tree.map(np.float64, variables["params"])
    places = np.float64(found["maps"]).reshape(4, 6, -1)
    for k in range(3):
        edges = edges_by_loops("paper", params, places[0], places[k + 1], None)
        nodes = by_laplacian(edges, places[0], places[k + 1], -1.0)
        for part, drawn in zip(
            nodes, (conditional.query, conditional.candidate), strict=True
        ):
            norms = np.linalg.norm(part @ params["theta"], axis=1)
            scaled = (norms - norms.min()) / np.ptp(norms)
            np.testing.assert_allclose(drawn[0, k], scaled.reshape(3, 2), atol=1e-3)
        best = divmod(edges.cross.argmax(), 6)
        for place, drawn in zip(best, (lines.query, lines.candidate), strict=True):
            centre = (place // 2 + 0.5) / 3, (place % 2 + 0.5) / 2
            np.testing.assert_allclose(drawn[0, k, 0], centre, atol=1e-6)
    strength = np.asarray(lines.strength)
    np.testing.assert_allclose(strength[..., 0], 1, rtol=1e-6)
    assert (np.diff(strength) <= 0).all()
    alignment = make(Patches(), graph="none").pair_scorer("train")
    only = alignment.pictures(variables, query, candidates)
    assert set(only) == {"correspondences"}
    alone = make(Patches(), graph="individual").pair_scorer("train")
    assert alone.pictures(variables, query, candidates) == {}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"graph": "laplacian"}, "graph is one of"),
        ({"align": "topk"}, "align is one of"),
        ({"map_dtype": "int8"}, "map_dtype is one of"),
        ({"align": "none"}, "needs an alignment"),
        ({"align": "semantic", "part_kind": "lip"}, "give both"),
        ({"graph": "individual", "align": "part"}, "no places of one image"),
        ({"start": "zeros"}, "start is one of"),
        ({"top_k": -1}, "top_k"),
        ({"mixup_weight": -1.0}, "mixup_weight"),
        ({"pair_block": 0}, "pair_block"),
        ({"alpha": 1.5}, "alpha"),
        ({"blocks": (1, 1, 1)}, "four numbers"),
    ],
)
def test_mistakes(fields, message):
    with pytest.raises(UserError, match=message):
        make(**fields)


def test_semantic_alignment_needs_labels_and_whole_places():
    method = make(align="semantic")
    assert method.train_inputs == method.pair_scorer("train").inputs == ("parts",)
    with pytest.raises(UserError, match="part labels"):
        method.places(None)
    with pytest.raises(UserError, match="multiples of 16"):
        cacenet.Method(CLASSES, (50, 32), **TINY, align="semantic")
