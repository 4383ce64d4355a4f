"""`benchmarks/ladder.py`, with a stand-in for the training processes."""

import json
import os
import pathlib
import signal
import types

import pytest

from benchmarks import ladder, trainings
from tests.commands import ended


@pytest.fixture
def training(monkeypatch):
    """Records the runs; each "trains" to an mAP of its seed."""
    calls = []

    def run(command, check):
        del check
        flags = dict(word.split("=", 1) for word in command[3:])
        calls.append(flags)
        seed = int(flags["--config.seed"])
        folder = pathlib.Path(flags["--workdir"])
        folder.mkdir(parents=True)
        metrics = {"rank1": 0.5, "mAP": 0.1 * seed + 0.2, "mINP": 0.25}
        (folder / "results.json").write_text(
            json.dumps([{"step": 9, "metrics": metrics}])
        )
        return types.SimpleNamespace(returncode=0)

    monkeypatch.setattr(trainings.subprocess, "run", run)
    return calls


def start(tmp_path, *arguments):
    config = "--config=configs/aaformer.py:demo"
    return ended(ladder.main, [config, f"--workdir={tmp_path}", *arguments])


def test_every_row_is_a_run_of_the_config_with_that_row(training, tmp_path):
    rows = "--rows=table4-vit,table5-nn,full"
    assert start(tmp_path, rows, "--seeds=3", "--", "--config.max_steps=7") == 0
    told = [(call["--config"], call["--config.seed"]) for call in training]
    vit, nn, full = (
        f"configs/aaformer.py:demo{row}"
        for row in (",row=table4-vit", ",row=table5-nn", "")
    )
    first = [(vit, "0"), (nn, "0"), (full, "0")]
    assert told == [*first, (vit, "1"), (full, "1"), (vit, "2"), (full, "2")]
    assert {call["--config.max_steps"] for call in training} == {"7"}
    table = (tmp_path / "table.md").read_text()
    # Mean and sample deviation of 20, 30 and 40.
    assert "| table4-vit | 3 | 50.0 ± 0.0 | 30.0 ± 10.0 | 25.0 ± 0.0 |" in table
    assert "| table5-nn | 1 | 50.0 | 20.0 | 25.0 |" in table


def test_started_again_it_trains_only_what_is_missing(training, tmp_path):
    assert start(tmp_path, "--rows=table4-vit,full") == 0
    (tmp_path / "full-seed0" / "run.json").unlink()
    (tmp_path / "full-seed0" / "results.json").unlink()
    (tmp_path / "full-seed0").rmdir()
    assert start(tmp_path, "--rows=table4-vit,full") == 0
    folders = [pathlib.Path(call["--workdir"]).name for call in training]
    assert folders == ["table4-vit-seed0", "full-seed0", "full-seed0"]


def test_another_run_in_the_folder_is_not_taken_for_this_one(
    training, tmp_path, capsys
):
    assert start(tmp_path, "--rows=full") == 0
    assert start(tmp_path, "--rows=full", "--", "--config.max_steps=7") == 2
    assert "not of configs/aaformer.py:demo" in capsys.readouterr().err
    assert len(training) == 1


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (1, "this run failed, see above"),
        (0, "was stopped; the same command goes on"),
        (130, "error: stopped; the same command goes on"),
    ],
)
def test_a_run_that_does_not_end(monkeypatch, tmp_path, capsys, result, message):
    done = types.SimpleNamespace(returncode=result)
    monkeypatch.setattr(trainings.subprocess, "run", lambda command, check: done)
    assert start(tmp_path, "--rows=full") == 2
    assert message in capsys.readouterr().err


def test_ctrl_c_is_left_to_the_run(monkeypatch, tmp_path, capsys):
    def run(command, check):
        os.kill(os.getpid(), signal.SIGINT)
        return types.SimpleNamespace(returncode=0)

    monkeypatch.setattr(trainings.subprocess, "run", run)
    assert start(tmp_path, "--rows=full") == 2
    assert "was stopped; the same command goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows=table9"], "has no row 'table9'; known: full, table2-vit"),
        (["--config=configs/none.py"], "there is no config file configs/none.py"),
        (["--config=configs/baseline.py"], "configs/baseline.py has no ROWS"),
    ],
)
def test_what_is_not_there(training, tmp_path, capsys, arguments, message):
    assert start(tmp_path, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not training
