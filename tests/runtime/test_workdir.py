"""Whose folder it is, and files that are whole or not there."""

import concurrent.futures
import contextlib
import errno
import json
import struct
import subprocess
import threading

import pytest
from tensorboardX.proto import event_pb2

from reid_jax import storage
from reid_jax.errors import UserError
from reid_jax.evaluation import results
from reid_jax.runtime import workdir
from reid_jax.runtime.metrics import MetricWriter

CONFIG = {"seed": 1, "data": {"dataset": "a", "data_dir": "x"}, "log_every_steps": 5}


def _claim(folder, config, **more):
    workdir.check_same_run(str(folder), config, **more)
    workdir.write_json(folder / "config.json", config)


def test_the_same_config_may_come_back_with_other_free_fields(tmp_path):
    _claim(tmp_path, CONFIG)
    moved = {**CONFIG, "data": {"dataset": "a", "data_dir": "y"}, "log_every_steps": 9}
    _claim(tmp_path, moved)


def test_a_run_that_saved_nothing_gives_way(tmp_path):
    _claim(tmp_path, CONFIG)
    _claim(tmp_path, {**CONFIG, "seed": 2})
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 2


def test_another_config_is_refused_and_the_first_kept(tmp_path):
    _claim(tmp_path, CONFIG)
    last = tmp_path / "checkpoints" / "last"
    (last / "3.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    assert not workdir.has_checkpoint(str(tmp_path))  # killed in its first save
    (last / "3" / "state").mkdir(parents=True)
    other = {**CONFIG, "data": {"dataset": "b"}}
    with pytest.raises(UserError, match=r"data\.dataset: a there, b here"):
        _claim(tmp_path, other)
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"data\.dataset: a there, b here"):
        _claim(tmp_path, other, saved=workdir.flatten(CONFIG))
    _claim(tmp_path, CONFIG, saved=workdir.flatten(CONFIG))
    _claim(tmp_path, {**CONFIG, "variant": "of another name"})


def test_a_field_that_is_newer_than_the_run_may_have_the_value_of_old(tmp_path):
    _claim(tmp_path, CONFIG)
    (tmp_path / "checkpoints" / "last" / "3" / "state").mkdir(parents=True)
    with pytest.raises(UserError, match=r"margin: \(none\) there, 0\.5 here"):
        _claim(tmp_path, {**CONFIG, "margin": 0.5})
    _claim(tmp_path, {**CONFIG, "margin": None})
    wanted = r"gradient_dtype: compute there, float32 here"
    with pytest.raises(UserError, match=wanted):
        _claim(tmp_path, {**CONFIG, "gradient_dtype": "float32"})
    newer = {**CONFIG, "gradient_dtype": "compute"}
    _claim(tmp_path, newer)
    _claim(tmp_path, CONFIG)


def test_a_file_is_no_workdir(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*/f \(it is a file\)"):
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


def test_starts_at_the_same_time_are_all_in_the_manifest(tmp_path, monkeypatch):
    read, both = workdir.read_objects, threading.Barrier(2)

    def read_late(path):
        found = read(path)
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(timeout=0.2)  # where the other one may read, too
        return found

    monkeypatch.setattr(workdir, "read_objects", read_late)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: workdir.write_manifest(str(tmp_path), CONFIG), "ab"))
    assert len(read(tmp_path / "manifest.json")) == 2


def test_a_revision_is_of_the_repository_that_keeps_the_library(tmp_path, monkeypatch):
    def git(*arguments):
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *who, *arguments],
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    library = tmp_path / ".venv" / "workdir.py"
    library.parent.mkdir()
    library.touch()
    monkeypatch.setattr(workdir, "__file__", str(library))
    git("init")
    git("commit", "--allow-empty", "--message=mine")
    assert workdir._git_revision() is None
    git("add", ".")
    assert workdir._git_revision() == git("rev-parse", "HEAD") + "+"


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


def test_rows_of_the_resumed_step_that_came_after_its_checkpoint_are_dropped(tmp_path):
    writer = MetricWriter(str(tmp_path))
    writer.write(1, {"loss": 1.0})
    known = writer.rows
    writer.write(1, {"tiny/mAP": 0.5})
    writer.close()
    again = MetricWriter(str(tmp_path), resume_step=1, resume_rows=known)
    assert again.rows == 1
    again.close()
    (row,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(row)["loss"] == 1


NOT_ROWS = [b"[1]", b"null", b"3", b'{"loss": 1}', b'{"step": "a"}', b"\xff\xfe"]


@pytest.mark.parametrize("line", [*NOT_ROWS, b"[" * 100_000])
def test_a_line_that_is_no_row_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2, is no row"):
        MetricWriter(str(tmp_path), resume_step=5)
    assert path.read_bytes().count(b"\n") == 3  # nothing of it is lost


@pytest.mark.parametrize(
    "content",
    [b"[1]", b"null", b'"a"', b"\xff", b"[" * 100_000, b'{"a": 1'],
)
def test_json_of_another_kind_is_named(tmp_path, content):
    (tmp_path / "checkpoints" / "last" / "3" / "state").mkdir(parents=True)
    for name in ("config.json", "manifest.json", "results.json"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        _claim(tmp_path, CONFIG)
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        workdir.write_manifest(str(tmp_path), CONFIG)
    with pytest.raises(UserError, match=r"results\.json is damaged"):
        results.write(str(tmp_path), [{"protocol": "p"}])
    assert (tmp_path / "results.json").read_bytes() == content


def test_a_folder_that_was_renamed_is_not_made_anew(tmp_path):
    writer = MetricWriter(str(tmp_path / "run"))
    writer.write(1, {"loss": 1.0})
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    for call in (lambda: writer.write(2, {"loss": 1.0}), writer.flush, writer.close):
        with pytest.raises(UserError, match="moved, renamed or removed"):
            call()
    assert not (tmp_path / "run").exists()
    assert len((tmp_path / "elsewhere" / "metrics.jsonl").read_text().splitlines()) == 1


def test_tensorboard_reads_what_is_written(tmp_path):
    """Read back with the format's own definition: length, checksum, event, checksum."""
    for start in (0, 1):
        writer = MetricWriter(str(tmp_path), resume_step=start)
        writer.write(start + 1, {"loss": 0.5 + start, "a/b": 2.0})
        writer.close()
    shown = []
    for path in sorted((tmp_path / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            if event.session_log.status:
                shown = [value for value in shown if value[0] < event.step]
            shown += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
    assert shown == [(1, "loss", 0.5), (1, "a/b", 2), (2, "loss", 1.5), (2, "a/b", 2)]


def test_evaluations_at_once_lose_no_entry(tmp_path):
    def write(number):
        results.write(str(tmp_path), [{"protocol": str(number)}])

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(24)))
    entries = json.loads((tmp_path / "results.json").read_text())
    assert {entry["protocol"] for entry in entries} == {str(n) for n in range(24)}


def test_a_disk_without_locks_can_be_trained_on(tmp_path, monkeypatch, capsys):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(storage.fcntl, "flock", no_locks)
    with workdir.held(str(tmp_path)):
        (tmp_path / "results.json").touch()
    assert "cannot be locked" in capsys.readouterr().err
