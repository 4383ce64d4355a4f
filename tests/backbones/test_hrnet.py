import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.backbones import hrnet
from reid_jax.errors import UserError
from tests.goldens import filling, layout

SMALL = {"width": 4, "modules": (1, 2, 1), "blocks": 1, "incre": 2}


@functools.cache
def outputs(train, **changes):
    model = hrnet.HRNet(**SMALL | changes)
    variables = layout.variables(model, (64, 32))
    apply = functools.partial(model.apply, train=train, mutable=["batch_stats"])
    # The statistics of the coarsest stream, two places per image, need several images.
    images = filling.images(64, 32, 6 if train else 2)
    return jax.jit(apply)(variables, images)


def test_streams_before_and_after_incre_equal_the_original():
    golden = layout.golden("hrnet")
    maps = layout.flat(outputs(train=False)[0])
    assert len(maps) == 8
    for key, value in maps.items():
        layout.assert_equal(value, golden[f"eval/{key}"])


def test_training_step_equals_the_original():
    golden = layout.golden("hrnet")
    maps, collections = outputs(train=True)
    for index, value in enumerate(maps["incre"]):
        layout.assert_equal(value, golden[f"train/incre{index}"])
    after = layout.running_statistics(collections["batch_stats"])
    assert {f"after/{key}" for key in after} == {
        key for key in golden if key.startswith("after/")
    }
    for key, value in after.items():
        layout.assert_equal(value, golden[f"after/{key}"])


@functools.cache
def full_size():
    model = hrnet.HRNet()
    images = jax.ShapeDtypeStruct((1, 256, 128, 3), jnp.float32)
    init = functools.partial(model.init_with_output, train=False)
    return jax.eval_shape(init, jax.random.key(0), images)


def test_parameter_counts_are_those_of_the_literature():
    _, variables = full_size()
    sizes = {
        name: sum(leaf.size for leaf in jax.tree.leaves(module))
        for name, module in variables["params"].items()
    }
    incre = sum(size for name, size in sizes.items() if name.startswith("incre_"))
    assert sum(sizes.values()) - incre == 29_305_536
    assert sum(sizes.values()) == 30_881_856


def test_shapes():
    maps, _ = full_size()
    places = [(64, 32), (32, 16), (16, 8), (8, 4)]
    for name, widths in (
        ("streams", (32, 64, 128, 256)),
        ("incre", (128, 256, 512, 1024)),
    ):
        assert [value.shape[1:] for value in maps[name]] == [
            (*place, width) for place, width in zip(places, widths, strict=True)
        ]


def test_upsample_repeats():
    features = np.arange(12.0).reshape(1, 2, 3, 2)
    expected = features.repeat(4, axis=1).repeat(4, axis=2)
    np.testing.assert_array_equal(hrnet.upsample(jnp.asarray(features), 4), expected)


def test_layer1_of_the_first_stream_s_width_is_not_narrowed():
    model = hrnet.HRNet(**SMALL | {"stem": 1})
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    init = functools.partial(model.init, train=False)
    params = jax.eval_shape(init, jax.random.key(0), images)["params"]
    names = {name for name in params if name.startswith("transition1")}
    assert names == {"transition1_1_0_0", "transition1_1_0_1"}


def test_bfloat16_keeps_parameters_and_statistics_in_float32():
    model = hrnet.HRNet(**SMALL, dtype="bfloat16")
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    init = functools.partial(model.init_with_output, train=False)
    maps, variables = jax.eval_shape(init, jax.random.key(0), images)
    assert {value.dtype for value in jax.tree.leaves(maps)} == {jnp.dtype("bfloat16")}
    kept = {leaf.dtype for leaf in jax.tree.leaves(variables)}
    assert kept == {np.dtype("float32")}


def test_wrong_attributes_and_images_are_user_errors():
    with pytest.raises(UserError, match="modules"):
        hrnet.HRNet(modules=(1, 1))
    with pytest.raises(UserError, match="dtype"):
        hrnet.HRNet(dtype="float16")
    model = hrnet.HRNet(**SMALL)
    images = jax.ShapeDtypeStruct((1, 60, 32, 3), jnp.float32)
    with pytest.raises(UserError, match="60 x 32"):
        jax.eval_shape(
            functools.partial(model.init, train=False), jax.random.key(0), images
        )
