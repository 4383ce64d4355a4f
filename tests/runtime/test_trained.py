"""A run's config is read back as it was, and taken where none is named."""

import json

import pytest
from absl import flags
from ml_collections import config_flags

from configs import run as config_of_run
from reid_jax import command_line
from reid_jax.errors import UserError
from reid_jax.runtime import digests, trained, workdir
from reid_jax.training import train
from tests.launch import toy


@pytest.fixture(scope="module")
def trained_run(tiny_data, tmp_path_factory):
    config = toy.get_config()
    config.data.data_dir = str(tiny_data)
    config.max_steps = 3
    config.stages.first.optimizer.groups = {
        "slow": {"pattern": "base/", "learning_rate": 0.5}
    }
    folder = tmp_path_factory.mktemp("trained") / "a run"
    train.train_and_evaluate(config, str(folder))
    return config, folder


def test_it_is_the_config_that_was_trained(trained_run, monkeypatch):
    """Which is read without a look at all that it was trained to."""
    config, folder = trained_run
    monkeypatch.setattr(digests, "differences", None)
    assert config_of_run.get_config(str(folder)).to_dict() == config.to_dict()
    step = folder / "checkpoints" / "last" / "3"
    assert config_of_run.get_config(str(step)).to_dict() == config.to_dict()
    assert trained.run_folder(step) == folder


def test_the_checkpoint_has_the_last_word(trained_run, tmp_path):
    config, folder = trained_run
    moved = tmp_path / "3"
    (folder / "checkpoints" / "last" / "3").rename(moved)
    try:
        alone = trained.config(str(moved))
        assert alone["model"] == config.model.to_dict()
        assert trained.run_folder(moved) == moved
    finally:
        moved.rename(folder / "checkpoints" / "last" / "3")
    file = folder / "config.json"
    whole = file.read_text()
    edited = json.loads(whole)
    edited["model"]["width"] = 7
    workdir.write_json(file, edited)
    try:
        assert trained.config(str(folder))["model"]["width"] == config.model.width
    finally:
        file.write_text(whole)


def test_fields_that_are_newer_than_the_run_have_their_defaults(trained_run):
    config, folder = trained_run
    file = folder / "config.json"
    whole = file.read_text()
    older = json.loads(whole)
    del older["shard_parameters"], older["evaluation"]["ap"]
    del older["stages"]["first"]["optimizer"]["decay_factor"]
    workdir.write_json(file, older)
    try:
        # The checkpoint still has them; what is asked is the merging alone.
        found = config_of_run.get_config(str(folder))
    finally:
        file.write_text(whole)
    assert found.to_dict() == config.to_dict()


def _parsed(monkeypatch, *args):
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file(
        "config", None, flag_values=values, sys_argv=["main", *args]
    )
    modes = ["train", "evaluate", "export", "benchmark"]
    flags.DEFINE_enum("mode", "train", modes, "", flag_values=values)
    for name in ("workdir", "checkpoint"):
        flags.DEFINE_string(name, None, "", flag_values=values)
    monkeypatch.setattr(command_line.flags, "FLAGS", values)
    command_line.parse(["main", *args], config=config, about="")
    return values


def test_evaluation_and_export_need_no_config(trained_run, monkeypatch):
    config, folder = trained_run
    for mode in ("--mode=evaluate", "--mode=export"):
        values = _parsed(monkeypatch, mode, f"--workdir={folder}")
        assert values.config.to_dict() == config.to_dict()
    step = folder / "checkpoints" / "last" / "3"
    override = "--config.evaluate_on=('x',)"
    values = _parsed(
        monkeypatch, "--mode", "evaluate", "--checkpoint", str(step), override
    )
    assert values.config.evaluate_on == ("x",)
    assert values.config.model.width == config.model.width
    assert values.workdir == str(folder)
    assert _parsed(monkeypatch, f"--workdir={folder}").config is None
    with pytest.raises(UserError, match="no checkpoint in"):
        _parsed(monkeypatch, "--mode=export", f"--workdir={folder}-other")
