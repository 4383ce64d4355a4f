"""What a run that goes on takes over, and what stops it; what it says meanwhile."""

import json
import re
import types

import numpy as np
import pytest

from data_pipelines import records, sampling
from reid_jax.errors import Terminated, UserError
from reid_jax.evaluation import evaluate
from reid_jax.runtime import checkpoint
from reid_jax.training import run, sources, train


def _stopped(config, workdir, *, step):
    """Leaves a run that has stopped after a step; the config goes on to the end."""
    config.max_steps = step
    assert train.train_and_evaluate(config, str(workdir)) == []
    config.max_steps = 0


def test_the_best_is_sought_anew_under_another_protocol(
    toy_config, tmp_path, on_devices, monkeypatch
):
    """It is never another protocol's, and never one that is no longer kept."""
    on_devices(1)
    scores = iter([0.9, 0.8, 0.5, 0.4, 0.3])
    monkeypatch.setattr(run, "_shared_score", lambda entries: next(scores))
    toy_config.evaluation.every_epochs = 1 / 6
    toy_config.stages.first.epochs = 1 / 6
    toy_config.stages.second.epochs = 4 / 6
    _stopped(toy_config, tmp_path, step=3)
    single = "tiny:single_shot,repeats=2"
    toy_config.evaluate_on = (single, "tiny")
    assert _best_steps(toy_config, tmp_path) == [4, 4]
    assert next(scores, None) is None

    monkeypatch.setattr(run, "_shared_score", lambda entries: 0.1)
    toy_config.evaluate_on = ("tiny",)
    assert _best_steps(toy_config, tmp_path) == [5]
    toy_config.evaluate_on = (single,)
    assert _best_steps(toy_config, tmp_path) == [5]
    (kept,) = (tmp_path / "checkpoints" / "best").glob("[0-9]*")
    assert kept.name == "5"


def test_a_protocol_that_the_best_was_not_evaluated_on_has_none(
    toy_config, tmp_path, on_devices, monkeypatch
):
    on_devices(1)
    scores = iter([0.1, 0.9, 0.5])
    monkeypatch.setattr(run, "_shared_score", lambda entries: next(scores))
    toy_config.evaluation.every_epochs = 1 / 6
    toy_config.stages.first.epochs = 1 / 6
    toy_config.stages.second.epochs = 2 / 6
    _stopped(toy_config, tmp_path, step=2)
    toy_config.evaluate_on = ("tiny", "tiny:single_shot,repeats=2")
    assert _best_steps(toy_config, tmp_path) == [2, None]


def test_the_best_of_a_finished_run_is_remembered(
    toy_config, tmp_path, on_devices, monkeypatch
):
    """Its last evaluation, which comes after its last checkpoint, may have found it."""
    on_devices(1)
    scores = iter([0.9, 0.5])
    monkeypatch.setattr(run, "_shared_score", lambda entries: next(scores))
    assert _best_steps(toy_config, tmp_path) == [10]
    toy_config.stages.second.epochs = 5 / 6
    (entry,) = train.train_and_evaluate(toy_config, str(tmp_path), extend=True)
    assert (entry["step"], entry["best"]["step"]) == (11, 10)
    assert checkpoint.find(str(tmp_path)).name == "10"


def test_a_run_that_left_only_its_best_does_not_give_way(
    toy_config, tmp_path, on_devices, monkeypatch
):
    """Or another run's network would be taken for the best of the next one."""
    on_devices(1)
    rising = iter([0.7, 0.8, 0.9])
    monkeypatch.setattr(run, "_shared_score", lambda entries: next(rising))
    toy_config.evaluation.every_epochs = 0.01  # of six steps: every one
    with monkeypatch.context() as killed:
        killed.setattr(run.Run, "meta", _fails_after(run.Run.meta, 2))
        with pytest.raises(RuntimeError, match="killed"):
            train.train_and_evaluate(toy_config, str(tmp_path))
    assert checkpoint.find(str(tmp_path)).parent.name == "best"
    toy_config.seed += 1
    with pytest.raises(UserError, match="holds a run with another config"):
        train.train_and_evaluate(toy_config, str(tmp_path))

    # The same one begins anew, and a lower step may become the best.
    toy_config.seed -= 1
    scores = iter([0.85] + [0.2] * 5)
    monkeypatch.setattr(run, "_shared_score", lambda entries: next(scores))
    _stopped(toy_config, tmp_path, step=6)
    assert checkpoint.find(str(tmp_path)).name == "1"


def _fails_after(real, times):
    calls = iter(range(times))

    def meta(*args, **kwargs):
        if next(calls, None) is None:
            raise RuntimeError("killed")
        return real(*args, **kwargs)

    return meta


def test_a_notice_saves_first_and_the_evaluation_is_made_up_for(
    toy_config, tmp_path, on_devices, monkeypatch
):
    on_devices(1)
    evaluated, scores = [], iter([0.1, 0.9, 0.5, 0.4])
    real = evaluate.evaluate_protocols

    def noted(*args, step, **kwargs):
        evaluated.append(step)
        return real(*args, step=step, **kwargs)

    monkeypatch.setattr(evaluate, "evaluate_protocols", noted)
    monkeypatch.setattr(run, "_shared_score", lambda entries: next(scores))
    toy_config.evaluation.every_epochs = 0.5  # every 3 steps
    _told(toy_config, tmp_path, monkeypatch, asked=6, stopped=6)
    assert evaluated == [3]
    assert checkpoint.find(str(tmp_path)).name == "3"  # the best
    # While its last step is being saved.
    _told(toy_config, tmp_path, monkeypatch, asked=11, stopped=10)
    assert evaluated == [3, 6, 9]
    assert _best_steps(toy_config, tmp_path) == [9]
    assert evaluated == [3, 6, 9, 10]


def _told(config, workdir, monkeypatch, *, asked, stopped):
    """Trains until a notice is found where the run asks for one."""
    with monkeypatch.context() as told:
        notice, name = train.PreemptionNotice, "received"
        told.setattr(notice, name, lambda self, step: step == asked)
        with pytest.raises(Terminated, match=rf"stopped at step {stopped}, saved"):
            train.train_and_evaluate(config, str(workdir))


@pytest.mark.parametrize(
    ("identities", "images", "groups", "lacking"),
    [
        *[(16, 4, 2, ""), (6, 4, 4, ""), (4, 3, 3, "positive"), (5, 4, 4, "positive")],
        *[(6, 4, 6, "negative"), (6, 4, 12, "negative"), (3, 6, 3, "negative")],
    ],
)
def test_groups_in_which_nothing_is_left_to_mine(identities, images, groups, lacking):
    """Groups of 6 rows cut a person's four into twos; others cut ones off."""
    rows = np.repeat(np.arange(identities), images).reshape(groups, -1)
    pieces = [np.unique(group, return_counts=True)[1] for group in rows]
    assert (min(map(len, pieces)) == 1) == (lacking == "negative")
    assert (min(map(min, pieces)) == 1) == (lacking == "positive")
    stage = types.SimpleNamespace(
        micro_batch_size=identities * images, images_per_identity=images
    )
    assert run._lacking(stage, groups) == lacking


def _best_steps(config, workdir):
    entries = train.train_and_evaluate(config, str(workdir))
    return [entry.get("best", {}).get("step") for entry in entries]


def test_data_that_change_under_a_run_stop_it(
    toy_config, tmp_path, on_devices, monkeypatch
):
    on_devices(1)
    _stopped(toy_config, tmp_path, step=1)
    real = records.Records.fingerprint.fget(sources.open_data(toy_config))
    fewer = {"images": 27, "identities": 5, "digest": "0"}
    for changed, message in (
        (fewer, r"54 images of 9 identities there, 27 images of 5 identities here\. "),
        (real | {"digest": "0"}, r"9 identities here; as many, but others"),
    ):
        monkeypatch.setattr(records.Records, "fingerprint", changed)
        with pytest.raises(UserError, match=message):
            train.train_and_evaluate(toy_config, str(tmp_path))
    (start,) = json.loads((tmp_path / "manifest.json").read_text())
    assert start["config"]["max_steps"] == 1
    assert json.loads((tmp_path / "config.json").read_text())["max_steps"] == 1
    # A checkpoint of an older version has none, and one of a converted network.
    for none in (None, {}):
        sources.check_unchanged(records.Records, none, workdir=str(tmp_path))


def test_a_run_says_what_it_does_once(toy_config, tmp_path, on_devices, capsys):
    """Parameters and compilation at the start; the bar counts to where the run ends."""
    on_devices(1)
    groups = {"biases": {"pattern": "bias"}, "pair": {"pattern": "pair/"}}
    toy_config.stages.second.optimizer.groups = groups
    _stopped(toy_config, tmp_path, step=1)
    out, err = capsys.readouterr()
    idle = re.findall(r"note: config\.stages\.(.*) has no parameter that learns", out)
    assert idle == ["second.optimizer.groups.biases"]
    compiling = r"compiling the training step of stage first \.\.\. \d+\.\d s\n"
    assert len(re.findall(compiling, err)) == 1
    assert re.search(r"\n  classifier +63\n", out)  # 6 x 9 weights and 9 biases
    assert "1/1 [" in err
    assert "1/6 [" not in err

    train.train_and_evaluate(toy_config, str(tmp_path))
    out, err = capsys.readouterr()
    lines = [line for line in out.splitlines() if line.strip()]
    assert len(lines) == len(set(lines)), out
    assert "mAP" not in out + err  # the end's figures are its caller's to print
    assert "older version's batches" not in out


def test_a_run_of_an_older_version_s_batches_is_told(
    toy_config, tmp_path, on_devices, monkeypatch, capsys
):
    on_devices(1)
    _stopped(toy_config, tmp_path, step=1)
    monkeypatch.setattr(sampling, "VERSION", sampling.VERSION + 1)
    _stopped(toy_config, tmp_path, step=2)
    assert "from step 1 on it sees others of the same seed" in capsys.readouterr().out
