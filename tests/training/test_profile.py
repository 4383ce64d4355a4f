"""Steps that a run traces, read back from the files that it leaves."""

import contextlib
import gzip
import json
import types

import jax
import jax.numpy as jnp
import pytest

from reid_jax import storage
from reid_jax.errors import UserError
from reid_jax.training import profile, train

LOG = types.SimpleNamespace(paused=contextlib.nullcontext)


def _traced(workdir):
    """Steps in each trace of a run, the earlier trace first."""
    files = sorted((workdir / "profile").rglob("perfetto_trace.json.gz"))
    return [
        [int(x["args"]["step_num"]) for x in _events(file) if x.get("name") == "train"]
        for file in files
    ]


def _executions(file, program):
    """The times that devices have run a program."""
    details = [event.get("args", {}) for event in _events(file)]
    return {x["run_id"] for x in details if x.get("hlo_module") == program}


def _events(file):
    return json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]


def _take(trace, steps):
    for step in steps:
        with trace.of_step(step, LOG):
            outputs = jnp.ones(3) + step
        trace.after_step(step, outputs, LOG)


def test_a_run_traces_the_steps_asked_for_across_stages_and_none_twice(
    toy_config, tmp_path, on_devices, capsys
):
    on_devices(1)
    toy_config.profile_steps, toy_config.max_steps = (5, 9), 8
    train.train_and_evaluate(toy_config, str(tmp_path))
    assert _traced(tmp_path) == [[5, 6, 7, 8]]
    (file,) = (tmp_path / "profile").rglob("perfetto_trace.json.gz")
    said = capsys.readouterr().out
    assert f"profile of steps 5 to 8: open {file} at" in said
    assert f"or: xprof --logdir={tmp_path / 'profile'}\n" in said
    assert len(list(file.parent.glob("*.xplane.pb"))) == 1
    assert len(_executions(file, "jit_step")) == 4

    # It goes on with another window, of which most is done.
    toy_config.profile_steps, toy_config.max_steps = (3, 10), 9
    train.train_and_evaluate(toy_config, str(tmp_path))
    assert _traced(tmp_path) == [[5, 6, 7, 8], [9]]
    assert "profile of step 9: " in capsys.readouterr().out


def test_a_run_that_fails_ends_its_trace(toy_config, tmp_path, on_devices, monkeypatch):
    def after_step(loop, step, *_):
        if step == 2:
            raise ArithmeticError("after two steps")

    monkeypatch.setattr(train._StageLoop, "_after_step", after_step)
    on_devices(1)
    toy_config.profile_steps = (1, 6)
    with pytest.raises(ArithmeticError, match="after two steps"):
        train.train_and_evaluate(toy_config, str(tmp_path))
    assert _traced(tmp_path) == [[1, 2]]
    # The beginning of the trace is no training: there is no rate of the first step.
    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert first["step"] == 1
    assert "images_per_second" not in first


def test_steps_that_are_done_are_named_and_not_traced(tmp_path, capsys):
    trace = profile.StepTrace((3, 5), str(tmp_path), done=4)
    assert "note: steps 3 to 4 are done" in capsys.readouterr().out
    _take(trace, range(5, 8))
    trace.close()
    profile.StepTrace((3, 5), str(tmp_path), done=3)
    profile.StepTrace((), str(tmp_path), done=3)
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "profile").exists()


def test_the_trace_ends_when_the_devices_are_done(tmp_path, monkeypatch):
    order = []

    class Output:
        def block_until_ready(self):
            order.append("done")

    def starts(folder, **_):
        order.append("starts")

    monkeypatch.setattr(jax.profiler, "start_trace", starts)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: order.append("stops"))
    trace = profile.StepTrace((2, 4), str(tmp_path))
    for step in range(1, 6):
        with trace.of_step(step, LOG):
            order.append(step)
        trace.after_step(step, {"state": Output()}, LOG)
    assert order == [1, "starts", 2, 3, "done", "stops", 4, 5]


@pytest.mark.parametrize(
    ("place", "name"), [(jax.profiler, "start_trace"), (storage, "copy_below")]
)
def test_a_trace_that_fails_is_a_note(place, name, tmp_path, monkeypatch, capsys):
    def fails(*_, **__):
        raise OSError("no room\nat all")

    monkeypatch.setattr(place, name, fails)
    _take(profile.StepTrace((1, 3), str(tmp_path)), range(1, 4))
    assert capsys.readouterr().out == "note: no profile (OSError: no room)\n"


def test_only_the_first_process_traces(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    _take(profile.StepTrace((1, 3), str(tmp_path)), range(1, 4))
    assert not (tmp_path / "profile").exists()


def test_steps_that_the_run_does_not_have(toy_config, tmp_path, on_devices):
    on_devices(1)
    profile.check((), last=10)
    profile.check((9, 11), last=10)
    toy_config.profile_steps, toy_config.max_steps = (5, 10), 8
    with pytest.raises(UserError, match="steps 5 to 9, but the run ends with step 8"):
        train.train_and_evaluate(toy_config, str(tmp_path))
    assert not (tmp_path / "config.json").exists()
