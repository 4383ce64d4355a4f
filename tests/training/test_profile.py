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


def test_a_run_traces_the_steps_asked_for_and_never_again(
    toy_config, tmp_path, on_devices, capsys
):
    on_devices(1)
    toy_config.profile_steps, toy_config.max_steps = (8, 10), 9  # of the second stage
    train.train_and_evaluate(toy_config, str(tmp_path))
    assert _traced(tmp_path) == [[8, 9]]
    (file,) = (tmp_path / "profile").rglob("perfetto_trace.json.gz")
    assert len(_executions(file, "jit_step")) == 2
    assert len(list(file.parent.glob("*.xplane.pb"))) == 1
    said = capsys.readouterr().out
    assert f"profile of steps 8 to 9: open {file} at" in said
    assert f"or: xprof --logdir={tmp_path / 'profile'}\n" in said

    # The run goes on with steps that it has done.
    toy_config.profile_steps = (3, 5)
    train.train_and_evaluate(toy_config, str(tmp_path))
    assert "note: steps 3 to 4 are done; they are" in capsys.readouterr().out
    assert _traced(tmp_path) == [[8, 9]]


def test_a_run_that_fails_ends_its_trace(toy_config, tmp_path, on_devices, monkeypatch):
    def after_step(loop, step, *_):
        if step == 3:
            raise ArithmeticError("after three steps")

    monkeypatch.setattr(train._StageLoop, "_after_step", after_step)
    on_devices(1)
    toy_config.profile_steps = (2, 6)
    with pytest.raises(ArithmeticError, match="after three steps"):
        train.train_and_evaluate(toy_config, str(tmp_path))
    assert _traced(tmp_path) == [[2, 3]]


def test_of_steps_that_are_done_in_part_the_rest_is_traced(tmp_path, capsys):
    _take(profile.StepTrace((3, 6), str(tmp_path), done=4), range(5, 8))
    assert _traced(tmp_path) == [[5]]
    assert capsys.readouterr().out.startswith("profile of step 5: ")


def test_steps_that_are_done_are_not_traced(tmp_path, capsys):
    _take(profile.StepTrace((3, 5), str(tmp_path), done=4), range(5, 8))
    assert "note: steps 3 to 4 are done" in capsys.readouterr().out
    _take(profile.StepTrace((), str(tmp_path), done=3), range(4, 6))
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
        train.train_and_evaluate(toy_config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
