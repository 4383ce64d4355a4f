"""Loading into a method's variables: what is reported, and what is refused."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from reid_jax import weights
from reid_jax.errors import UserError
from reid_jax.models import aaformer, cacenet
from reid_jax.runtime import sharding
from reid_jax.weights import files, mapping
from tests.variables import random_variables
from tests.weights import state_dicts, torch_writer

SIZE = (64, 32)
TINY = {"patch_size": 8, "stride": (8, 8), "width": 24, "depth": 2, "heads": 3}
GRID = (8, 4)
FILE_GRID = (4, 4)
BATCH = {"image": np.zeros((2, *SIZE, 3), np.uint8)}


def variables_of(tokens="none"):
    """Of a plain ViT, or with tokens="part" of AAformer."""
    method = aaformer.Method(5, SIZE, tokens=tokens, **TINY)
    return random_variables(method.init, BATCH)


@pytest.fixture
def write(tmp_path):
    """Writes a state dict, changed by keywords, as a `.pth` file."""

    def write(state=None, **changes):
        state = dict(state or state_dicts.timm_vit()) | changes
        state = {name: array for name, array in state.items() if array is not None}
        return str(torch_writer.write(tmp_path / "w.pth", state))

    return write


def resnet_method(**fields):
    return cacenet.Method(5, SIZE, width=2, blocks=(1, 1, 1, 1), **fields)


def load(path, variables=None, **options):
    variables = variables_of() if variables is None else variables
    grids = {"position_grid": GRID, "pretrained_grid": FILE_GRID}
    return weights.load_pretrained(variables, path, **grids | options)


def bilinear(grid, rows, columns):
    """[h, w, D] resized with half-pixel centres, in float64."""
    height, width = grid.shape[:2]
    result = np.empty((rows, columns, grid.shape[2]))
    for i in range(rows):
        for j in range(columns):
            y = np.clip((i + 0.5) * height / rows - 0.5, 0, height - 1)
            x = np.clip((j + 0.5) * width / columns - 0.5, 0, width - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = grid[top, left] * (left + 1 - x) + grid[top, right] * (x - left)
            lower = grid[bottom, left] * (left + 1 - x) + grid[bottom, right] * (
                x - left
            )
            result[i, j] = upper * (top + 1 - y) + lower * (y - top)
    return result


@pytest.mark.parametrize("tokens", ["none", "part"])
def test_values_and_report(write, capsys, tokens):
    state = state_dicts.timm_vit()
    before = variables_of(tokens)
    after, report = load(write(), before)
    assert jax.tree.structure(after) == jax.tree.structure(before)
    backbone = after["params"]["backbone"]
    np.testing.assert_array_equal(
        backbone["blocks_1"]["mlp"]["fc1"]["kernel"], state["blocks.1.mlp.fc1.weight"].T
    )
    np.testing.assert_array_equal(
        backbone["patch_embed"]["proj"]["kernel"],
        state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
    )
    np.testing.assert_array_equal(backbone["cls_token"], state["cls_token"])
    position = state["pos_embed"]
    np.testing.assert_array_equal(backbone["pos_embed"][:, 0], position[:, 0])
    wanted = bilinear(position[0, 1:].reshape(4, 4, 24), *GRID).reshape(-1, 24)
    np.testing.assert_allclose(backbone["pos_embed"][0, 1:], wanted, atol=1e-6)

    flat_before, flat_after = files.flatten(before), files.flatten(after)
    extras = {"extra_tokens", "extra_pos_embed"} if tokens == "part" else set()
    fresh = {p for p in flat_before if "/backbone/" not in p}
    fresh |= {f"params/backbone/{name}" for name in extras}
    assert set(report.missing) == fresh
    for path in flat_before:
        same = np.array_equal(flat_before[path], flat_after[path])
        assert same == (path in fresh), path
    assert len(report.loaded) == len(state) - 3  # pos_embed and the classifier
    assert report.resized == ("params/backbone/pos_embed 4 x 4 to 8 x 4",)
    assert report.skipped == ("head.weight", "head.bias")
    assert report.unexpected == report.copied == ()
    printed = capsys.readouterr().out
    assert printed == f"{report}\n"
    assert "ViT of width 24, depth 2, patch 8" in printed
    assert f"loaded        {len(report.loaded)}\n" in printed
    assert "on purpose: head.weight, head.bias" in printed


def test_any_format_gives_the_same(write, tmp_path):
    state = state_dicts.timm_vit()
    files.write_safetensors(tmp_path / "w.safetensors", state)
    legacy = torch_writer.write(
        tmp_path / "l.pth",
        {"state_dict": {f"module.{k}": v for k, v in state.items()}},
        legacy=True,
    )
    wanted, _ = load(write())
    for path in (tmp_path / "w.safetensors", legacy):
        got, _ = load(str(path))
        jax.tree.map(np.testing.assert_array_equal, got, wanted)


def test_equal_grids_are_not_resized(write):
    state = state_dicts.timm_vit(tokens=33)
    after, report = load(write(state), position_grid=None, pretrained_grid=None)
    assert report.resized == ()
    np.testing.assert_array_equal(
        after["params"]["backbone"]["pos_embed"], state["pos_embed"]
    )


def test_keeps_sharding_dtype_and_owns_its_memory(write):
    mesh = sharding.make_mesh()
    layout = NamedSharding(mesh, PartitionSpec())
    before = jax.device_put(variables_of(), layout)
    after, _ = load(write(), before)
    for leaf in jax.tree.leaves(after):
        assert isinstance(leaf, jax.Array)
        assert leaf.sharding == layout
        assert leaf.dtype == np.float32

    half = state_dicts.timm_vit()
    half = {name: array.astype(np.float16) for name, array in half.items()}
    shapes = jax.eval_shape(lambda: variables_of())
    after, report = load(write(half), shapes)
    flat = files.flatten(after)
    for path in report.loaded:
        assert type(flat[path]) is np.ndarray
        assert flat[path].dtype == np.float32
        assert flat[path].flags.owndata
    for path in report.missing:
        assert isinstance(flat[path], jax.ShapeDtypeStruct)


def test_branches_start_as_copies(write):
    state = state_dicts.timm_vit()
    before = variables_of()
    backbone = before["params"]["backbone"]
    local = {"block": backbone["blocks_1"], "norm": backbone["norm"]}
    local = jax.tree.map(np.copy, local)
    before = {**before, "params": {**before["params"], "local": local}}
    copies = {"local/block": "backbone/blocks_1", "local/norm": "backbone/norm"}
    after, report = load(write(), before, copies=copies)
    got = after["params"]
    jax.tree.map(
        np.testing.assert_array_equal,
        got["local"],
        {"block": got["backbone"]["blocks_1"], "norm": got["backbone"]["norm"]},
    )
    np.testing.assert_array_equal(got["local"]["norm"]["scale"], state["norm.weight"])
    assert len(report.copied) == 14
    assert "14  in further branches: params/local/block" in str(report)
    scales = (got["local"]["norm"]["scale"], got["backbone"]["norm"]["scale"])
    assert not np.shares_memory(*scales)
    with pytest.raises(UserError, match="missing in the file: params/local/block"):
        load(write(), before, copies={"local/": "backbone/nothing"})


def test_a_stage_that_only_branches_have(tmp_path):
    """ResNet's layer4, cut off the trunk and twice in the network."""
    shapes = {"layer3.0.conv1.weight": (4, 3, 1, 1)}
    shapes |= {"layer4.0.conv1.weight": (4, 4, 1, 1), "layer4.0.bn1.running_var": (4,)}
    path = torch_writer.write(tmp_path / "w.pth", state_dicts.fill(shapes))

    def stage(name, into):
        return {name: {"conv1": {"kernel": np.zeros((1, 1, into, 4), np.float32)}}}

    branches = {name: stage("layer4_0", 4) for name in ("global", "part")}
    norm = {"layer4_0": {"bn1": {"var": np.ones(4, np.float32)}}}
    before = {
        "params": {"backbone": stage("layer3_0", 3), **branches},
        "batch_stats": {"global": norm, "part": norm},
    }
    copies = {f"{name}/layer4": "backbone/layer4" for name in branches}
    after, report = load(str(path), before, copies=copies)
    assert len(report.copied) == 4
    assert report.missing == report.unexpected == ()
    arrays = files.read(path).arrays
    for name in branches:
        np.testing.assert_array_equal(
            after["params"][name]["layer4_0"]["conv1"]["kernel"][0, 0],
            arrays["layer4.0.conv1.weight"][:, :, 0, 0].T,
        )
        np.testing.assert_array_equal(
            after["batch_stats"][name]["layer4_0"]["bn1"]["var"],
            arrays["layer4.0.bn1.running_var"],
        )


def test_batch_statistics(tmp_path):
    path = torch_writer.write(
        tmp_path / "w.pth",
        state_dicts.fill(
            {
                "bn1.weight": (4,),
                "bn1.bias": (4,),
                "bn1.running_mean": (4,),
                "bn1.running_var": (4,),
                "bn1.num_batches_tracked": (1,),
            }
        ),
    )
    bn = {"mean": np.zeros(4, np.float32), "var": np.ones(4, np.float32)}
    affine = {"scale": np.ones(4, np.float32), "bias": np.zeros(4, np.float32)}
    before = {
        "params": {"backbone": {"bn1": affine}},
        "batch_stats": {"backbone": {"bn1": bn}, "head": {"bn": bn}},
    }
    after, report = load(str(path), before)
    arrays = files.read(path).arrays
    got = after["batch_stats"]["backbone"]["bn1"]
    np.testing.assert_array_equal(got["mean"], arrays["bn1.running_mean"])
    np.testing.assert_array_equal(got["var"], arrays["bn1.running_var"])
    assert len(report.loaded) == 4
    assert set(report.missing) == {
        "batch_stats/head/bn/mean",
        "batch_stats/head/bn/var",
    }
    assert report.skipped == ("bn1.num_batches_tracked",)


# What is refused.


def test_unexpected_is_an_error_unless_allowed_by_name(write):
    path = write(dist_token=np.ones((1, 1, 24), np.float32))
    with pytest.raises(UserError, match=r"only in the file: dist_token\n.*allow_un"):
        load(path)
    with pytest.raises(UserError, match="only in the file: dist_token"):
        load(path, allow_unexpected=("dist",))
    _, report = load(path, allow_unexpected=("other", "dist_.*"))
    assert report.unexpected == ("dist_token",)
    assert "1  allowed by the config: dist_token" in str(report)
    with pytest.raises(UserError, match=r"allow_unexpected: '\(' is not a regular"):
        load(path, allow_unexpected=("(",))


def test_a_parameter_that_the_file_lacks(write):
    path = write(**{"blocks.1.attn.qkv.bias": None})
    with pytest.raises(
        UserError, match=r"missing in the file: params/backbone/blocks_1"
    ):
        load(path)


def test_non_local_blocks_stay_as_initialised(tmp_path):
    plain, extended = (
        resnet_method(non_local=non_local) for non_local in (False, True)
    )
    trained = files.flatten(random_variables(plain.init, BATCH, seed=1))
    path = tmp_path / "w.safetensors"
    files.write_safetensors(path, mapping.to_pytorch(trained))
    before = random_variables(extended.init, BATCH)
    after, report = load(str(path), before, position_grid=None)
    added = {p for p in files.flatten(before) if "/backbone/nonlocal" in p}
    assert len(added) == 3 * 4 * 2
    assert added <= set(report.missing)
    assert "ResNet of 4 blocks" in report.source
    flat_before, flat_after = files.flatten(before), files.flatten(after)
    for name, value in flat_after.items():
        if "/backbone/" in name:
            wanted = flat_before if name in added else trained
            np.testing.assert_array_equal(value, wanted[name])


def test_other_shapes_name_both(write):
    path = write(**{"norm.weight": np.ones(7, np.float32)})
    match = r"params/backbone/norm/scale: \(7,\) in the file, \(24,\) here"
    with pytest.raises(UserError, match=match):
        load(path)
    with pytest.raises(UserError, match="ViT of width 12, depth 2") as error:
        load(write(state_dicts.timm_vit(width=12)))
    assert "the config's backbone: ViT of width 24, depth 2, patch 8" in str(
        error.value
    )


def test_another_depth(write):
    with pytest.raises(UserError, match=r"missing in the file: .*blocks_1/.* more"):
        load(write(state_dicts.timm_vit(depth=1)))
    with pytest.raises(UserError, match=r"only in the file: blocks\.2\..* more"):
        load(write(state_dicts.timm_vit(depth=3)))


def test_another_architecture(write):
    shapes = {"conv1.weight": (64, 3, 7, 7), "layer1.0.conv1.weight": (64, 64, 1, 1)}
    path = write(state_dicts.fill(shapes | {"fc.weight": (10, 64)}))
    with pytest.raises(UserError, match="the file holds: ResNet of 1 blocks") as error:
        load(path)
    assert "the config's backbone: ViT of width 24" in str(error.value)
    assert "conv1.weight" in str(error.value)


@pytest.mark.parametrize(
    ("grids", "match"),
    [
        ({"pretrained_grid": (4, 5)}, r"embedding of 16 patches .* not the 4 x 5 that"),
        ({"pretrained_grid": None}, r"how its 16 patches lie: .*pretrained_grid=14,14"),
        ({"pretrained_grid": (0, 4)}, r"pretrained_grid is \(0, 4\); it must be rows"),
        ({"pretrained_grid": (4,)}, r"pretrained_grid is \(4,\); it must be rows"),
        ({"pretrained_grid": ("a", 4)}, "it must be rows"),
        ({"pretrained_grid": 16}, "it must be rows"),
        ({"position_grid": None}, "method does not say its rows and columns"),
        ({"position_grid": (4, 4)}, "method does not say its rows and columns"),
    ],
)
def test_position_embeddings_that_cannot_be_resized(write, grids, match):
    with pytest.raises(UserError, match=match):
        load(write(), **grids)


ODD = {
    "vit_enormous": "known are: shipped/hrnet, .*, vit_base_patch16_224, ",
    "w\0.pth": r"'w\\x00\.pth' is no path: it holds a NUL",
    "x" * 5000: "pretrained weights 'xx",
    "~nobody-of-this-name/w.pth": "pretrained weights '~nobody",
    "\ud800": r"pretrained weights '\\ud800'",
    "https://example.org/w.pth": "of addresses, only gs://",
    "/dev/null": "neither a file nor a folder",
    "/proc/self": "no checkpoint in /proc/self",
    "/": "no checkpoint in /",
    "a\n/b": r"pretrained weights 'a\\n/b': neither",
    "resnet50 ": "known are: ",
}


@pytest.mark.parametrize("name", ODD, ids=range(len(ODD)))
def test_neither_path_nor_name(name):
    with pytest.raises(UserError, match=ODD[name]):
        load(name, {"params": {}})


@pytest.mark.parametrize("value", [5, None, ("w.pth",), b"w.pth", 1.5])
def test_no_text_at_all(value):
    with pytest.raises(UserError, match=r"pretrained weights .*: it must be a path"):
        load(value, {"params": {}})


@pytest.mark.parametrize("value", [(5,), (None,), ("(",), ("a**",)])
def test_expressions_that_are_none(write, value):
    with pytest.raises(
        UserError, match=r"config\.allow_unexpected: .* is not a regular"
    ):
        load(write(), {"params": {}}, allow_unexpected=value)
