"""Whose folder it is, and files that are whole or not there."""

import json

import pytest

from reid_jax import storage
from reid_jax.errors import UserError
from reid_jax.runtime import workdir
from reid_jax.runtime.metrics import MetricWriter

CONFIG = {"seed": 1, "data": {"dataset": "a", "data_dir": "x"}, "log_every_steps": 5}


def test_the_same_config_may_come_back_with_other_free_fields(tmp_path):
    workdir.claim(str(tmp_path), CONFIG)
    moved = {**CONFIG, "data": {"dataset": "a", "data_dir": "y"}, "log_every_steps": 9}
    workdir.claim(str(tmp_path), moved)


def test_a_run_that_saved_nothing_gives_way(tmp_path):
    workdir.claim(str(tmp_path), CONFIG)
    workdir.claim(str(tmp_path), {**CONFIG, "seed": 2})
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 2


def test_another_config_is_refused_and_the_first_kept(tmp_path):
    workdir.claim(str(tmp_path), CONFIG)
    (tmp_path / "checkpoints" / "last" / "3").mkdir(parents=True)
    with pytest.raises(UserError, match=r"data\.dataset: a there, b here"):
        workdir.claim(str(tmp_path), {**CONFIG, "data": {"dataset": "b"}})
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG


def test_a_file_is_no_workdir(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        storage.check_writable(tmp_path / "f")


def test_a_workdir_is_held_by_one(tmp_path):
    with (
        workdir.held(str(tmp_path)),
        pytest.raises(UserError, match="another process is training"),
        workdir.held(str(tmp_path)),
    ):
        pass
    with workdir.held(str(tmp_path)):
        (tmp_path / "results.json").touch()
    assert (tmp_path / "results.json").exists()


def test_a_refused_run_leaves_no_folder(tmp_path):
    with (
        pytest.raises(UserError, match="no such field"),
        workdir.held(str(tmp_path / "run")),
    ):
        raise UserError("no such field")
    assert not (tmp_path / "run").exists()


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "manifest.json").write_text("[{")
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        workdir.write_manifest(str(tmp_path), CONFIG)


def test_write_text_keeps_the_old_content_when_it_fails(tmp_path):
    path = tmp_path / "a.json"
    workdir.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        workdir.write_json(path, {"a": object()})
    with pytest.raises(UnicodeEncodeError):
        workdir.write_text(path, "\ud800")
    assert json.loads(path.read_text()) == {"a": 1}


def test_manifest_has_one_entry_per_start(tmp_path):
    for _ in range(2):
        workdir.write_manifest(str(tmp_path), CONFIG)
    entries = json.loads((tmp_path / "manifest.json").read_text())
    assert len(entries) == 2
    assert entries[0]["config"]["data.dataset"] == "a"
    assert entries[0]["device_count"] == 8


def test_metrics_after_the_resumed_step_are_dropped(tmp_path):
    writer = MetricWriter(str(tmp_path))
    for step in (1, 2, 3):
        writer.write(step, {"loss": float(step)})
    writer.close()
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 4, "lo')  # cut short by a kill
    writer = MetricWriter(str(tmp_path), resume_step=2)
    writer.write(3, {"loss": 30.0})
    writer.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1), (2, 2), (3, 30)]
