import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.backbones import patches, transformer, vit
from reid_jax.backbones.attention import attention
from reid_jax.errors import UserError
from tests.backbones import vit_in_numpy
from tests.goldens import filling, layout
from tests.variables import random_variables

TINY = {"image_size": (14, 10), "patch_size": 4, "stride": (4, 4), "width": 12}
TINY |= {"depth": 2, "heads": 3, "mlp_ratio": 2, "extra_tokens": 2}


def make(**changes):
    model = vit.VisionTransformer(**TINY | changes)
    images = jax.ShapeDtypeStruct((1, *model.image_size, 3), jnp.float32)
    init = functools.partial(model.init, train=False)
    return model, random_variables(init, images)


def pixels(size=(14, 10), batch=2):
    rng = np.random.default_rng(1)
    return rng.normal(size=(batch, *size, 3)).astype(np.float32)


def run(model, variables, images):
    return jax.jit(functools.partial(model.apply, train=False))(variables, images)


def sequence(outputs):
    cls = np.asarray(outputs["cls"])[:, None]
    return np.concatenate([cls, outputs["extra"], outputs["patches"]], axis=1)


@pytest.mark.parametrize("stride", [(4, 4), (3, 2)])
def test_equals_numpy(stride):
    model, variables = make(stride=stride)
    found = sequence(run(model, variables, pixels()))
    params = jax.tree.map(lambda leaf: leaf.astype(np.float64), variables["params"])
    expected = vit_in_numpy.forward(
        pixels().astype(np.float64), params, patch_size=4, stride=stride, heads=3
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_bfloat16_keeps_float32_outside_the_matrix_products():
    model, variables = make()
    exact = sequence(run(model, variables, pixels()))
    half, _ = make(dtype="bfloat16")
    outputs = run(half, variables, pixels())
    assert outputs["cls"].dtype == jnp.float32
    difference = np.abs(sequence(outputs) - exact).max()
    assert 1e-5 < difference < 0.1
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}


@pytest.mark.parametrize(
    ("size", "stride", "grid"),
    [
        ((256, 128), (16, 16), (16, 8)),
        ((256, 128), (12, 12), (21, 10)),
        ((256, 128), (11, 11), (22, 11)),
        ((224, 224), (16, 16), (14, 14)),
        ((256, 128), (16, 12), (16, 10)),
    ],
)
def test_grid_size(size, stride, grid):
    assert patches.grid_size(size, 16, stride) == grid


def bilinear(grid, new):
    """Half-pixel centres, edges clamped: one output place at a time."""
    rows, columns, width = grid.shape
    resized = np.zeros((*new, width))
    for y in range(new[0]):
        for x in range(new[1]):
            v = min(max((y + 0.5) * rows / new[0] - 0.5, 0), rows - 1)
            u = min(max((x + 0.5) * columns / new[1] - 0.5, 0), columns - 1)
            top, left = int(v), int(u)
            bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            upper = grid[top, left] * (1 - u + left) + grid[top, right] * (u - left)
            lower = grid[bottom, left] * (1 - u + left) + grid[bottom, right] * (
                u - left
            )
            resized[y, x] = upper * (1 - v + top) + lower * (v - top)
    return resized


@pytest.mark.parametrize("new", [(16, 8), (21, 10), (5, 20)])
def test_resize_position_embedding_equals_a_loop(new):
    embedding = np.random.default_rng(0).normal(size=(1, 1 + 14 * 14, 3))
    resized = patches.resize_position_embedding(
        jnp.asarray(embedding, jnp.float32), (14, 14), new
    )
    expected = bilinear(embedding[0, 1:].reshape(14, 14, 3), new).reshape(-1, 3)
    np.testing.assert_allclose(resized[0, 1:], expected, atol=1e-5)
    np.testing.assert_allclose(resized[0, 0], embedding[0, 0], atol=1e-6)


def test_image_of_another_size_gets_resized_positions():
    model, variables = make()
    images = pixels((18, 12))
    found = sequence(run(model, variables, images))
    params = dict(variables["params"])
    position = params["pos_embed"]
    resized = bilinear(position[0, 1:].reshape(3, 2, 12), (4, 3)).reshape(1, 12, 12)
    params["pos_embed"] = np.concatenate([position[:, :1], resized], axis=1)
    expected = vit_in_numpy.forward(
        images.astype(np.float64), params, patch_size=4, stride=(4, 4), heads=3
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_parameters_are_named_after_timm():
    _, variables = make(depth=1)
    shapes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"])
    }
    assert shapes == {
        "cls_token": (1, 1, 12),
        "pos_embed": (1, 7, 12),
        "extra_tokens": (1, 2, 12),
        "extra_pos_embed": (1, 2, 12),
        "patch_embed/proj/kernel": (4, 4, 3, 12),
        "patch_embed/proj/bias": (12,),
        "blocks_0/norm1/scale": (12,),
        "blocks_0/norm1/bias": (12,),
        "blocks_0/attn/qkv/kernel": (12, 36),
        "blocks_0/attn/qkv/bias": (36,),
        "blocks_0/attn/proj/kernel": (12, 12),
        "blocks_0/attn/proj/bias": (12,),
        "blocks_0/norm2/scale": (12,),
        "blocks_0/norm2/bias": (12,),
        "blocks_0/mlp/fc1/kernel": (12, 24),
        "blocks_0/mlp/fc1/bias": (24,),
        "blocks_0/mlp/fc2/kernel": (24, 12),
        "blocks_0/mlp/fc2/bias": (12,),
        "norm/scale": (12,),
        "norm/bias": (12,),
    }


def test_initial_values():
    model = vit.VisionTransformer(**TINY | {"width": 96, "depth": 1})
    params = jax.jit(functools.partial(model.init, train=False))(
        jax.random.key(0), jnp.zeros((1, 14, 10, 3))
    )["params"]
    for kernel in (
        params["blocks_0"]["attn"]["qkv"]["kernel"],
        params["patch_embed"]["proj"]["kernel"],
        params["pos_embed"],
    ):
        assert abs(float(kernel.std()) - 0.02) < 0.002
    assert (params["blocks_0"]["mlp"]["fc1"]["bias"] == 0).all()


def test_drop_path_drops_whole_images_and_keeps_the_mean():
    branch = jnp.ones((4000, 3, 2))
    kept = transformer.DropPath(0.25).apply(
        {}, branch, train=True, rngs={"drop_path": jax.random.key(0)}
    )
    kept = np.asarray(kept)
    assert set(np.unique(kept)) == {0, np.float32(1 / 0.75)}
    assert (kept == kept[:, :1, :1]).all()
    assert abs((kept[:, 0, 0] > 0).mean() - 0.75) < 0.03
    assert transformer.DropPath(0.25).apply({}, branch, train=False) is branch


def test_drop_path_of_half_precision_keeps_the_mean():
    """0.9 is 0.8984 in bfloat16."""
    kept = transformer.DropPath(0.1).apply(
        *({}, jnp.ones((200, 3), jnp.bfloat16)),
        train=True,
        rngs={"drop_path": jax.random.key(0)},
    )
    np.testing.assert_allclose(np.unique(kept), [0, 1 / 0.9], rtol=1e-6)


def test_drop_path_grows_linearly():
    rates = []

    class Spy(vit.Block):
        def __post_init__(self):
            rates.append(self.drop_path)
            super().__post_init__()

    original, vit.Block = vit.Block, Spy
    try:
        model = vit.VisionTransformer(**TINY | {"depth": 5, "drop_path": 0.2})
        jax.eval_shape(
            functools.partial(model.init, train=False), jax.random.key(0), pixels()
        )
    finally:
        vit.Block = original
    np.testing.assert_allclose(sorted(set(rates)), [0, 0.05, 0.1, 0.15, 0.2])


def test_attention_of_a_query_that_sees_nothing_is_zero_with_finite_gradients():
    rng = np.random.default_rng(0)
    query, key, value = rng.normal(size=(3, 1, 2, 1, 4)).astype(np.float32)
    mask = np.array([[True, False], [False, False]])

    @jax.jit
    @jax.value_and_grad
    def total(inputs):
        output, weights = attention(*inputs, mask)
        return (output**2).sum() + weights[0, 0, 1].sum()

    found, gradients = total((query, key, value))
    np.testing.assert_allclose(found, (value[0, 0] ** 2).sum(), rtol=1e-6)
    for gradient in gradients:
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": (14, 3)}, "smaller than one patch"),
        ({"heads": 5}, "5 heads do not divide"),
        ({"dtype": "float16"}, "float32 or bfloat16"),
    ],
)
def test_mistakes(changes, message):
    with pytest.raises(UserError, match=message):
        vit.VisionTransformer(**TINY | changes)


def test_overlapping_patches_and_resized_positions_equal_the_original():
    model = vit.VisionTransformer((64, 32), stride=(12, 12), width=24, depth=3, heads=3)
    variables = layout.variables(model, (64, 32))
    stored = filling.tensor("pos_embed", (1, 1 + 6 * 6, 24))
    position = patches.resize_position_embedding(stored, (6, 6), (5, 2))
    variables["params"]["pos_embed"] = position
    maps = layout.vit_maps(model, variables, filling.images(64, 32))
    golden = layout.golden("vit")
    assert set(maps) == set(golden)
    for key, value in maps.items():
        layout.assert_equal(value, golden[key])


@pytest.mark.parametrize(
    ("size", "parameters"),
    # timm's counts without the classifier, for 197 positions.
    [("small", 21_665_664), ("base", 85_798_656), ("large", 303_301_632)],
)
def test_named_sizes_have_timm_s_parameter_counts(size, parameters):
    model = vit.VisionTransformer((224, 224), **vit.SIZES[size])
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    init = functools.partial(model.init, train=False)
    params = jax.eval_shape(init, jax.random.key(0), images)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters


def test_camera_embedding_is_added_to_every_token_and_unknown_is_the_mean():
    spy = {"depth": 1, "cameras": 3, "extra_tokens": 1}
    model, variables = make(**spy)
    table = variables["params"]["sie_embed"]
    assert table.shape == (3, 1, 12)
    images = np.repeat(pixels(batch=1), 5, axis=0)
    apply = jax.jit(functools.partial(model.apply, train=False))

    def entering(camera):
        return np.asarray(apply(variables, images, camera=camera)["before_last"])

    plain, _ = make(**spy | {"cameras": 0})
    bare = np.asarray(run(plain, variables, images)["before_last"])
    added = entering(jnp.array([2, 0, 2, -1, 3])) - bare
    mean = table.mean(0)
    for row, own in enumerate((table[2], table[0], table[2], mean, mean)):
        np.testing.assert_allclose(
            added[row], np.broadcast_to(3 * own, added[row].shape), atol=1e-5
        )
    unknown = entering(None) - bare
    np.testing.assert_allclose(
        unknown, np.broadcast_to(3 * mean, unknown.shape), atol=1e-5
    )


class Interrupted(nn.Module):
    """A network whose own layer works between the blocks of its Transformer."""

    backbone: vit.VisionTransformer

    def setup(self):
        self.scale = nn.Dense(12, name="scale")

    def __call__(self, images):
        seen = []

        def between(index, tokens):
            seen.append(index)
            return self.scale(tokens) if index == 0 else tokens

        outputs = self.backbone(images, train=False, between=between)
        assert seen == [0, 1]
        return outputs


def test_a_layer_of_the_caller_between_blocks():
    network = Interrupted(vit.VisionTransformer(**TINY))
    variables = random_variables(network.init, pixels())
    assert set(variables["params"]) == {"backbone", "scale"}
    outputs = jax.jit(network.apply)(variables, pixels())
    params = jax.tree.map(lambda leaf: leaf.astype(np.float64), variables["params"])
    backbone = params["backbone"]
    blocks = [backbone.pop(f"blocks_{i}") for i in (0, 1)]
    final = backbone.pop("norm")
    patches = vit_in_numpy.patches(
        pixels().astype(np.float64), backbone["patch_embed"]["proj"], 4, (4, 4)
    )
    first = [backbone["cls_token"][0] + backbone["pos_embed"][0, :1]]
    first.append(backbone["extra_tokens"][0] + backbone["extra_pos_embed"][0])
    tokens = np.stack(
        [np.concatenate([*first, p + backbone["pos_embed"][0, 1:]]) for p in patches]
    )
    attend = vit_in_numpy.softmax_attention
    tokens = vit_in_numpy.block(tokens, blocks[0], 3, attend)
    tokens = vit_in_numpy.dense(tokens, params["scale"])
    np.testing.assert_allclose(outputs["before_last"], tokens, rtol=1e-4, atol=1e-5)
    tokens = vit_in_numpy.block(tokens, blocks[1], 3, attend)
    expected = vit_in_numpy.layer_norm(tokens, final)
    np.testing.assert_allclose(sequence(outputs), expected, rtol=1e-4, atol=1e-5)


def test_no_camera_embedding_by_default():
    _, variables = make()
    assert "sie_embed" not in variables["params"]


def test_gradients_of_kernels_are_products_of_two_matrices_on_a_cpu():
    """With two axes contracted XLA computes the residual stream's gradient again."""
    model, variables = make()

    def loss(params):
        outputs = model.apply({**variables, "params": params}, pixels(), train=False)
        return jnp.sum(outputs["cls"] ** 2)

    lowered = jax.jit(jax.grad(loss)).lower(variables["params"])
    assert "contracting_dims = [0] x [0]" in lowered.as_text()
    assert "contracting_dims = [0, 1] x [0, 1]" not in lowered.as_text()
