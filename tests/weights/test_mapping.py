"""Names and layouts: other libraries' into ours, and back."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.backbones.hrnet import HRNet
from reid_jax.backbones.resnet import ResNet
from reid_jax.backbones.vit import VisionTransformer
from reid_jax.errors import UserError
from reid_jax.weights import files, mapping
from tests.variables import random_variables
from tests.weights import state_dicts
from tests.weights.test_files import assert_same


def mapped(arrays, convention=files.PYTORCH):
    return mapping.to_ours(files.WeightFile(pathlib.Path("w"), convention, arrays))


PYTORCH_NAMES = [
    # timm
    ("cls_token", (1, 1, 4), "params/backbone/cls_token"),
    (
        "patch_embed.proj.weight",
        (4, 3, 2, 1),
        "params/backbone/patch_embed/proj/kernel",
    ),
    ("blocks.11.norm1.weight", (4,), "params/backbone/blocks_11/norm1/scale"),
    ("blocks.0.attn.qkv.weight", (12, 4), "params/backbone/blocks_0/attn/qkv/kernel"),
    ("blocks.0.attn.qkv.bias", (12,), "params/backbone/blocks_0/attn/qkv/bias"),
    ("head.weight", (5, 4), None),
    ("pre_logits.fc.bias", (4,), None),
    # torchvision and IBN-Net
    ("bn1.running_mean", (4,), "batch_stats/backbone/bn1/mean"),
    ("layer1.0.bn3.running_var", (4,), "batch_stats/backbone/layer1_0/bn3/var"),
    ("layer1.0.bn3.num_batches_tracked", (), None),
    (
        "layer1.0.downsample.1.weight",
        (4,),
        "params/backbone/layer1_0/downsample_1/scale",
    ),
    ("layer2.3.bn1.IN.weight", (4,), "params/backbone/layer2_3/bn1/IN/scale"),
    (
        "layer2.3.bn1.BN.running_var",
        (4,),
        "batch_stats/backbone/layer2_3/bn1/BN/var",
    ),
    ("fc.weight", (5, 4), None),
    # HRNet
    (
        "stage3.1.fuse_layers.2.0.1.0.weight",
        (4, 4, 3, 3),
        "params/backbone/stage3_1/fuse_layers_2_0_1_0/kernel",
    ),
    (
        "transition1.1.0.1.bias",
        (4,),
        "params/backbone/transition1_1_0_1/bias",
    ),
    (
        "incre_modules.0.0.conv1.weight",
        (4, 4, 1, 1),
        "params/backbone/incre_modules_0_0/conv1/kernel",
    ),
    ("downsamp_modules.0.0.weight", (4, 4, 3, 3), None),
    ("final_layer.1.running_mean", (4,), None),
    ("classifier.bias", (5,), None),
]


WRAPPERS = (
    *("", "module.", "base.", "module.base.", "model.", "backbone.", "_orig_mod."),
    *("module._orig_mod.", "_orig_mod.module.", "teacher.", "teacher.backbone."),
    *("student.module.backbone.", "module.encoder_q.", "encoder_q."),
)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(("name", "shape", "path"), PYTORCH_NAMES)
def test_pytorchs_names(wrapper, name, shape, path):
    array = state_dicts.fill({name: shape})[name]
    result = mapped({wrapper + name: array})
    if path is None:
        assert not result.arrays
        assert result.skipped == (wrapper + name,)
        return
    ((got_path, got),) = result.arrays.items()
    assert got_path == path
    assert result.names == {path: wrapper + name}
    if array.ndim == 2:
        array = array.T
    elif array.ndim == 4:  # [out, in, h, w] to [h, w, in, out]
        array = np.moveaxis(array, (0, 1, 2, 3), (3, 2, 0, 1))
    np.testing.assert_array_equal(got, array)


BACKBONES = {
    "vit": VisionTransformer(
        image_size=(32, 16), patch_size=8, stride=(8, 8), width=12, depth=3, heads=3,
        extra_tokens=2,
    ),
    "resnet": ResNet(),
    "resnet_ibn": ResNet(ibn=True),
    "hrnet": HRNet(modules=(1, 2, 1), blocks=2),
}  # fmt: skip


@pytest.mark.parametrize("name", BACKBONES)
def test_round_trip_bit_for_bit(name, tmp_path):
    """Our parameters, a PyTorch-named file, our parameters."""
    backbone = BACKBONES[name]
    shapes = jax.eval_shape(
        lambda: backbone.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
    )
    rng = np.random.default_rng(0)
    ours = {
        f"{path.replace('/', '/backbone/', 1)}": rng.random(leaf.shape, np.float32)
        for path, leaf in files.flatten(shapes).items()
    }
    state = mapping.to_pytorch(ours)
    assert len(state) == len(ours)
    files.write_safetensors(tmp_path / "w.safetensors", state)
    back = mapping.to_ours(files.read(tmp_path / "w.safetensors"))
    assert_same(back.arrays, ours)
    assert not back.skipped
    assert mapping.describe(ours).lower().startswith(name.split("_")[0])


def test_back_leaves_the_rest_out():
    ours = {"params/backbone/norm/scale": np.ones(2), "params/head/kernel": np.ones(3)}
    assert list(mapping.to_pytorch(ours)) == ["norm.weight"]


def transformers_vit(state):
    """timm's state under the names of Hugging Face's transformers."""
    names = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "norm": "layernorm",
        "head": "classifier",
    }
    block = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    for index in range(2):
        layer = f"encoder.layer.{index}"
        names |= {f"blocks.{index}.{a}": f"{layer}.{b}" for a, b in block.items()}
    theirs = {}
    for name, array in state.items():
        stem, _, leaf = name.rpartition(".")
        if ".qkv" in name:
            place = f"encoder.layer.{stem.split('.')[1]}.attention.attention"
            for part, rows in zip(
                ("query", "key", "value"), np.split(array, 3), strict=True
            ):
                theirs[f"vit.{place}.{part}.{leaf}"] = rows
        elif stem:
            prefix = "" if stem == "head" else "vit."
            theirs[f"{prefix}{names[stem]}.{leaf}"] = array
        else:
            theirs[f"vit.{names[leaf]}"] = array
    return theirs


def test_transformers_vit():
    state = state_dicts.timm_vit()
    theirs = transformers_vit(state)
    theirs["vit.pooler.dense.weight"] = np.ones((24, 24), np.float32)
    result = mapped(theirs)
    assert_same(result.arrays, mapped(state).arrays)
    assert set(result.skipped) == {
        *("classifier.weight", "classifier.bias", "vit.pooler.dense.weight")
    }
    del theirs["vit.encoder.layer.1.attention.attention.key.bias"]
    partial = mapped(theirs).arrays  # what stays apart fits nowhere
    assert partial.keys() - result.arrays.keys() == {
        "params/backbone/blocks_1/attention/attention/value/bias"
    }
    assert partial["params/backbone/blocks_1/attn/qkv/bias"].shape == (24,)


def test_ours_keeps_the_backbone():
    arrays = {
        "params/backbone/norm/scale": np.ones(2),
        "params/head/kernel": np.ones(3),
    }
    result = mapped(arrays, files.OURS)
    assert list(result.arrays) == ["params/backbone/norm/scale"]
    assert result.skipped == ("params/head/kernel",)


@pytest.mark.parametrize(
    ("taken", "beside"),
    [
        ("module.encoder_q.", ("module.encoder_k.", "module.queue")),
        ("encoder_q.", ("encoder_k.", "queue_ptr")),
        ("teacher.", ("student.",)),
        ("module.teacher.backbone.", ("module.student.backbone.",)),
    ],
)
def test_the_network_that_is_wanted_of_two(taken, beside):
    names = [
        "norm.weight" if prefix.endswith(".") else "" for prefix in (taken, *beside)
    ]
    full = [prefix + name for prefix, name in zip((taken, *beside), names, strict=True)]
    arrays = {name: np.full(2, i, np.float32) for i, name in enumerate(full)}
    result = mapped(arrays)
    assert result.names == {"params/backbone/norm/scale": full[0]}
    np.testing.assert_array_equal(result.arrays["params/backbone/norm/scale"], [0, 0])
    assert result.skipped == tuple(full[1:])


@pytest.mark.parametrize("prefix", ["modules.", "encoder_k.", "queue.", "orig_mod."])
def test_other_prefixes_stay(prefix):
    (path,) = mapped({f"{prefix}norm.weight": np.ones(2)}).arrays
    assert path == f"params/backbone/{prefix.replace('.', '/')}norm/scale"


def test_two_names_of_one_parameter():
    arrays = {"module.norm.weight": np.ones(2), "norm.weight": np.ones(2)}
    with pytest.raises(UserError, match=r"module\.norm\.weight and norm\.weight"):
        mapped(arrays)


@pytest.fixture
def transreid():
    """TransReID's state dict, and the ViTs that its three parts are from."""
    vit = state_dicts.timm_vit(depth=3)
    shapes = {"base.sie_embed": (6, 1, 24), "bottleneck_1.weight": (24,)}
    shapes |= {"classifier_1.weight": (5, 24), "bottleneck.running_mean": (24,)}
    arrays = {f"base.{k}": v for k, v in vit.items() if not k.startswith("head")}
    arrays |= state_dicts.fill(shapes)
    branches = {
        branch: state_dicts.timm_vit(depth=1, seed=seed)
        for branch, seed in (("b1", 1), ("b2", 2))
    }
    for branch, state in branches.items():
        for name, array in state.items():
            if name.startswith("blocks.0."):
                arrays[f"{branch}.0.{name.removeprefix('blocks.0.')}"] = array
            elif name.startswith("norm."):
                arrays[f"{branch}.1.{name.removeprefix('norm.')}"] = array
    return arrays, {"base": vit} | branches


def test_transreid_with_its_local_branch(transreid):
    """The last block and norm are those of `b1`; the backbone's own are unused."""
    arrays, parts = transreid
    result = mapped(arrays)

    def kernel(path):
        return result.arrays[f"params/{path}/attn/qkv/kernel"].T

    weight = "attn.qkv.weight"
    np.testing.assert_array_equal(
        kernel("backbone/blocks_1"), parts["base"][f"blocks.1.{weight}"]
    )
    for path, branch in (("backbone/blocks_2", "b1"), ("local/block", "b2")):
        wanted = parts[branch][f"blocks.0.{weight}"]
        np.testing.assert_array_equal(kernel(path), wanted)
    for path, branch in (("backbone/norm", "b1"), ("local/norm", "b2")):
        wanted = parts[branch]["norm.weight"]
        np.testing.assert_array_equal(result.arrays[f"params/{path}/scale"], wanted)
    assert result.arrays["params/backbone/sie_embed"].shape == (6, 1, 24)
    unused = {n for n in arrays if n.startswith(("base.blocks.2.", "base.norm."))}
    heads = {n for n in arrays if n.startswith(("bottleneck", "classifier"))}
    assert set(result.skipped) == unused | heads


def test_transreids_names_and_back(transreid, tmp_path):
    ours = mapped(transreid[0]).arrays
    state = mapping.to_pytorch(ours)
    assert_same(mapped(state).arrays, ours)
    heads = {n for n in transreid[0] if n.startswith(("bottleneck", "classifier"))}
    assert state.keys() == transreid[0].keys() - heads
    assert_same(mapped(ours, files.OURS).arrays, ours)  # as converted


def google_vit(heads=3, width=12, depth=2, block="MlpBlock_3", second="LayerNorm_2"):
    size = width // heads
    shapes = {
        "cls": (1, 1, width),
        "Transformer/posembed_input/pos_embedding": (1, 9, width),
        "embedding/kernel": (8, 8, 3, width),
        "embedding/bias": (width,),
        "Transformer/encoder_norm/scale": (width,),
        "Transformer/encoder_norm/bias": (width,),
        "head/kernel": (width, 5),
        "pre_logits/bias": (width,),
    }
    for index in range(depth):
        prefix = f"Transformer/encoderblock_{index}"
        for norm in ("LayerNorm_0", second):
            shapes[f"{prefix}/{norm}/scale"] = (width,)
            shapes[f"{prefix}/{norm}/bias"] = (width,)
        attention = f"{prefix}/MultiHeadDotProductAttention_1"
        for part in ("query", "key", "value"):
            shapes[f"{attention}/{part}/kernel"] = (width, heads, size)
            shapes[f"{attention}/{part}/bias"] = (heads, size)
        shapes[f"{attention}/out/kernel"] = (heads, size, width)
        shapes[f"{attention}/out/bias"] = (width,)
        for dense, (into, out) in enumerate(((width, 4 * width), (4 * width, width))):
            shapes[f"{prefix}/{block}/Dense_{dense}/kernel"] = (into, out)
            shapes[f"{prefix}/{block}/Dense_{dense}/bias"] = (out,)
    return state_dicts.fill(shapes)


@pytest.mark.parametrize("prefix", ["", "opt/target/", "params/"])
def test_google_has_every_parameter_and_computes_the_same_attention(prefix):
    arrays = google_vit()
    result = mapped({prefix + k: v for k, v in arrays.items()}, files.GOOGLE)
    backbone = VisionTransformer(
        image_size=(16, 32), patch_size=8, stride=(8, 8), width=12, depth=2, heads=3
    )
    images = np.zeros((1, 16, 32, 3), np.float32)
    wanted = random_variables(lambda key: backbone.init(key, images, train=False))
    shapes = {
        f"params/backbone/{path.removeprefix('params/')}": leaf.shape
        for path, leaf in files.flatten(wanted).items()
    }
    assert {p: a.shape for p, a in result.arrays.items()} == shapes
    assert set(result.skipped) == {f"{prefix}head/kernel", f"{prefix}pre_logits/bias"}

    # Google's own layer, written as it writes it: heads are axes of the kernels.
    tokens = np.random.default_rng(1).normal(size=(5, 12))
    source = "Transformer/encoderblock_1/MultiHeadDotProductAttention_1"
    projected = np.concatenate(
        [
            np.einsum("td,dhk->thk", tokens, arrays[f"{source}/{part}/kernel"])
            + arrays[f"{source}/{part}/bias"]
            for part in ("query", "key", "value")
        ]
    ).reshape(3, 5, 12)
    ours = "params/backbone/blocks_1/attn"
    qkv = tokens @ result.arrays[f"{ours}/qkv/kernel"]
    qkv = (qkv + result.arrays[f"{ours}/qkv/bias"]).reshape(5, 3, 12)
    np.testing.assert_allclose(qkv.swapaxes(0, 1), projected, rtol=1e-5, atol=1e-5)
    out = np.einsum(
        "thk,hkd->td", projected[2].reshape(5, 3, 4), arrays[f"{source}/out/kernel"]
    )
    got = projected[2] @ result.arrays[f"{ours}/proj/kernel"]
    np.testing.assert_allclose(got, out, rtol=1e-4, atol=1e-4)


def test_google_blocks_do_not_swap_their_layers():
    arrays = google_vit(block="MlpBlock_0", second="LayerNorm_1")
    result = mapped(arrays, files.GOOGLE).arrays
    source, ours = "Transformer/encoderblock_1", "params/backbone/blocks_1"
    for theirs, own in (
        ("LayerNorm_0/scale", "norm1/scale"),
        ("LayerNorm_1/scale", "norm2/scale"),
        ("MlpBlock_0/Dense_0/kernel", "mlp/fc1/kernel"),
        ("MlpBlock_0/Dense_1/bias", "mlp/fc2/bias"),
    ):
        np.testing.assert_array_equal(
            result[f"{ours}/{own}"], arrays[f"{source}/{theirs}"]
        )


def test_google_with_a_part_missing():
    arrays = google_vit()
    del arrays["Transformer/encoderblock_1/MultiHeadDotProductAttention_1/key/bias"]
    result = mapped(arrays, files.GOOGLE).arrays
    assert "params/backbone/blocks_1/attn/qkv/bias" not in result
