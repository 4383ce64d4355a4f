"""OSNet beside torchreid's, by goldens that `tests/goldens/make_osnet.py` has made."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

from reid_jax.backbones import osnet
from reid_jax.errors import UserError
from tests.goldens import filling, layout
from tests.variables import random_variables

SMALL = {"channels": (16, 64, 96, 128), "feature_dim": 32}
NAMES = {"osnet": "none", "osnet_ibn": "ibn", "osnet_ain": "ain"}
SIZE = (64, 32)


@functools.cache
def outputs(name, train):
    model = osnet.OSNet(**SMALL, instance_norm=NAMES[name])
    variables = layout.variables(model, SIZE)
    images = filling.images(*SIZE, 16)[: None if train else 2]
    apply = functools.partial(model.apply, train=train, mutable=["batch_stats"])
    return jax.jit(apply)(variables, images)


def test_the_network_equals_torchreids():
    """The plain network's is in `tests/weights/test_peers.py`, the others' by hand."""
    maps, collections = outputs("osnet_ibn", train=False)
    golden = layout.golden("osnet_ibn")
    assert set(maps) == {"conv2", "conv3", "conv5", "feature"}
    assert [maps[f"conv{n}"].shape[1:3] for n in (2, 3, 5)] == [(8, 4), (4, 2), (4, 2)]
    for key in ("conv5", "feature"):
        layout.assert_equal(maps[key], golden[f"eval/{key}"], 1e-5)
    before = layout.running_statistics(collections["batch_stats"])
    for key, value in before.items():
        np.testing.assert_array_equal(value, filling.tensor(key, value.shape))


def test_a_training_step_equals_torchreids():
    maps, collections = outputs("osnet_ain", train=True)
    golden = layout.golden("osnet_ain")
    # Statistics of a batch magnify rounding, those of the last 16 rows, which hardly
    # differ, above all: torchreid's own float32 is 4e-5 to 6e-5 from its float64.
    layout.assert_equal(maps["conv5"][:2], golden["train/conv5"], 6e-5)
    layout.assert_equal(maps["feature"], golden["train/feature"], 1e-4)
    after = layout.running_statistics(collections["batch_stats"])
    assert {f"after/{key}" for key in after} == {k for k in golden if "after/" in k}
    for key, value in after.items():
        layout.assert_equal(value, golden[f"after/{key}"], 1e-5)


# Counted with torchreid, without its classifier; the papers say 2.2 M, 1.3, 0.6, 0.2.
COUNTS = {
    "osnet_x1_0": 2_169_508,
    "osnet_x0_75": 1_285_754,
    "osnet_x0_5": 630_034,
    "osnet_x0_25": 201_864,
    "osnet_ibn_x1_0": 2_170_532,
    "osnet_ain_x1_0": 2_169_508,
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_torchreids(name):
    assert osnet.SIZES.keys() == COUNTS.keys()
    model = osnet.OSNet(**osnet.SIZES[name])
    images = jax.ShapeDtypeStruct((1, 256, 128, 3), jnp.float32)
    init = functools.partial(model.init, jax.random.key(0), train=False)
    params = jax.eval_shape(init, images)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == COUNTS[name]


def test_depthwise_equals_a_correlation_of_each_channel():
    features = np.random.default_rng(0).normal(size=(2, 5, 3, 4)).astype(np.float32)
    module = osnet.Depthwise()
    variables = random_variables(module.init, features)
    kernel = np.asarray(variables["params"]["kernel"], np.float64)
    found = module.apply(variables, features)
    for image in range(2):
        for channel in range(4):
            expected = signal.correlate2d(
                features[image, ..., channel], kernel[..., 0, channel], mode="same"
            )
            np.testing.assert_allclose(
                found[image, ..., channel], expected, rtol=1e-5, atol=1e-6
            )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": (16, 64, 96)}, "give four numbers"),
        ({"channels": (16, 64, 32, 128)}, "at least 64, so that a gate"),
        ({"instance_norm": "in"}, "instance_norm is one of none, ibn, ain"),
        ({"dtype": "int8"}, "dtype is float32 or bfloat16"),
    ],
)
def test_networks_that_cannot_be_built(fields, message):
    with pytest.raises(UserError, match=message):
        osnet.OSNet(**fields)
