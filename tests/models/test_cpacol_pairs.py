"""CorreL: scores of pairs, their training, how they join the distance, pictures."""

import functools

import jax
import numpy as np
from jax import export as jax_export

from reid_jax.layers.correlation4d import CorrelationStack
from reid_jax.losses import verification
from reid_jax.models.method import Correspondences
from tests.models.cpacol_tiny import (
    BLOCKS,
    GRID,
    SIZE,
    batch,
    extract,
    make,
    step,
    variables_of,
)

# Section III-C.


def pair_inputs(method, variables, queries=2, candidates=3):
    scorer = method.pair_scorer(method.stages[-1])
    maps = jax.jit(scorer.pair_maps)(variables, batch(8)["image"])
    chosen = np.arange(queries * candidates).reshape(queries, candidates) + 1
    return scorer, maps[:queries], maps[chosen]


def by_places(query, gallery, alpha):
    """Eq. 9 times alpha for one pair: [L, H, W, C] each, place by place."""
    result = np.zeros((*GRID, *GRID, len(query)))
    for level, a, b, c, d in np.ndindex(len(query), *GRID, *GRID):
        p, q = query[level, a, b], gallery[level, c, d]
        cosine = p @ q / (np.linalg.norm(p) * np.linalg.norm(q))
        result[a, b, c, d, level] = max(cosine, 0) * alpha[a, b, c, d]
    return result


def stack_of(params):
    """The 4D convolutions, which have tests of their own."""
    apply = CorrelationStack(BLOCKS).apply
    return jax.jit(functools.partial(apply, {"params": params["stack"]}))


def test_scores_equal_loops_over_places():
    method = make()
    variables = variables_of(method)
    scorer, query, candidates = pair_inputs(method, variables)
    found = np.asarray(jax.jit(scorer.score_pairs)(variables, query, candidates))
    assert found.shape == (2, 3)
    params = variables["params"]["correl"]
    stack = jax.jit(
        functools.partial(CorrelationStack(BLOCKS).apply, {"params": params["stack"]})
    )
    for q, k in np.ndindex(2, 3):
        dense = by_places(
            np.asarray(query[q], np.float64),
            np.asarray(candidates[q, k], np.float64),
            params["alpha"],
        )
        vector = np.asarray(stack(dense[None].astype(np.float32))["vector"])[0]
        hidden = vector @ params["hidden"]["kernel"] + params["hidden"]["bias"]
        logit = np.maximum(hidden, 0) @ params["output"]["kernel"]
        expected = 1 / (1 + np.exp(-(logit + params["output"]["bias"])))
        np.testing.assert_allclose(found[q, k], expected[0], rtol=1e-4)


def test_pair_maps_are_omega_of_the_layers_features():
    method = make()
    variables = variables_of(method)
    _, query, _ = pair_inputs(method, variables)
    levels = extract(method, variables, batch(8)["image"])["levels"]
    params, stats = (variables[name]["correl"] for name in ("params", "batch_stats"))
    for level, maps in enumerate(levels):
        padded = np.pad(np.asarray(maps[0], np.float64), ((1, 1), (1, 1), (0, 0)))
        norm = params[f"omega_bn_{level}"]
        running = stats[f"omega_bn_{level}"]
        for y, x in np.ndindex(GRID):
            value = np.einsum(
                "yxd,yxdc->c",
                padded[y : y + 3, x : x + 3],
                params[f"omega_{level}"]["kernel"],
            )
            value = (value - running["mean"]) / np.sqrt(running["var"] + 1e-5)
            value = value * norm["scale"] + norm["bias"]
            np.testing.assert_allclose(
                query[0, level, y, x], value, rtol=1e-3, atol=1e-4
            )


# Section III-D. Stage two.


def logits_of_pairs(method, variables, maps, rows, columns):
    """Logits [n] of pairs of maps, one call."""
    params = {"params": variables["params"]["correl"]}
    apply = jax.jit(functools.partial(method.module.correl.apply, params))
    return np.asarray(apply(maps[rows], maps[columns]), np.float64)


def trained_maps(method, variables, images):
    """omega with the statistics of the batch, as in training."""
    levels = extract(method, variables, images)["levels"]
    own = {name: variables[name]["correl"] for name in ("params", "batch_stats")}
    embed = functools.partial(
        method.module.correl.apply,
        train=True,
        mutable=["batch_stats"],
        method="embed",
    )
    return np.asarray(jax.jit(embed)(own, levels)[0])


def scores_of_partners(method, variables, data, partners):
    """Logits with the positives and the negatives."""
    maps = trained_maps(method, variables, data["image"])
    return [
        logits_of_pairs(method, variables, maps, np.arange(8), np.asarray(columns))
        for columns in partners
    ]


def entropy(positive, negative):
    """Eq. 10, the mean over both."""
    terms = np.log1p(np.exp(-positive)).mean(), np.log1p(np.exp(negative)).mean()
    return sum(terms) / 2


def test_stage_two_verifies_a_positive_and_a_negative_of_each_image():
    """As the text has it; the code's terms are test_cpacol_code.py's."""
    method = make()
    variables, data = variables_of(method), batch(8)
    rng = jax.random.key(5)
    (loss, (metrics, _)), gradients = step(method, "correlate")(variables, data, rng)
    for module, found in gradients.items():
        for leaf in jax.tree.leaves(found):
            assert (np.abs(leaf).max() > 0) == (module == "correl")
    partners = verification.random_partners(data["label"], jax.random.split(rng)[1])
    positive, negative = scores_of_partners(method, variables, data, partners)
    np.testing.assert_allclose(loss, entropy(positive, negative), rtol=1e-4)
    assert {*metrics} == {"loss_verification", "pair_accuracy"}
    right = ((positive > 0).mean() + (negative <= 0).mean()) / 2
    np.testing.assert_allclose(metrics["pair_accuracy"], right)


def test_the_block_of_pairs_changes_nothing():
    variables, data, rng = variables_of(make()), batch(8), jax.random.key(0)
    whole, blocks = (
        step(make(pair_block=size), "correlate")(variables, data, rng)
        for size in (8, 5)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        whole,
        blocks,
    )


# Section III-D, last paragraph. Inference.


def test_alpha_is_active_at_test():
    method = make()
    variables = variables_of(method)
    scorer, query, candidates = pair_inputs(method, variables)
    score = jax.jit(scorer.score_pairs)
    before = score(variables, query, candidates)
    variables["params"]["correl"]["alpha"] = np.zeros((*GRID, *GRID), np.float32)
    assert (np.abs(score(variables, query, candidates) - before) > 1e-5).all()
    without = make(position_embedding=False).pair_scorer("correlate")
    del variables["params"]["correl"]["alpha"]
    ones = variables_of(method)
    ones["params"]["correl"]["alpha"] = np.ones((*GRID, *GRID), np.float32)
    np.testing.assert_allclose(
        jax.jit(without.score_pairs)(variables, query, candidates),
        score(ones, query, candidates),
        rtol=1e-5,
    )


def test_weight_and_candidates_decide_the_ranking():
    """The details are tests/retrieval/test_fusion.py's."""
    distances = np.array([[0.1, 0.2, 0.3, 0.4]], np.float32)
    near = np.array([[0, 1, 2]], np.int32)
    scores = np.array([[0.1, 0.2, 0.9]], np.float32)
    for weight, order in ((0.0, [0, 1, 2, 3]), (5.0, [2, 1, 0, 3])):
        scorer = make(fusion_weight=weight).pair_scorer("correlate")
        keys = jax.jit(scorer.fuse)(distances, near, scores)
        assert np.argsort(keys[0]).tolist() == order


def test_top_k_and_camera_reach_the_scorer():
    assert make().pair_scorer("train") is None
    assert make().pair_scorer("correlate").top_k is None
    assert make(top_k=5).pair_scorer("correlate").top_k == 5
    assert make(correlation=False).pair_scorer("train") is None
    method = make(cameras=3)
    variables, data = variables_of(method), batch(4)
    scorer = method.pair_scorer("correlate")
    assert scorer.inputs == method.embed_inputs == ("camera",)
    maps = jax.jit(scorer.pair_maps)
    one = maps(variables, data["image"], np.zeros(4, np.int32))
    other = maps(variables, data["image"], data["camera"])
    assert (one[0] == other[0]).all()  # image 0 comes from camera 0
    assert np.abs(one[1:3] - other[1:3]).max() > 1e-3


def test_any_number_of_pairs_can_be_exported():
    method = make()
    variables = variables_of(method)
    scorer = method.pair_scorer("correlate")
    symbols = jax_export.symbolic_shape("b, q, k")
    images = jax.ShapeDtypeStruct((symbols[0], *SIZE, 3), np.uint8)
    maps = jax_export.export(jax.jit(scorer.pair_maps))(variables, images).out_avals[0]
    assert maps.shape == (symbols[0], 2, *GRID, 8)
    query = jax.ShapeDtypeStruct((symbols[1], *maps.shape[1:]), maps.dtype)
    candidates = jax.ShapeDtypeStruct((*symbols[1:], *maps.shape[1:]), maps.dtype)
    exported = jax_export.export(jax.jit(scorer.score_pairs))(
        variables, query, candidates
    )
    assert exported.out_avals[0].shape == symbols[1:]


def test_bfloat16_pairs():
    method = make(dtype="bfloat16")
    variables = variables_of(method)
    scorer, query, candidates = pair_inputs(method, variables)
    assert query.dtype == "bfloat16"
    half = jax.jit(scorer.score_pairs)(variables, query, candidates)
    assert half.dtype == "float32"
    exact = jax.jit(make().pair_scorer("correlate").score_pairs)
    scores = exact(variables, *(np.float32(maps) for maps in (query, candidates)))
    np.testing.assert_allclose(half, scores, atol=0.05)
    (loss, _), gradients = step(method, "correlate")(
        variables, batch(8), jax.random.key(0)
    )
    assert loss.dtype == "float32"
    for leaf in jax.tree.leaves(gradients["correl"]):
        assert np.isfinite(leaf).all()


# Section IV-D. Pictures.


def test_attention_pictures():
    method = make()
    variables, data = variables_of(method), batch(4)
    maps = method.pictures(variables, data)["attention"]
    assert maps.titles == ("attention, layer 1", "attention, layer 2")
    layers = extract(method, variables, data["image"])["attention"]
    for index, layer in enumerate(layers):
        np.testing.assert_allclose(maps.values[:, index], layer["attention"], rtol=1e-4)
    assert make(attention=False, correlation=False).pictures(variables, data) == {}


def test_correspondences_are_the_strongest_places_of_loops():
    method = make()
    variables = variables_of(method)
    scorer, query, candidates = pair_inputs(method, variables, 1, 2)
    found = scorer.pictures(variables, query, candidates)["correspondences"]
    assert isinstance(found, Correspondences)
    scores = jax.jit(scorer.score_pairs)(variables, query, candidates)
    np.testing.assert_allclose(found.score, scores, rtol=1e-5)
    params = variables["params"]["correl"]
    stack = jax.jit(
        functools.partial(CorrelationStack(BLOCKS).apply, {"params": params["stack"]})
    )
    for k in range(2):
        dense = by_places(
            np.asarray(query[0], np.float64),
            np.asarray(candidates[0, k], np.float64),
            params["alpha"],
        )
        learned = np.asarray(stack(dense[None].astype(np.float32))["map"])[0].mean(-1)
        assert learned.shape == (3, 2, 3, 2)  # of places 0, 2, 4 and 0, 2
        best = []
        for a, b in np.ndindex(GRID):
            responses = {
                (c, d): dense[a, b, c, d].mean()
                * learned[
                    tuple(
                        min((n + 1) // 2, m)
                        for n, m in zip((a, b, c, d), (2, 1, 2, 1), strict=True)
                    )
                ]
                for c, d in np.ndindex(GRID)
            }
            place = max(responses, key=responses.get)
            best.append((responses[place], (a, b), place))
        best = sorted(best, reverse=True)[:10]
        strengths = np.array([response for response, _, _ in best])
        np.testing.assert_allclose(
            found.strength[0, k], strengths / strengths[0], rtol=1e-3
        )
        for name, places in (
            ("query", [p for _, p, _ in best]),
            ("candidate", [p for _, _, p in best]),
        ):
            centres = (np.array(places) + 0.5) / GRID
            np.testing.assert_allclose(getattr(found, name)[0, k], centres, rtol=1e-6)
