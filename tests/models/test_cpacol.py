"""The extractor of CpaCol and its training."""

import functools

import jax
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy import special

from reid_jax import experiment
from reid_jax.errors import UserError
from reid_jax.layers.pixels import standardise
from reid_jax.runtime.optimizer import OptimizerSpec, make_optimizer
from reid_jax.training.step import make_step, next_state
from tests.backbones import vit_in_numpy
from tests.losses import test_contrastive, test_identity
from tests.models.cpacol_tiny import (
    CLASSES,
    EXTRACTOR,
    GRID,
    SHALLOW,
    batch,
    extract,
    make,
    step,
    variables_of,
)

# Section III-B against NumPy.


def numpy_mlp(tokens, params):
    for index in range(3):
        if index:
            norm = params[f"LayerNorm_{index - 1}"]
            mean, var = tokens.mean(-1, keepdims=True), tokens.var(-1, keepdims=True)
            tokens = (tokens - mean) / np.sqrt(var + 1e-5)
            tokens = tokens * norm["scale"] + norm["bias"]
            tokens = 0.5 * tokens * (1 + special.erf(tokens / np.sqrt(2)))
        dense = params[f"Dense_{index}"]
        tokens = tokens @ dense["kernel"] + dense.get("bias", 0)
    return tokens


def numpy_attention(tokens, params, stats, previous):
    """Eqs 1, 2 and 7 for one image, place by place: tokens [HW, D]."""
    embedded = numpy_mlp(tokens, params["mlp_e"]) + previous
    maps = embedded.reshape(*GRID, -1)
    padded = np.pad(maps, ((1, 1), (1, 1), (0, 0)))
    attention = np.zeros(GRID)
    for y, x in np.ndindex(GRID):
        window = padded[y : y + 3, x : x + 3]
        score = (window * params["conv"]["kernel"][..., 0]).sum()
        score = (score - stats["bn"]["mean"]) / np.sqrt(stats["bn"]["var"] + 1e-5)
        score = score * params["bn"]["scale"] + params["bn"]["bias"]
        attention[y, x] = 1 / (1 + np.exp(-score[0]))
    rows = [[0], [1, 2], [3, 4], [5]]  # the four stripes of six rows
    outputs = {"attention": attention, "embedding": embedded}
    for name, weight in (("focused", attention), ("rest", 1 - attention)):
        outputs[name] = np.mean(
            [maps[place] * weight[place] for place in np.ndindex(GRID)], axis=0
        )
        outputs[f"stripes_{name}"] = np.array(
            [(maps[r] * weight[r][..., None]).mean((0, 1)) for r in rows]
        )
    outputs["attended"] = numpy_mlp(tokens, params["mlp_r"]) * attention.reshape(-1, 1)
    return outputs


def numpy_extractor(images, variables, options):
    """Features before the heads [B, 1 + K, D], and what each layer attends to."""
    params, stats = variables["params"], variables["batch_stats"]
    backbone = params["backbone"]
    attend = vit_in_numpy.softmax_attention
    patches = vit_in_numpy.patches(images, backbone["patch_embed"]["proj"], 4, (4, 4))
    position = backbone["pos_embed"][0]
    cls = backbone["cls_token"][0] + position[:1]
    tokens = np.stack([np.concatenate([cls, p + position[1:]]) for p in patches])
    layers, levels = [], []
    for index in range(3):
        before_last = tokens
        tokens = vit_in_numpy.block(tokens, backbone[f"blocks_{index}"], 3, attend)
        if index + 1 not in options.attention_layers:
            continue
        own = f"contrast_attn_{len(layers)}"
        outputs = []
        for image, sequence in enumerate(tokens):
            previous = 0
            if options.accumulate and layers:
                previous = layers[-1][image]["embedding"]
            found = numpy_attention(sequence[1:], params[own], stats[own], previous)
            weight = options.residual_weights[len(layers)]
            joined = sequence[1:] + weight * found["attended"]
            sequence[1:] = joined if options.residual else found["attended"]
            outputs.append(found)
        whole = options.correlate == "tokens"
        compared = (
            tokens[:, 1:] if whole else np.stack([o["attended"] for o in outputs])
        )
        levels.append(compared.reshape(-1, *GRID, 12).copy())
        layers.append(outputs)
    cls = vit_in_numpy.layer_norm(tokens, backbone["norm"])[:, :1]
    local = vit_in_numpy.block(before_last, params["local"]["block"], 3, attend)
    local = vit_in_numpy.layer_norm(local, params["local"]["norm"])[:, 1:]
    parts = np.stack([local[:, i * 8 : i * 8 + 8].mean(1) for i in range(3)], axis=1)
    return np.concatenate([cls, parts], axis=1), layers, levels


@pytest.mark.parametrize(
    "fields",
    [{}, {"accumulate": True, "residual": False}, {"correlate": "attended"}],
    ids=["default", "switches", "f_l alone"],
)
def test_extractor_equals_numpy(fields):
    method = make(**EXTRACTOR | fields)
    variables = variables_of(method)
    found = extract(method, variables, batch(4)["image"])
    images = np.asarray(standardise(batch(4)["image"], (0.5,) * 3, (0.5,) * 3))
    exact = jax.tree.map(lambda leaf: leaf.astype(np.float64), variables)
    features, layers, levels = numpy_extractor(
        images.astype(np.float64), exact, method.options
    )
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    close(found["before"], features)
    for outputs, expected in zip(found["attention"], layers, strict=True):
        for name in expected[0]:
            close(outputs[name], np.stack([e[name] for e in expected]))
    for level, expected in zip(found["levels"], levels, strict=True):
        close(level, expected)


def test_embedding_joins_the_tokens_with_a_share_for_each_part():
    method = make(**EXTRACTOR)
    variables, images = variables_of(method), batch(4)["image"]
    after = np.asarray(extract(method, variables, images)["after"], np.float64)
    vector = jax.jit(method.embed)(variables, images)["vector"]
    joined = np.concatenate([after[:, 0], (after[:, 1:] / 3).reshape(4, -1)], axis=1)
    joined /= np.linalg.norm(joined, axis=1, keepdims=True)
    np.testing.assert_allclose(vector, joined, rtol=1e-4, atol=1e-5)
    distances = method.distance({"vector": vector}, {"vector": vector[:2]})
    gaps = np.square(joined[:, None] - joined[None, :2]).sum(-1)
    np.testing.assert_allclose(distances, gaps, atol=1e-5)
    assert method.squared_distances


# Section III-D. Training.


SWITCHED = EXTRACTOR | {"label_smoothing": 0.1, "rank_decays": (0.75, 0.05, 0.1)}
SWITCHED |= {"auxiliary_weight": 0.25}


def test_stage_one_is_the_sum_of_its_equations():
    method = make(**SWITCHED)
    variables, data = variables_of(method), batch(8)
    labels = data["label"]
    (loss, (metrics, _)), _ = step(method, "train")(
        variables, data, jax.random.key(0), 1.0
    )
    outputs, _ = extract(
        method,
        variables,
        data["image"],
        train=True,
        ramp=0.25,
        mutable=["batch_stats"],
    )
    before, logits = (np.asarray(outputs[n], np.float64) for n in ("before", "logits"))

    def cls_and_parts(one, values):
        terms = [one(values[:, t]) for t in range(4)]
        return terms[0] + np.mean(terms[1:])

    def soft_margin(features):
        terms = []
        for a in range(8):
            gaps = np.linalg.norm(features - features[a], axis=1)
            same = (labels == labels[a]) & (np.arange(8) != a)
            terms.append(gaps[same].max() - gaps[labels != labels[a]].min())
        return np.log1p(np.exp(terms)).mean()

    def identity(values, smoothing):
        targets = test_identity.soft_targets(labels, CLASSES, smoothing)
        return -(targets * special.log_softmax(values, axis=1)).sum(1).mean()

    expected = {
        "loss_id": cls_and_parts(lambda x: identity(x, smoothing=0.1), logits),
        "loss_triplet": cls_and_parts(soft_margin, before),
        "loss_inter": 0.0,
        "loss_intra": 0.0,
        "loss_auxiliary": 0.0,
    }
    same, all_pairs = labels[:, None] == labels, np.ones((4, 4), bool)
    for layer in outputs["attention"]:
        layer = jax.tree.map(np.asarray, layer)
        loops = test_contrastive.by_loops
        expected["loss_inter"] += loops(
            layer["focused"], layer["rest"], same, (0.75, 0.05)
        )
        expected["loss_intra"] += np.mean(
            [
                loops(f, r, all_pairs, (0.1, 0.1))
                for f, r in zip(
                    layer["stripes_focused"], layer["stripes_rest"], strict=True
                )
            ]
        )
        expected["loss_auxiliary"] += identity(layer["logits"], smoothing=0.0)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)
    terms = {name.removeprefix("loss_"): value for name, value in expected.items()}
    whole = terms["id"] + terms["triplet"] + terms["inter"] + 0.5 * terms["intra"]
    np.testing.assert_allclose(loss, whole + 0.25 * terms["auxiliary"], rtol=1e-4)


def test_residual_grows_with_the_epochs_and_is_full_at_test():
    method = make(**SWITCHED)
    variables, data = variables_of(method), batch(8)
    run = step(method, "train")
    other = jax.tree.map(np.copy, variables)
    for layer in ("contrast_attn_0", "contrast_attn_1"):
        other["params"][layer]["mlp_r"]["Dense_2"]["kernel"] *= -1
    found = [
        [
            run(v, data, jax.random.key(0), epoch)[0][1][0]["loss_id"]
            for v in (variables, other)
        ]
        for epoch in (0.0, 2.0, 4.0, 40.0)
    ]
    gaps = [abs(float(a - b)) for a, b in found]
    assert gaps[0] == 0
    assert gaps[1] > 1e-3
    assert found[2] == found[3]
    embed = jax.jit(method.embed)
    at_test = [embed(v, data["image"])["vector"] for v in (variables, other)]
    assert np.abs(at_test[0] - at_test[1]).max() > 1e-3
    full = extract(method, variables, data["image"], ramp=1.0)["after"]
    plain = extract(method, variables, data["image"])["after"]
    np.testing.assert_array_equal(full, plain)


@pytest.mark.parametrize("side", [-1e5, 1e5])
def test_a_saturated_attention_has_finite_gradients(side):
    method = make(**SWITCHED)
    variables = jax.tree.map(np.copy, variables_of(method))
    for layer in ("contrast_attn_0", "contrast_attn_1"):
        variables["params"][layer]["bn"]["bias"][:] = side
    (loss, (_, collections)), gradients = step(method, "train")(
        variables, batch(8), jax.random.key(0)
    )
    assert np.isfinite(loss)
    for leaf in jax.tree.leaves((gradients, collections)):
        assert np.isfinite(leaf).all()


def optimizer_step(method, stage, variables, data):
    """Parameters and statistics after one step of the loop, with SGD and decay."""
    spec = OptimizerSpec("sgd", 0.1, weight_decay=0.1)
    number = method.stages.index(stage)
    described = experiment.Stage(number, stage, 1.0, 4, 2, spec)
    optimizer = make_optimizer(spec, lambda _: 0.1, frozen=method.frozen(stage))
    run = make_step(method, described, optimizer, lambda _: 0.1, steps_per_epoch=1)
    state = next_state(variables, described, optimizer, seed=0)
    return jax.jit(run)(state, data)[0].variables


def split(variables):
    """Leaves of the extractor and of CorreL."""
    flat = jax.tree_util.tree_leaves_with_path(variables)
    names = [jax.tree_util.keystr(path) for path, _ in flat]
    own = {n: leaf for n, (_, leaf) in zip(names, flat, strict=True) if "'correl'" in n}
    rest = {n: leaf for n, (_, leaf) in zip(names, flat, strict=True) if n not in own}
    return rest, own


@pytest.mark.parametrize("stage", ["train", "correlate"])
def test_each_stage_leaves_the_others_part_as_it_is(stage):
    method = make(drop_path=0.3)
    variables = variables_of(method)
    after = optimizer_step(method, stage, variables, batch(8))
    extractor, correl = (
        [found[name] for name in wanted]
        for wanted, found in zip(split(variables), split(after), strict=True)
    )
    kept, learned = (extractor, correl) if stage == "correlate" else (correl, extractor)
    before = split(variables)
    same, changed = before if stage == "correlate" else before[::-1]
    for found, wanted in zip(kept, same.values(), strict=True):
        np.testing.assert_array_equal(found, wanted)
    moved = [
        (np.asarray(found) != wanted).any()
        for found, wanted in zip(learned, changed.values(), strict=True)
    ]
    assert all(moved)


def test_end_to_end_trains_everything_at_once():
    method = make(two_stage=False, **SHALLOW)
    assert method.stages == ("train",)
    assert method.frozen("train") == ()
    variables, data = variables_of(method), batch(8)
    (loss, (metrics, collections)), gradients = step(method, "train")(
        variables, data, jax.random.key(0)
    )
    (base, (_, statistics)), alone = step(make(**SHALLOW), "train")(
        variables, data, jax.random.key(0)
    )
    np.testing.assert_allclose(loss, base + metrics["loss_verification"], rtol=1e-5)
    for leaf in jax.tree.leaves(gradients["correl"]):
        assert np.abs(leaf).max() > 0
    # The verification loss reaches the extractor, too.
    first, other = (
        found["backbone"]["blocks_0"]["mlp"]["fc1"]["kernel"]
        for found in (gradients, alone)
    )
    assert np.abs(first - other).max() > 1e-6
    found = collections["batch_stats"]["contrast_attn_0"]["bn"]["mean"]
    wanted = statistics["batch_stats"]["contrast_attn_0"]["bn"]["mean"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    own = collections["batch_stats"]["correl"]["omega_bn_0"]["mean"]
    assert (own != variables["batch_stats"]["correl"]["omega_bn_0"]["mean"]).all()
    assert method.pair_scorer("train") is not None


@pytest.mark.parametrize("stage", ["train", "correlate"])
def test_one_and_eight_devices_agree(stage):
    method = make(drop_path=0.3 if stage == "train" else 0.0, **SHALLOW)
    variables, data, rng = variables_of(method), batch(8), jax.random.key(3)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    run = step(method, stage)
    figures_of_one, gradients = run(variables, data, rng)
    sharded = jax.device_put(data, NamedSharding(mesh, PartitionSpec("data")))
    replicated = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
    figures_of_eight, others = run(replicated, sharded, rng)
    close = np.testing.assert_allclose
    jax.tree.map(lambda a, b: close(a, b, rtol=1e-5), figures_of_one, figures_of_eight)

    # A single bias may be a sum of terms that nearly cancel, here in another order: how
    # large they were, the layer's other arrays tell.
    one, eight = map(traverse_util.flatten_dict, (gradients, others))
    largest = dict.fromkeys((path[:-1] for path in one), 0.0)
    for path, leaf in one.items():
        largest[path[:-1]] = max(largest[path[:-1]], np.abs(leaf).max())
    for path, leaf in one.items():
        atol = 1e-4 * largest[path[:-1]] + 1e-6
        close(leaf, eight[path], rtol=1e-3, atol=atol, err_msg="/".join(path))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention_layers": (1, 4)}, "attention_layers=.* at most 3"),
        ({"attention_layers": (2, 1)}, "must rise"),
        ({"residual_weights": (0.5,)}, "a number for each"),
        ({"attention": False}, "set correlation=False"),
        ({"correlate": "levels"}, "correlate is one of"),
        ({"mining": "semi"}, "mining is one of"),
        ({"verification_reduction": "max"}, "verification_reduction is one of"),
        ({"fusion_score": "distance"}, "fusion_score is one of"),
        ({"rank_decays": (0.1,)}, "three numbers"),
        ({"correlation_blocks": ()}, "must name at least one layer"),
        ({"correlation_blocks": ((5, 2),)}, r"\(\(5, 2\),\) .* kernel, stride and"),
    ],
)
def test_mistakes(fields, message):
    with pytest.raises(UserError, match=message):
        make(**fields)
