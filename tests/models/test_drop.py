import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from reid_jax.errors import UserError
from reid_jax.layers import memory_bank
from reid_jax.layers.memory_bank import EMPTY
from reid_jax.layers.pixels import standardise
from reid_jax.losses.parsing import part_targets
from reid_jax.models import drop
from reid_jax.runtime import sharding
from reid_jax.training.step import state_layout
from tests.losses import test_identity, test_part_triplet
from tests.losses.test_parsing import loss_by_loops
from tests.models.steps import training_step
from tests.variables import as_a_run_begins, random_variables

SIZE, CLASSES, PARTS = (32, 16), 4, 3
TINY = {
    "backbone": "resnet50",
    "options": {"blocks": (1, 1, 1, 1), "width": 2},
    "parsing_width": 4,
    "width": 5,
    "part_groups": ((1,), (2, 3, 4), (5, 6, 7, 8)),
    "part_names": ("head", "body", "legs"),
}


def make(**fields):
    return drop.Method(CLASSES, SIZE, **TINY | fields)


def batch(rows=8, seed=0, size=SIZE):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (rows, *size, 3), dtype=np.uint8),
        "parts": rng.choice([*range(9), 255], (rows, *size)).astype(np.uint8),
        "label": np.repeat(np.arange(CLASSES), rows // CLASSES).astype(np.int32),
    }


def variables_of(method, data=None, seed=0):
    """Random parameters, and an empty bank."""
    data = batch() if data is None else data
    variables = dict(random_variables(method.init, data, seed=seed))
    if "bank" in variables:
        shapes = jax.tree.map(np.zeros_like, variables["bank"])
        variables["bank"] = shapes | {"labels": np.full_like(shapes["labels"], EMPTY)}
    return variables


def apply(method, *, train):
    """The network's outputs for a batch."""

    def run(variables, images):
        network = {name: variables[name] for name in ("params", "batch_stats")}
        given = standardise(images, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        out = method.module.apply(
            network, given, train=train, mutable=["batch_stats"] if train else False
        )
        return out[0] if train else out

    return jax.jit(run)


# 3.2. The parsing branch.


def test_upsampling_adds_each_stage_to_the_next_finer_one():
    """Eq. 3 with reductions of the test's own, in float64."""
    rng = np.random.default_rng(0)
    shapes = [(8, 4, 3), (4, 2, 5), (2, 1, 7)]
    stages = [rng.normal(size=(2, *s)).astype(np.float32) for s in shapes]
    for cascade in (True, False):
        module = drop.DetailPreservingUpsampling(4, cascade, 1, jnp.float32)
        variables = random_variables(
            functools.partial(module.init, train=False), stages
        )
        apply = functools.partial(module.apply, train=False)
        found = jax.jit(apply)(variables, stages)
        reduced = [
            reduce_by_hand(stage, variables, f"reduce{number}")
            for number, stage in enumerate(stages, start=1)
        ]
        if cascade:
            middle = double(reduced[2]) + reduced[1]
            expected = double(middle) + reduced[0]
        else:
            expected = reduced[0] + enlarge(reduced[1], 2) + enlarge(reduced[2], 4)
        np.testing.assert_allclose(found, expected, atol=1e-4)


def reduce_by_hand(stage, variables, name):
    params, stats = variables["params"], variables["batch_stats"]
    kernel = params[name]["kernel"][0, 0].astype(np.float64)
    norm, running = params[f"{name}_bn"], stats[f"{name}_bn"]
    values = (stage @ kernel - running["mean"]) / np.sqrt(running["var"] + 1e-5)
    return np.maximum(values * norm["scale"] + norm["bias"], 0)


def enlarge(maps, factor):
    """Linear interpolation between the centres of pixels, axis by axis."""
    for axis in (1, 2):
        length = maps.shape[axis]
        places = (np.arange(length * factor) + 0.5) / factor - 0.5
        maps = np.apply_along_axis(
            lambda line, p=places, n=length: np.interp(p, np.arange(n), line),
            axis,
            maps,
        )
    return maps


double = functools.partial(enlarge, factor=2)


@pytest.mark.parametrize("axes", [1, 2])
def test_position_embedding_knows_the_height_and_perhaps_the_width(axes):
    module = drop.PositionEncoder(6, axes)
    variables = random_variables(lambda key: module.init(key, (4, 3), train=False))
    rows, columns = (np.arange(4) + 0.5) / 4, (np.arange(3) + 0.5) / 3
    grid = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1)[..., :axes]
    hidden = grid[None]
    for number in (1, 2):
        params, stats = variables["params"], variables["batch_stats"]
        norm, running = params[f"bn{number}"], stats[f"bn{number}"]
        hidden = hidden @ params[f"conv{number}"]["kernel"][0, 0].astype(np.float64)
        hidden = (hidden - running["mean"]) / np.sqrt(running["var"] + 1e-5)
        hidden = hidden * norm["scale"] + norm["bias"]
        hidden = np.maximum(hidden, 0) if number == 1 else hidden
    found = module.apply(variables, (4, 3), train=False)
    np.testing.assert_allclose(found, hidden, atol=1e-5)
    across = np.ptp(np.asarray(found), axis=2).max()
    assert (across > 1e-3) == (axes == 2)


@pytest.mark.parametrize("axes", [1, 2])
def test_the_position_embedding_has_the_scale_of_what_it_joins(axes):
    """Neither drowns the other at the start: at the paper's widths, within 1/3 to 3."""
    rng, key = np.random.default_rng(0), jax.random.key(0)
    sizes = [(16, 8, 128), (8, 4, 256), (4, 2, 512), (2, 1, 1024)]
    stages = [np.abs(rng.normal(size=(8, *s))).astype(np.float32) for s in sizes]

    @jax.jit
    def run(stages):
        upsampling = drop.DetailPreservingUpsampling(128, True, 1, jnp.float32)
        joined, _ = upsampling.init_with_output(key, stages, train=True)
        encoder = drop.PositionEncoder(128, axes)
        return joined, encoder.init_with_output(key, (16, 8), train=True)[0]

    joined, embedding = (np.asarray(x, np.float64) for x in run(stages))
    for measure in (
        lambda x: np.sqrt((x**2).mean()),
        lambda x: np.sqrt(x.var((0, 1, 2)).mean()),  # f_hp's normalisation centres
    ):
        assert 1 / 3 < measure(embedding) / measure(joined) < 3


def test_only_the_parsing_branch_knows_the_position():
    """Another bias of its last normalisation moves the parsing, not the embedding."""
    method = make()
    variables = variables_of(method)
    images, run = batch()["image"], apply(method, train=False)
    before = run(variables, images)
    moved = jax.tree.map(np.copy, variables)
    bias = moved["params"]["position"]["bn2"]["bias"]
    bias[:] = np.linspace(-3, 3, len(bias))
    after = run(moved, images)
    assert np.abs(after["parsing"] - before["parsing"]).max() > 1e-3
    np.testing.assert_array_equal(
        after["heads"]["global"]["after"], before["heads"]["global"]["after"]
    )


# 3.3. The re-ID branch.


def test_pooled_embeddings_equal_loops():
    """WAMP and the foreground, from maps and features of the test's own."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, 3, 2, 4)).astype(np.float32)
    maps = rng.random((2, 3, 2, 3)).astype(np.float32)
    found = drop.pool(features, maps)
    for b, k, c in np.ndindex(2, 3, 4):
        products = maps[b, :, :, k].astype(np.float64) * features[b, :, :, c]
        expected = products.sum() / maps[b, :, :, k].sum() + products.max()
        np.testing.assert_allclose(found[b, k, c], expected, rtol=1e-5)
    outputs = apply(make(), train=False)(variables_of(make()), batch()["image"])
    maps = np.asarray(outputs["maps"])
    np.testing.assert_array_equal(maps[..., 0], maps[..., 1:].max(-1))
    logits = np.asarray(outputs["parsing"], np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(maps[..., 1:], probabilities[..., 1:], atol=1e-6)


# 3.4. The objective.


def test_objective_is_the_sum_of_its_equations():
    weights = {"parsing_weight": 0.7, "label_smoothing": 0.2, "margin": 0.5}
    method = make(bank_batches=2, bn_groups=2, **weights)
    variables, data, run = variables_of(method), batch(), training_step(method)
    outputs = apply(method, train=True)(variables, data["image"])
    earlier = batch(seed=1)
    (_, (_, after)), _ = run(variables, earlier)
    (loss, (metrics, last)), _ = run({**variables, "bank": after["bank"]}, data)
    expected = 0.0
    for head in outputs["heads"].values():
        assert head["logits"].shape == (8, 1, CLASSES)
        expected += identity_by_hand(head["logits"], data["label"], 0.2)
    np.testing.assert_allclose(metrics["loss_id"], expected, rtol=1e-4)

    parts = np.asarray(outputs["parts"])
    before = np.asarray(apply(method, train=True)(variables, earlier["image"])["parts"])
    triplet = test_part_triplet.average_by_loops(
        np.concatenate([parts, before]),
        np.concatenate([data["label"]] * 2),
        margin=0.5,
    )
    np.testing.assert_allclose(metrics["loss_triplet"], triplet, rtol=1e-4)
    np.testing.assert_array_equal(
        last["bank"]["embeddings"][0], after["bank"]["embeddings"][0]
    )
    np.testing.assert_allclose(last["bank"]["embeddings"][1], parts, atol=1e-4)

    logits = np.asarray(outputs["parsing"])
    wanted = np.asarray(part_targets(data["parts"], method.options.part_groups, (8, 4)))
    parsing = loss_by_loops(logits, wanted, 0.2, 0.5)
    np.testing.assert_allclose(metrics["loss_parsing"], parsing, rtol=1e-4)
    np.testing.assert_allclose(loss, expected + triplet + 0.7 * parsing, rtol=1e-4)
    hits = (logits.argmax(-1) == wanted)[wanted != 255]
    np.testing.assert_allclose(metrics["parsing_accuracy"], hits.mean(), rtol=1e-6)
    found = np.asarray(outputs["heads"]["foreground"]["logits"])[:, 0].argmax(-1)
    np.testing.assert_allclose(metrics["accuracy"], (found == data["label"]).mean())


@pytest.mark.parametrize("anchors", ["all", "batch"])
def test_anchors_are_all_rows_or_the_batch_s(anchors):
    parts, earlier = np.random.default_rng(0).normal(size=(2, 8, PARTS, 5)).astype("f")
    labels = batch()["label"]
    bank = memory_bank.empty(batches=2, batch_size=8, parts=PARTS, width=5)
    _, bank = memory_bank.remember(bank, earlier, labels)
    method = make(bank_batches=2, anchors=anchors)
    loss, _ = jax.jit(method._triplet_loss)({"bank": bank}, parts, labels)
    wanted = test_part_triplet.average_by_loops(
        np.concatenate([parts, earlier]),
        np.concatenate([labels] * 2),
        anchors=range(8) if anchors == "batch" else None,
    )
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)


def identity_by_hand(logits, labels, smoothing=0.1):
    """Mean over images and tokens, in float64."""
    logits = np.asarray(logits, np.float64)
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    targets = test_identity.soft_targets(labels, CLASSES, smoothing)
    return -(targets[:, None] * log_probabilities).sum(-1).mean()


def test_parts_are_identified_each_by_itself():
    method, data = make(identity="each"), batch()
    shapes = jax.eval_shape(method.init, jax.random.key(0), data)
    outputs = jax.eval_shape(apply(method, train=False), shapes, data["image"])
    logits = outputs["heads"]["parts"]["logits"]
    assert logits.shape == (8, PARTS, CLASSES)
    values = np.random.default_rng(0).normal(size=logits.shape).astype(np.float32)
    found = method._identity_loss(values, data["label"])
    np.testing.assert_allclose(
        found, identity_by_hand(values, data["label"]), rtol=1e-5
    )


TINY_HRNET = {"width": 2, "incre": 2, "stem": 4, "modules": (1, 0, 0), "blocks": 1}
PATHS = {
    "coupled, part average": {
        "decouple": False,
        "position": "none",
        "triplet": "part_average",
        "spatial_smoothing": 0.0,
    },
    "decoupled, hct": {"position": "none", "triplet": "hct", "upsampling": "direct"},
    "2d, current anchors, half": {
        "position": "2d",
        "anchors": "batch",
        "dtype": "bfloat16",
    },
    "stripes": {"regions": "stripes", "stripes": 4, "backbone": "resnet50_ibn_a"},
    "hrnet": {"backbone": "hrnet_w32", "options": TINY_HRNET},
}


@pytest.mark.parametrize("path", PATHS)
def test_training_step_is_finite_and_reaches_everything(path):
    method = make(**PATHS[path])
    data = batch(size=(32, 32) if path == "hrnet" else SIZE)
    data["parts"][:2] = 255  # unlabelled images
    data["parts"][data["parts"] == 1] = 0  # no heads
    (loss, (_, collections)), gradients = training_step(method)(
        variables_of(method, data), data
    )
    assert np.isfinite(loss)
    for leaf in jax.tree.leaves((gradients, collections)):
        assert np.isfinite(leaf).all()
    branches = {"parsing", "upsampling", "position"} & set(gradients)
    assert branches == {
        "coupled, part average": {"parsing"},
        "decoupled, hct": {"parsing", "upsampling"},
        "stripes": set(),
    }.get(path, {"parsing", "upsampling", "position"})
    for name, branch in gradients.items():
        assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(branch)) > 0, name
    assert method.train_inputs == (() if path == "stripes" else ("parts",))
    assert ("bank" in collections) == (method.options.triplet == "pct")


def test_one_and_eight_devices_agree_in_the_loop_s_own_layout():
    method = make(bank_batches=2)
    data = batch(16)
    variables = as_a_run_begins(variables_of(method, data))
    run, mesh = training_step(method), sharding.make_mesh()
    shapes = {name: jnp.asarray(x) for name, x in data.items()}
    layout = state_layout(method, optax.sgd(0.1), mesh, shapes=shapes)
    assert layout.collections["bank"]["embeddings"].spec == PartitionSpec(None, "data")
    assert layout.collections["bank"]["labels"].spec == PartitionSpec(None, "data")
    assert layout.collections["bank"]["pointer"].spec == PartitionSpec()
    places = {"params": layout.params, **layout.collections}
    spread = {
        name: jax.device_put(value, places[name]) for name, value in variables.items()
    }
    for seed in (0, 1):
        data = batch(16, seed=seed)
        one = run(variables, data)
        eight = run(spread, sharding.put_batch(data, mesh))
        np.testing.assert_allclose(eight[0][0], one[0][0], rtol=1e-5)
        jax.tree.map(assert_close, eight, one)
        variables = {**variables, **one[0][1][1]}
        spread = {**spread, **eight[0][1][1]}


def assert_close(found, wanted):
    """To a ten-thousandth of the array's greatest number."""
    wanted = np.asarray(wanted)
    limit = 1e-6 + 1e-4 * np.abs(wanted).max()
    np.testing.assert_allclose(found, wanted, atol=limit)


def test_rows_that_the_devices_do_not_divide_stay_whole():
    mesh = sharding.make_mesh()
    shapes = {"a": jnp.zeros((3, 6)), "b": jnp.zeros((3, 16, 2)), "c": jnp.zeros(8)}
    found = sharding.row_sharding(shapes, mesh, axis=1)
    specs = {name: place.spec for name, place in found.items()}
    assert specs == {
        "a": PartitionSpec(),
        "b": PartitionSpec(None, "data"),
        "c": PartitionSpec(),
    }


# Inference.


def test_embedding_and_visibility():
    tokens = ("global", "foreground", "parts")
    method = make(embeddings=tokens, visible_above=0.03)
    variables, images = variables_of(method), batch()["image"]
    # Two places in three show the second part, no place the first.
    bias = variables["params"]["parsing"]["classifier"]["bias"]
    bias[:] = [0, -20, 3, 0]
    run = jax.jit(method.embed)
    embedding = run(variables, images)
    outputs = apply(method, train=False)(variables, images)
    greatest = np.asarray(outputs["maps"])[..., 1:].max((1, 2))
    visible = np.asarray(embedding["visibility"])
    assert visible[:, :2].all()
    np.testing.assert_array_equal(visible[:, 2:], greatest > 0.03)
    assert ((greatest > 0.03) != (greatest > 0.4)).any()
    assert not visible[:, 2].any()
    assert visible[:, 3].all()
    found = np.asarray(embedding["parts"])
    assert found.dtype == np.float32
    for index, wanted in enumerate(
        [
            outputs["heads"]["global"]["after"][:, 0],
            outputs["heads"]["foreground"]["after"][:, 0],
            *np.asarray(outputs["parts"]).swapaxes(0, 1),
        ]
    ):
        unit = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
        np.testing.assert_allclose(found[:, index], unit, atol=1e-5)
    changed = np.concatenate([images[:3], batch(seed=1)["image"][3:]])
    other = np.asarray(run(variables, changed)["parts"])
    np.testing.assert_allclose(other[:3], found[:3], atol=1e-5)
    assert np.abs(other[3:] - found[3:]).max() > 1e-3


def test_what_is_compared_is_chosen_when_testing():
    """The same variables, without the bank, serve every choice of Table 6."""
    everything = make(embeddings=("global", "foreground", "parts"))
    variables = variables_of(everything)
    del variables["bank"]
    method = make(embeddings=("legs", "head"))
    images = batch()["image"]
    all_of_them = jax.jit(everything.embed)(variables, images)
    chosen = jax.jit(method.embed)(variables, images)
    for name, value in chosen.items():
        np.testing.assert_allclose(value, all_of_them[name][:, [4, 2]], atol=1e-5)
    distances = method.distance(chosen, chosen)
    assert distances.shape == (8, 8)
    np.testing.assert_allclose(distances, distances.T, atol=1e-6)
    assert method.visibility_titles == ("legs", "head")
    np.testing.assert_array_equal(make().options.tokens, [1, 2, 3, 4])
    assert make().visibility_titles == ("", "head", "body", "legs")
    np.testing.assert_array_equal(make(embeddings=("global",)).options.tokens, [0])


def test_pictures_of_parts():
    method = make()
    pictures = method.pictures(variables_of(method), batch(4))
    parts, maps = pictures["parts"], pictures["probabilities"]
    assert parts.groups == ("head", "body", "legs")
    assert maps.titles == ("foreground", "head", "body", "legs")
    values, indices = np.asarray(maps.values), np.asarray(parts.values)[:, 0]
    assert values.shape == (4, 4, 8, 4)
    background = 1 - values[:, 1:].sum(1)
    likeliest = np.concatenate([background[:, None], values[:, 1:]], 1).argmax(1) - 1
    np.testing.assert_array_equal(indices, likeliest)
    assert make(regions="stripes").pictures({}, batch(2)) == {}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone": "resnet18"}, "backbone is one of hrnet_w32"),
        ({"options": {"stem": 8, "incre": 8}}, "has stem, incre, which no ResNet has"),
        ({"position": "3d"}, "position is one of"),
        ({"triplet": "hard"}, "triplet is one of"),
        ({"decouple": False}, "decouple=False does not have"),
        ({"part_names": ("head",)}, "3 part_groups have 1 part_names"),
        ({"embeddings": ("arms",)}, "there is no 'arms'; known: parts, global"),
        ({"part_groups": (), "part_names": ()}, "name at least one part"),
        ({"embeddings": ()}, "names none of parts, global"),
        ({"embeddings": ("parts", "head")}, "names one twice; 'parts' are all of head"),
        ({"bank_batches": 0}, "at least 1"),
        ({"regions": "stripes", "stripes": 0}, "stripes=0: at least 1"),
        ({"regions": "stripes", "embeddings": ("head",)}, "known: parts, global"),
    ],
)
def test_mistakes(fields, message):
    with pytest.raises(UserError, match=message):
        make(**fields)
