"""Folders of Hugging Face's: single, sharded, and damaged."""

import json

import numpy as np
import pytest

from reid_jax.errors import UserError
from reid_jax.weights import files
from tests.weights import state_dicts, torch_writer
from tests.weights.test_files import assert_same

STATE = state_dicts.timm_vit()


def test_a_single_file(tmp_path):
    torch_writer.write(tmp_path / "pytorch_model.bin", {"a": np.ones(2, np.float32)})
    assert files.read(tmp_path).arrays.keys() == {"a"}
    files.write_safetensors(tmp_path / "model.safetensors", STATE)
    file = files.read(tmp_path)  # the one that is preferred
    assert (file.path, file.convention) == (tmp_path, files.PYTORCH)
    assert_same(file.arrays, STATE)


def shard(folder, name="model.safetensors", **changes):
    """Two files and their index, in which `changes` are other files of arrays."""
    names = sorted(STATE)
    stem, suffix = name.rsplit(".", 1)
    weight_map = {}
    for index, part in enumerate((names[:9], names[9:]), 1):
        file = f"{stem}-{index:05}-of-00002.{suffix}"
        arrays = {n: STATE[n] for n in part}
        if suffix == "bin":
            torch_writer.write(folder / file, arrays)
        else:
            files.write_safetensors(folder / file, arrays)
        weight_map |= dict.fromkeys(part, file)
    content = {"metadata": {"total_size": 1}, "weight_map": weight_map | changes}
    (folder / f"{name}.index.json").write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_several_files(tmp_path, name):
    shard(tmp_path, name)
    assert_same(files.read(tmp_path).arrays, STATE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": "gone.safetensors"}, r"that are not there: gone\.safetensors"),
        ({"x": "../w.safetensors"}, "no name of a file beside it"),
        ({"x": "/etc/passwd"}, "no name of a file beside it"),
        ({"x": ".."}, "not there|no name of a file"),
        ({"x": ""}, "not there|no name of a file"),
        ({"x": 5}, "cut off or damaged"),
        ({"x": "model-00001-of-00002.safetensors"}, "does not hold x"),
    ],
)
def test_an_index_that_does_not_fit(tmp_path, changes, message):
    files.write_safetensors(tmp_path / "w.safetensors", STATE)
    folder = tmp_path / "folder"
    folder.mkdir()
    shard(folder, **changes)
    with pytest.raises(UserError, match=message):
        files.read(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"weight_map": 1}', b"\xff", b"{"])
def test_a_damaged_index(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(UserError, match=r"index\.json is cut off or damaged"):
        files.read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"pretrained_cfg": 1}'])
def test_a_damaged_config(tmp_path, content):
    files.write_safetensors(tmp_path / "model.safetensors", STATE)
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json is cut off or damaged"):
        files.read(tmp_path)


@pytest.mark.parametrize("size", ["a", ["a", 1], [64], [], None, [0, 64], 1.5, {}])
def test_a_config_that_says_no_size(tmp_path, size):
    files.write_safetensors(tmp_path / "model.safetensors", STATE)
    (tmp_path / "config.json").write_text(json.dumps({"image_size": size}))
    assert files.read(tmp_path).grid is None
