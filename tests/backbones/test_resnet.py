import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.backbones import non_local, resnet
from reid_jax.errors import UserError
from tests.goldens import filling, layout
from tests.variables import random_variables

SMALL = {"blocks": (2, 1, 1, 2), "width": 4}
IBN = [("resnet", False), ("resnet_ibn_a", True)]


def shapes(model, features=(1, 256, 128, 3)):
    """Variables of `model` as shapes and dtypes."""
    features = jax.ShapeDtypeStruct(features, jnp.float32)
    init = functools.partial(model.init, train=False)
    return jax.eval_shape(init, jax.random.key(0), features)


def count(model, *features):
    leaves = jax.tree.leaves(shapes(model, *features)["params"])
    return sum(leaf.size for leaf in leaves)


@functools.cache
def outputs(ibn, train, **changes):
    model = resnet.ResNet(**SMALL | {"ibn": ibn} | changes)
    variables = layout.variables(model, (40, 24))
    apply = functools.partial(model.apply, train=train, mutable=["batch_stats"])
    return jax.jit(apply)(variables, filling.images(40, 24))


@pytest.mark.parametrize(("name", "ibn"), IBN)
def test_every_stage_equals_the_original(name, ibn):
    maps, collections = outputs(ibn, train=False)
    golden = layout.golden(name)
    assert set(maps) == {"stem", "layer1", "layer2", "layer3", "layer4"}
    for key, value in maps.items():
        layout.assert_equal(value, golden[f"eval/{key}"])
    before = layout.running_statistics(collections["batch_stats"])
    for key, value in before.items():
        np.testing.assert_array_equal(value, filling.tensor(key, value.shape))


@pytest.mark.parametrize(("name", "ibn"), IBN)
def test_training_step_equals_the_original(name, ibn):
    maps, collections = outputs(ibn, train=True)
    golden = layout.golden(name)
    layout.assert_equal(maps["layer4"], golden["train/layer4"])
    after = layout.running_statistics(collections["batch_stats"])
    assert {f"after/{key}" for key in after} == {
        key for key in golden if key.startswith("after/")
    }
    for key, value in after.items():
        layout.assert_equal(value, golden[f"after/{key}"])


def test_stride_2_equals_the_original():
    model = resnet.ResNet((1, 1, 1, 1), width=4, last_stride=2)
    variables = layout.variables(model, (40, 24))
    apply = jax.jit(functools.partial(model.apply, train=False))
    maps = apply(variables, filling.images(40, 24))
    layout.assert_equal(maps["layer4"], layout.golden("resnet_stride2")["layer4"])


def test_stage_takes_the_trunk_weights():
    model = resnet.ResNet(**SMALL)
    variables = layout.variables(model, (40, 24))
    branch = jax.tree.map(lambda leaf: leaf, variables)
    for collection in branch.values():
        for name in list(collection):
            if not name.startswith("layer4_"):
                del collection[name]
    stage = resnet.Stage(blocks=2, width=32)
    maps, _ = outputs(False, train=False)
    found = jax.jit(functools.partial(stage.apply, train=False))(branch, maps["layer3"])
    layout.assert_equal(found, maps["layer4"], 1e-6)


def test_trunk_can_end_before_layer4():
    model = resnet.ResNet(blocks=(1, 1, 1), width=4)
    variables = layout.variables(model, (16, 16))
    assert not [name for name in variables["params"] if name.startswith("layer4")]
    maps = jax.eval_shape(
        functools.partial(model.apply, train=False), variables, np.zeros((1, 16, 16, 3))
    )
    assert set(maps) == {"stem", "layer1", "layer2", "layer3"}


@pytest.mark.parametrize("ibn", [False, True])
def test_parameter_counts_are_those_of_the_literature(ibn):
    trunk = count(resnet.ResNet(ibn=ibn))
    layer4 = count(resnet.Stage(ibn=False), (1, 16, 8, 1024))
    assert trunk == 23_508_032
    assert layer4 == 14_964_736
    assert trunk + 4 * layer4 == 83_366_976


def test_non_local_blocks_have_the_parameters_of_cacenets_code():
    plain, with_blocks = shapes(resnet.ResNet()), shapes(resnet.ResNet(non_local=True))
    added = with_blocks["params"].keys() - plain["params"].keys()
    assert added == {"nonlocal2", "nonlocal3", "nonlocal4"}
    assert count(resnet.ResNet(non_local=True)) == 23_508_032 + 1_380_512
    assert with_blocks["batch_stats"] == plain["batch_stats"]


def non_local_by_loops(features, params):
    """Of one map [N, C] in float64."""
    params = jax.tree.map(np.float64, params)

    def dense(x, name):
        return x @ params[name]["kernel"] + params[name]["bias"]

    theta, phi, g = (dense(features, name) for name in ("theta", "phi", "g"))
    mixed = np.zeros_like(g)
    for i, row in enumerate(theta):
        scores = np.exp(phi @ row - (phi @ row).max())
        mixed[i] = scores @ g / scores.sum()
    return features + dense(mixed, "out")


def test_non_local_block_equals_loops():
    features = np.random.default_rng(0).normal(size=(2, 3, 2, 32)).astype(np.float32)
    block = non_local.NonLocal()
    variables = random_variables(block.init, features, scale=0.5)
    found = np.asarray(jax.jit(block.apply)(variables, features)).reshape(2, 6, 32)
    for one, given in zip(found, features.reshape(2, 6, 32), strict=True):
        expected = non_local_by_loops(np.float64(given), variables["params"])
        np.testing.assert_allclose(one, expected, atol=1e-5)


def test_non_local_blocks_start_as_if_absent_and_stand_before_the_last_bottleneck():
    model = resnet.ResNet(**SMALL, non_local=True)
    variables = {**layout.variables(resnet.ResNet(**SMALL), (40, 24))}
    images = filling.images(40, 24)
    block = non_local.NonLocal()
    variables["params"] = dict(variables["params"])
    channels = {2: 16, 3: 32, 4: 128}
    for layer, width in channels.items():
        fresh = block.init(jax.random.key(layer), jnp.zeros((1, 1, 1, width)))
        variables["params"][f"nonlocal{layer}"] = fresh["params"]
    apply = jax.jit(functools.partial(model.apply, train=False))
    maps, _ = outputs(False, train=False)
    found = apply(variables, images)
    layout.assert_equal(found["layer4"], maps["layer4"], 1e-6)
    # A constant added before the last bottleneck of layer4 moves nothing above it.
    moved = dict(variables["params"]["nonlocal4"])
    moved["out"] = moved["out"] | {"bias": jnp.ones(channels[4])}
    variables["params"]["nonlocal4"] = moved
    after = apply(variables, images)
    np.testing.assert_array_equal(after["layer3"], found["layer3"])
    assert np.abs(after["layer4"] - found["layer4"]).max() > 0.1
    # Its shortcut passes the constant on: it stands after the first bottleneck.
    parts = {
        kind: {k: v for k, v in variables[kind].items() if k.startswith("layer4_")}
        for kind in ("params", "batch_stats")
    }
    first = resnet.Stage(blocks=1, width=32)
    middle = first.apply(parts, maps["layer3"], train=False)
    last = {kind: {"layer4_0": value["layer4_1"]} for kind, value in parts.items()}
    wanted = resnet.Stage(blocks=1, width=32).apply(last, middle + 1, train=False)
    layout.assert_equal(after["layer4"], wanted, 1e-5)


@pytest.mark.parametrize(("last_stride", "place"), [(1, (24, 8)), (2, (12, 4))])
def test_shapes(last_stride, place):
    model = resnet.ResNet(last_stride=last_stride)
    images = jax.ShapeDtypeStruct((1, 384, 128, 3), jnp.float32)
    variables = shapes(model, images.shape)
    maps = jax.eval_shape(
        functools.partial(model.apply, train=False), variables, images
    )
    assert {name: value.shape[1:] for name, value in maps.items()} == {
        "stem": (96, 32, 64),
        "layer1": (96, 32, 256),
        "layer2": (48, 16, 512),
        "layer3": (24, 8, 1024),
        "layer4": (*place, 2048),
    }


def test_initial_values_are_kaiming_by_fan_out():
    block = resnet.Bottleneck(32)
    init = jax.jit(functools.partial(block.init, train=False))
    params = init(jax.random.key(0), jnp.zeros((1, 4, 4, 64)))["params"]
    middle = np.asarray(params["conv2"]["kernel"])
    np.testing.assert_allclose(middle.std(), (2 / (9 * 32)) ** 0.5, rtol=0.05)
    # A cut-off normal distribution would end at 2.27 of its standard deviations.
    assert np.abs(middle).max() > 2.8 * middle.std()
    first = np.asarray(params["conv1"]["kernel"])
    np.testing.assert_allclose(first.std(), (2 / 32) ** 0.5, rtol=0.05)
    assert (np.asarray(params["bn3"]["scale"]) == 1).all()


def test_bfloat16_keeps_parameters_and_statistics_in_float32():
    exact, _ = outputs(True, train=True)
    maps, collections = outputs(True, train=True, dtype="bfloat16")
    assert maps["layer4"].dtype == jnp.bfloat16
    kept = {leaf.dtype for leaf in jax.tree.leaves(collections)}
    assert kept == {np.dtype("float32")}
    found = np.asarray(maps["layer4"], np.float32)
    assert 1e-4 < layout.relative(found, np.asarray(exact["layer4"])) < 0.1


def test_statistics_in_groups_are_those_of_the_halves():
    grouped, _ = outputs(True, train=True, bn_groups=2)
    model = resnet.ResNet(**SMALL, ibn=True)
    variables = layout.variables(model, (40, 24))
    apply = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    apply = jax.jit(apply)
    for row in (0, 1):
        alone, _ = apply(variables, filling.images(40, 24)[row : row + 1])
        layout.assert_equal(grouped["layer4"][row : row + 1], alone["layer4"])


@pytest.mark.parametrize(
    "changes",
    [
        {"last_stride": 3},
        {"blocks": ()},
        {"blocks": (1, 0)},
        {"blocks": (1, 1, 1, 1, 1)},
        {"dtype": "float16"},
    ],
)
def test_wrong_attributes_are_user_errors(changes):
    with pytest.raises(UserError):
        resnet.ResNet(**changes)
