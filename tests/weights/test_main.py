"""`python -m reid_jax.weights`."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from reid_jax import weights
from reid_jax.weights import __main__ as command
from reid_jax.weights import files
from tests import commands
from tests.weights import state_dicts, torch_writer
from tests.weights.test_files import Attack, assert_same
from tests.weights.test_load import FILE_GRID, GRID, variables_of


@pytest.fixture
def pth(tmp_path):
    return torch_writer.write(tmp_path / "w.pth", state_dicts.timm_vit())


def run(source, target):
    return commands.ended(command.main, [f"--from={source}", f"--to={target}"])


def test_there_and_back(pth, tmp_path, capsys):
    """A file, our folder, and a PyTorch-named file: bit for bit."""
    assert run(pth, tmp_path / "out" / "vit") == 0
    printed = capsys.readouterr().out
    assert "ViT of width 24, depth 2, patch 8" in printed
    assert "2 arrays left out" in printed
    assert f"--config.pretrained={tmp_path}/out/vit" in printed
    assert run(tmp_path / "out" / "vit", tmp_path / "back.safetensors") == 0
    state = state_dicts.timm_vit()
    del state["head.weight"], state["head.bias"]
    assert_same(files.read(tmp_path / "back.safetensors").arrays, state)


def test_what_is_converted_loads_the_same(pth, tmp_path):
    run(pth, tmp_path / "vit")
    got = [
        weights.load_pretrained(
            variables_of(), str(path), position_grid=GRID, pretrained_grid=FILE_GRID
        )[0]
        for path in (pth, tmp_path / "vit")
    ]
    assert_same(*map(files.flatten, got))


def test_half_precision_becomes_single(tmp_path):
    state = {k: v.astype(np.float16) for k, v in state_dicts.timm_vit().items()}
    path = torch_writer.write(tmp_path / "w.pth", state)
    assert run(path, tmp_path / "vit") == 0
    for array in files.read(tmp_path / "vit").arrays.values():
        assert array.dtype == np.float32


def test_an_existing_target_stays(pth, tmp_path, capsys):
    assert run(pth, tmp_path) == 2
    assert f"error: {tmp_path} exists; remove it" in capsys.readouterr().err


def test_targets_that_cannot_be_written(pth, tmp_path, capsys):
    assert run(pth, tmp_path / "out.pth") == 2
    assert ".pth cannot be written; name a folder" in capsys.readouterr().err
    for target in ("out", "out.safetensors"):
        assert run(pth, pth / target) == 2  # below a file
        assert "cannot write" in capsys.readouterr().err


@pytest.mark.parametrize(
    "target", ["a\0b", "x" * 5000, "~nobody-of-this-name/w", "gs://bucket/w"]
)
def test_targets_that_are_no_paths(pth, target, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(pth, target) == 2
    assert capsys.readouterr().err.startswith("error: --to=")
    assert list(tmp_path.iterdir()) == [pth]


def test_an_array_that_others_are_in(tmp_path, capsys):
    state = state_dicts.timm_vit() | {"norm": np.ones(2, np.float32)}
    assert run(torch_writer.write(tmp_path / "w.pth", state), tmp_path / "out") == 2
    assert (
        "norm is an array, and so is params/backbone/norm/" in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


def test_no_known_architecture(tmp_path, capsys):
    path = torch_writer.write(
        tmp_path / "w.pth", {"lstm.weight": np.ones((3, 1), np.float32)}
    )
    assert run(path, tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert "no known architecture" in err
    assert "names start with: lstm.weight" in err
    assert not (tmp_path / "out").exists()


def test_bad_input_is_one_message_and_exit_code_2(tmp_path):
    """In a process of its own, as a user runs it."""
    marker = tmp_path / "marker"
    torch_writer.write_pickle(
        tmp_path / "w.pth", pickle.dumps({"state_dict": Attack(marker)}, 2), legacy=True
    )
    done = subprocess.run(
        [sys.executable, "-m", "reid_jax.weights", "--from=w.pth", "--to=out"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: w.pth asks for posix.system, which is")
    assert done.stderr.count("\n") == 1
    assert not marker.exists()
    assert not (tmp_path / "out").exists()
