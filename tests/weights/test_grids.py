"""Whose rows and columns a position embedding has: said, never guessed."""

import json

import numpy as np
import pytest

from reid_jax import weights
from reid_jax.errors import UserError
from reid_jax.models import aaformer
from reid_jax.runtime.checkpoint import Checkpoints
from reid_jax.runtime.state import TrainState
from reid_jax.weights import __main__ as command
from reid_jax.weights import fetch, files, folders, grids
from tests import commands
from tests.metas import meta
from tests.variables import random_variables
from tests.weights import state_dicts, torch_writer
from tests.weights.test_load import TINY, bilinear

TALL, SQUARE = (128, 32), (64, 64)  # 16 x 4 and 8 x 8 patches of 8: 64 either way
RUN = {"data.height": 128, "data.width": 32, "model.patch_size": 8}
RUN |= {"model.stride": [8, 8], "data.dataset": "market1501"}


def network(size):
    method = aaformer.Method(5, size, tokens="none", **TINY)
    shapes = {"image": np.zeros((2, *size, 3), np.uint8)}
    return method, random_variables(method.init, shapes, seed=size[0])


def load(path, size, **options):
    method, variables = network(size)
    return weights.load_pretrained(
        variables, str(path), position_grid=method.position_grid, **options
    )


def positions(variables):
    return variables["params"]["backbone"]["pos_embed"]


@pytest.fixture
def run(tmp_path):
    """A run at 128 x 32, and an export of it."""
    _, variables = network(TALL)
    checkpoints = Checkpoints(str(tmp_path / "run"))
    state = TrainState(
        step=np.int32(1),
        rng=np.zeros(2, np.uint32),
        params=variables["params"],
        collections={k: v for k, v in variables.items() if k != "params"},
        opt_state={},
    )
    checkpoints.save_best(1, state, meta(config=RUN))
    checkpoints.close()
    export = tmp_path / "run" / "export"
    folders.write(export / "params", dict(variables))
    (export / "export.json").write_text(json.dumps({"config": RUN}))
    return tmp_path / "run"


PLACES = ("", "export", "export/params", "checkpoints/best/1")


@pytest.mark.parametrize("place", PLACES)
def test_a_runs_grid_is_its_own(run, place):
    """As many positions, in other rows: resized all the same."""
    after, report = load(run / place, SQUARE)
    assert report.resized == ("params/backbone/pos_embed 16 x 4 to 8 x 8",)
    before = positions(network(TALL)[1])
    wanted = bilinear(before[0, 1:].reshape(16, 4, -1), 8, 8).reshape(64, -1)
    np.testing.assert_allclose(positions(after)[0, 1:], wanted, atol=1e-6)
    np.testing.assert_array_equal(positions(after)[0, 0], before[0, 0])
    _, report = load(run / place, (64, 32))
    assert report.resized == ("params/backbone/pos_embed 16 x 4 to 8 x 4",)
    assert load(run / place, TALL)[1].resized == ()


@pytest.mark.parametrize("target", ["converted", "converted.safetensors"])
def test_conversion_keeps_the_grid(run, tmp_path, target):
    assert (
        commands.ended(command.main, [f"--from={run}", f"--to={tmp_path / target}"])
        == 0
    )
    again = tmp_path / "again"
    assert (
        commands.ended(command.main, [f"--from={tmp_path / target}", f"--to={again}"])
        == 0
    )
    for path in (tmp_path / target, again):
        _, report = load(path, SQUARE)
        assert report.resized == ("params/backbone/pos_embed 16 x 4 to 8 x 8",)


def test_a_runs_grid_against_the_field(run):
    with pytest.raises(
        UserError, match=r"pretrained_grid is \(8, 8\), but .*\(16, 4\)"
    ):
        load(run, SQUARE, pretrained_grid=(8, 8))
    assert load(run, TALL, pretrained_grid=(16, 4))[1].resized == ()


def write(path, tokens=65, classes=10):
    state = state_dicts.timm_vit(tokens=tokens)
    state |= state_dicts.fill({"head.weight": (classes, 24), "head.bias": (classes,)})
    return torch_writer.write(path, state)


def test_a_file_that_says_nothing(tmp_path):
    path = write(tmp_path / "w.pth")
    with pytest.raises(UserError, match="does not say how its 64 patches lie"):
        load(path, (64, 32))
    assert load(path, TALL)[1].resized == ()  # the network's own
    for grid in ((8, 8), (16, 4), (4, 16)):
        _, report = load(path, (64, 32), pretrained_grid=grid)
        rows, columns = grid
        text = f"params/backbone/pos_embed {rows} x {columns} to 8 x 4"
        assert report.resized == (text,)


def test_imagenet_is_square(tmp_path):
    path = write(tmp_path / "w.pth", classes=1000)
    _, report = load(path, TALL)
    assert report.resized == ("params/backbone/pos_embed 8 x 8 to 16 x 4",)
    path = write(tmp_path / "w.pth", classes=1000, tokens=33)
    with pytest.raises(UserError, match="does not say how its 32 patches lie"):
        load(path, TALL)


def test_a_known_file_by_its_name(tmp_path):
    known = fetch.KNOWN["deit_small_patch16_224"]
    path = write(tmp_path / known.file_name, tokens=197)
    _, report = load(path, TALL)
    assert report.resized == ("params/backbone/pos_embed 14 x 14 to 16 x 4",)
    assert {s.grid for n, s in fetch.KNOWN.items() if "it_" in n} == {(14, 14)}


@pytest.mark.parametrize(
    "config",
    [
        {"image_size": [128, 32]},
        {"pretrained_cfg": {"input_size": [3, 128, 32]}},
        {"image_size": 64},
    ],
)
def test_hugging_faces_config(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    files.write_safetensors(
        tmp_path / "model.safetensors", state_dicts.timm_vit(tokens=65)
    )
    grid = "8 x 8" if config == {"image_size": 64} else "16 x 4"
    _, report = load(tmp_path, (64, 32))
    assert report.resized == (f"params/backbone/pos_embed {grid} to 8 x 4",)


def test_a_config_that_does_not_fit_the_weights(tmp_path):
    (tmp_path / "config.json").write_text('{"image_size": 128}')
    files.write_safetensors(
        tmp_path / "model.safetensors", state_dicts.timm_vit(tokens=65)
    )
    with pytest.raises(UserError, match=r"of 64 patches and one CLS token.*16 x 16"):
        load(tmp_path, TALL)


def test_runs_of_every_kind():
    assert grids.of_run(RUN) == (16, 4)
    overlapping = RUN | {"model.stride": [4, 8]}
    assert grids.of_run(overlapping) == (31, 4)
    options = {f"model.options.{k[6:]}": v for k, v in RUN.items() if "model" in k}
    rest = {k: v for k, v in RUN.items() if "model" not in k}
    assert grids.of_run(rest | options) == (16, 4)
    assert grids.of_run(rest | {"model.width": 64}) is None
