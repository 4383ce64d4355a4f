import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.errors import UserError
from reid_jax.models import aaformer, baseline
from reid_jax.models.method import parameter_count
from tests.backbones import vit_in_numpy
from tests.models.steps import training_step
from tests.models.test_aaformer import CLASSES, SIZE, TINY, batch, variables_of
from tests.variables import random_variables

VIT = TINY
RESNET = {"width": 2, "blocks": (1, 1, 1, 1)}
HRNET = {"width": 2, "modules": (1, 0, 0), "blocks": 1, "stem": 2, "incre": 2}
ROWS = {
    "vit": (VIT, SIZE, 12),
    "transreid": ({**VIT, "cameras": 3}, SIZE, 5 * 12),
    "resnet50": (RESNET, (32, 16), 64),
    "resnet50_ibn_a": (RESNET, (32, 16), 64),
    "hrnet_w32": (HRNET, (32, 32), 8 * 15),
    "pcb": (RESNET, (96, 16), 6 * 256),
}


def make(name, **fields):
    options, size, _ = ROWS[name]
    return baseline.Method(CLASSES, size, backbone=name, options=options, **fields)


@functools.cache
def setting(name):
    """A method, its variables and a batch of two identities."""
    method, size = make(name), ROWS[name][1]
    rng = np.random.default_rng(0)
    data = {
        "image": rng.integers(0, 256, (4, *size, 3), dtype=np.uint8),
        "label": np.array([0, 0, 1, 1], np.int32),
        "camera": np.array([0, 2, 1, -1], np.int32),
    }
    return method, random_variables(method.init, data), data


def numpy_rollout(method, variables, images):
    """Abnar & Zuidema, one image after the other in float64: CLS's row, [B, N]."""
    vit = method.module.backbone
    seen = []

    def attend(query, key, value):
        logits = query @ key.T / np.sqrt(query.shape[-1])
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        seen.append(weights / weights.sum(-1, keepdims=True))
        return seen[-1] @ value

    params = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
    vit_in_numpy.forward(
        images,
        params["backbone"],
        patch_size=vit.patch_size,
        stride=vit.stride,
        heads=vit.heads,
        attend=attend,
    )
    length = seen[0].shape[-1]
    layers = np.reshape(seen, (vit.depth, len(images), vit.heads, length, length))
    rows = []
    for image in range(len(images)):
        flow = np.eye(length)
        for layer in layers[:, image]:
            mixed = layer.mean(0) + np.eye(length)
            flow = mixed / mixed.sum(-1, keepdims=True) @ flow
        rows.append(flow[0, 1:])
    return np.stack(rows)


@pytest.mark.parametrize("implementation", ["einsum", "xla"])
def test_rollout_of_a_vit_is_that_of_a_loop(implementation):
    method = make("vit", attention_implementation=implementation)
    _, variables, data = setting("vit")
    item = method.pictures(variables, data)["rollout"]
    wanted = numpy_rollout(method, variables, data["image"] / 127.5 - 1)
    low, high = (f(wanted, axis=1, keepdims=True) for f in (np.min, np.max))
    wanted = ((wanted - low) / (high - low)).reshape(4, 1, *method.position_grid)
    np.testing.assert_allclose(item.values, wanted, atol=1e-5)
    assert item.titles == ("attention rollout",)
    assert "least to greatest" in item.scale


def test_rollout_of_a_vit_with_cameras_and_parts():
    method, variables, data = setting("transreid")
    values = np.asarray(method.pictures(variables, data)["rollout"].values)
    assert values.shape == (4, 1, *method.position_grid)
    other = method.pictures(variables, data | {"camera": data["camera"][::-1]})
    assert np.abs(other["rollout"].values - values).max() > 1e-4


@pytest.mark.parametrize("name", ["resnet50", "pcb", "hrnet_w32"])
def test_activation_maps_are_sums_of_squares(name):
    method, variables, data = setting(name)
    item = method.pictures(variables, data)["activation"]
    share = {key: value["backbone"] for key, value in variables.items()}
    images = method.standardise(data["image"])
    apply = functools.partial(method.module.backbone.apply, train=False)
    outputs = jax.jit(apply)(share, images)
    maps = outputs["incre"] if name == "hrnet_w32" else [outputs["layer4"]]
    assert item.values.shape[:2] == (4, len(maps)) == (4, len(item.titles))
    for image in range(4):
        squares = (np.asarray(maps[0], np.float64)[image] ** 2).sum(-1)
        wanted = (squares - squares.min()) / max(np.ptp(squares), 1e-30)
        np.testing.assert_allclose(item.values[image, 0], wanted, atol=1e-5)
    assert item.values.max() == 1


@functools.cache
def stepped(name):
    method, variables, data = setting(name)
    return training_step(method)(variables, data, jax.random.key(0))


@pytest.mark.parametrize("name", ROWS)
def test_a_step_and_an_embedding(name):
    method, variables, data = setting(name)
    (loss, (metrics, collections)), gradients = stepped(name)
    assert np.isfinite(loss)
    assert metrics["loss_id"] > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    # Every parameter learns, and every statistic moves.
    still = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradients)
        if not np.any(leaf)
    ]
    assert not still
    jax.tree.map(
        lambda new, old: np.testing.assert_equal(np.array_equal(new, old), False),
        dict(collections["batch_stats"]),
        dict(variables["batch_stats"]),
    )
    embed = jax.jit(method.embed)
    camera = data["camera"] if method.embed_inputs else None
    vector = np.asarray(embed(variables, data["image"], camera)["vector"])
    assert vector.shape == (4, ROWS[name][2])
    np.testing.assert_allclose(np.linalg.norm(vector, axis=1), 1, rtol=1e-5)
    camera = camera[::-1] if method.embed_inputs else None
    reverse = embed(variables, data["image"][::-1], camera)["vector"]
    np.testing.assert_allclose(reverse[::-1], vector, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("vit", 85_746_432 + 768 * 752),
        # A second last block and LayerNorm, and a head for each of five features.
        ("transreid", 85_746_432 + 7_087_872 + 1_536 + 5 * (768 + 751 * 768)),
        ("resnet50", 23_508_032 + 2048 * 752),
        ("resnet50_ibn_a", 23_508_032 + 2048 * 752),
        ("hrnet_w32", 30_881_856 + 1920 * 752),
        ("pcb", 23_508_032 + 2048 * 256 + 2 * 256 + 6 * 256 * 752),
    ],
)
def test_parameters_at_full_size(name, parameters):
    method = baseline.Method(751, (256, 128), backbone=name)
    example = {"image": jax.ShapeDtypeStruct((2, 256, 128, 3), jnp.uint8)}
    variables = jax.eval_shape(method.init, jax.random.key(0), example)
    assert parameter_count(variables) == parameters


def test_vit_is_aaformer_without_parts():
    ours = baseline.Method(CLASSES, SIZE, options={**VIT, "drop_path": 0.1})
    theirs = aaformer.Method(CLASSES, SIZE, tokens="none", **TINY)
    variables, data = variables_of(ours), batch()
    rng = jax.random.key(0)
    (mine, (my_metrics, _)), _ = training_step(ours)(variables, data, rng)
    (other, (their_metrics, _)), _ = training_step(theirs)(variables, data, rng)
    np.testing.assert_allclose(mine, other, rtol=1e-6)
    assert my_metrics.keys() == their_metrics.keys()
    np.testing.assert_allclose(
        jax.jit(ours.embed)(variables, data["image"])["vector"],
        jax.jit(theirs.embed)(variables, data["image"])["vector"],
        atol=1e-6,
    )


def test_losses_of_transreid_from_its_outputs():
    """Eq. 4: the global losses, plus the means over the parts."""
    method, variables, data = setting("transreid")
    outputs, _ = jax.jit(
        functools.partial(method.module.apply, train=True, mutable=["batch_stats"])
    )(variables, method.standardise(data["image"]), data["camera"])
    logits = np.asarray(outputs["logits"], np.float64)
    log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    target = np.eye(CLASSES)[data["label"]] * 0.9 + 0.1 / CLASSES
    identity = -(target[:, None] * log).sum(-1).mean(0)
    _, (metrics, _) = stepped("transreid")[0]
    np.testing.assert_allclose(
        metrics["loss_id"], identity[0] + identity[1:].mean(), rtol=1e-5
    )
    loss, _ = stepped("transreid")[0]
    np.testing.assert_allclose(
        loss, metrics["loss_id"] + metrics["loss_triplet"], rtol=1e-6
    )


def test_hrnets_feature_is_the_mean_of_the_streams_enlarged_with_half_pixels():
    method, variables, data = setting("hrnet_w32")
    images = method.standardise(data["image"])
    share = {key: value["backbone"] for key, value in variables.items()}
    apply = functools.partial(method.module.backbone.apply, train=False)
    maps = jax.jit(apply)(share, images)["incre"]
    size = maps[0].shape[1:3]
    joint = np.concatenate(
        [jax.image.resize(m, (4, *size, m.shape[3]), "bilinear") for m in maps], axis=3
    )
    apply = functools.partial(method.module.apply, train=False)
    outputs = jax.jit(apply)(variables, images)
    np.testing.assert_allclose(outputs["before"][:, 0], joint.mean((1, 2)), atol=1e-5)


def test_pcb_may_leave_the_triplet_away():
    _, variables, data = setting("pcb")
    loss, (metrics, _) = jax.eval_shape(
        training_step(make("pcb", triplet_weight=0.0)),
        variables,
        data,
        jax.random.key(0),
    )[0]
    assert set(metrics) == {"loss_id", "accuracy"}
    assert loss.shape == ()


def test_stripes_of_pcb():
    method, variables, data = setting("pcb")
    images = method.standardise(data["image"])
    backbone = method.module.backbone.clone(parent=None)
    trunk = {kind: tree["backbone"] for kind, tree in variables.items()}
    apply = jax.jit(functools.partial(backbone.apply, train=False))
    maps = np.asarray(apply(trunk, images)["layer4"], np.float64)
    assert maps.shape[1] == 6
    params, stats = variables["params"], variables["batch_stats"]["reduce_bn"]
    reduced = maps.mean(2) @ params["reduce"]["kernel"]
    normed = (reduced - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    wanted = normed * params["reduce_bn"]["scale"] + params["reduce_bn"]["bias"]
    apply = jax.jit(functools.partial(method.module.apply, train=False))
    outputs = apply(variables, images)
    np.testing.assert_allclose(outputs["before"], np.maximum(wanted, 0), atol=1e-4)


def test_parts_of_transreid_weigh_a_quarter():
    method, variables, data = setting("transreid")
    images = method.standardise(data["image"])
    apply = jax.jit(functools.partial(method.module.apply, train=False))
    tokens = apply(variables, images, data["camera"])
    tokens = np.array(tokens["after"], np.float64)
    tokens[:, 1:] /= 4
    wanted = tokens.reshape(4, -1)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    embed = jax.jit(method.embed)
    got = embed(variables, data["image"], data["camera"])["vector"]
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_mistakes():
    with pytest.raises(UserError, match="backbone is one of vit"):
        baseline.Method(3, backbone="resnet101")
    with pytest.raises(UserError, match="classifier is one of linear, arcface, cosf"):
        baseline.Method(3, classifier="softmax")
    with pytest.raises(UserError, match="feature is one of"):
        baseline.Method(3, feature="bn")
    with pytest.raises(
        UserError, match=r"has depth, heads, which no ResNet has: take :b"
    ):
        baseline.Method(3, backbone="resnet50", options={"depth": 4, "heads": 6})
    with pytest.raises(UserError, match=r"blocks=\(1, 1, 1\): give four layers'"):
        baseline.Method(3, backbone="pcb", options=RESNET | {"blocks": (1, 1, 1)})
    method = baseline.Method(3, (64, 32), backbone="pcb", options=RESNET)
    with pytest.raises(UserError, match="4 rows cannot be cut into 6 stripes"):
        jax.eval_shape(
            method.init, jax.random.key(0), {"image": np.zeros((1, 64, 32, 3))}
        )
