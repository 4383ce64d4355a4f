"""Numbers that no trained network has are named before they are trained from."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.errors import UserError
from reid_jax.weights import __main__ as command
from reid_jax.weights import files, mapping
from tests import commands
from tests.weights import state_dicts, torch_writer
from tests.weights.test_load import load

NAME = "blocks.1.mlp.fc1.weight"


def changed(value, name=NAME):
    state = state_dicts.timm_vit()
    state[name].flat[5] = value
    return state


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "1 of 2,304 numbers are infinite or NaN"),
        (-np.inf, "1 of 2,304 numbers are infinite or NaN"),
        (1e30, r"a number of 1e\+30; 1e\+06 is the limit"),
        (-2e6, r"a number of -2e\+06; 1e\+06 is the limit"),
    ],
)
def test_one_bad_number(tmp_path, capsys, value, message):
    path = torch_writer.write(tmp_path / "w.pth", changed(value))
    with pytest.raises(UserError, match=rf"trained network has:\n  {NAME}: {message}"):
        load(str(path))
    assert (
        commands.ended(command.main, [f"--from={path}", f"--to={tmp_path / 'out'}"])
        == 2
    )
    assert NAME in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_other_types(tmp_path, dtype):
    state = {k: v.astype(dtype) for k, v in changed(np.inf).items()}
    files.write_safetensors(tmp_path / "w.safetensors", state)
    with pytest.raises(UserError, match="1 of 2,304 numbers are infinite"):
        load(str(tmp_path / "w.safetensors"))


def test_what_is_not_taken_may_be_anything(tmp_path):
    state = changed(np.nan, "head.weight")
    load(str(torch_writer.write(tmp_path / "w.pth", state)))


def statistics(**values):
    names = {"mean": "bn.running_mean", "var": "bn.running_var"}
    arrays = {names[k]: np.array([1, v], np.float32) for k, v in values.items()}
    return mapping.to_ours(
        files.WeightFile(pathlib.Path("w"), files.PYTORCH, arrays)
    ).arrays


def test_variances_are_squares():
    assert len(statistics(mean=-9e5, var=8e11)) == 2
    with pytest.raises(UserError, match=r"bn\.running_var: a number of 2e\+12"):
        statistics(var=2e12)
    with pytest.raises(UserError, match=r"bn\.running_var: a variance of -0\.5"):
        statistics(var=-0.5)
    with pytest.raises(UserError, match=r"bn\.running_mean: a number of 2e\+06"):
        statistics(mean=2e6)


def test_many_are_counted(tmp_path):
    state = {k: np.full_like(v, np.nan) for k, v in state_dicts.timm_vit().items()}
    path = torch_writer.write(tmp_path / "w.pth", state)
    with pytest.raises(UserError, match="and 24 more arrays") as error:
        load(str(path))
    assert str(error.value).count("\n") == 8
