"""A run compiles each function once, over epochs, evaluations and ragged ends."""

import collections
import contextlib

import jax
import pytest

from reid_jax.evaluation import evaluate
from reid_jax.training import train

EVENT = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def compilations():
    """Counts what is compiled, by the name of the function."""
    found = collections.Counter()

    def listen(event, seconds, **about):
        if event == EVENT:
            found[about["fun_name"].removeprefix("jit(").removesuffix(")")] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture
def ragged_toy(toy_config):
    """Two epochs a stage; blocks that divide neither 15 queries nor 30 images."""
    for stage in toy_config.stages.values():
        stage.epochs = 2.0
    toy_config.evaluation.every_epochs = 0.5
    toy_config.checkpoint.every_epochs = 0.5
    toy_config.evaluation.query_block = 4
    toy_config.evaluation.pair_block = 4
    return toy_config


EVALUATED = ("embed", "_distances", "_pair_maps", "scores", "fuse")


def _of(found, *names):
    return {name: found[name] for name in names}


def test_a_run_compiles_each_function_once(
    ragged_toy, tmp_path, on_devices, monkeypatch
):
    on_devices(2)
    evaluations = []
    original = evaluate.evaluate_protocols

    def keep(*args, **rest):
        entries = original(*args, **rest)
        evaluations.append(found.copy())
        return entries

    monkeypatch.setattr(evaluate, "evaluate_protocols", keep)
    with compilations() as found:
        train.train_and_evaluate(ragged_toy, str(tmp_path))
    assert _of(found, "init_state", "next_state") == {"init_state": 1, "next_state": 1}
    assert found["step"] == 2  # stages
    assert _of(found, *EVALUATED) == dict.fromkeys(EVALUATED, 1)
    assert len(evaluations) == 8
    # Once the first save is over, nothing at all in steps, saves and evaluations.
    assert evaluations[3] == evaluations[2] == evaluations[1]


def test_a_resumed_run_compiles_what_is_left_once(ragged_toy, tmp_path, on_devices):
    on_devices(2)
    ragged_toy.max_steps = 13  # one into the second stage
    train.train_and_evaluate(ragged_toy, str(tmp_path))
    ragged_toy.max_steps = 0
    with compilations() as found:
        train.train_and_evaluate(ragged_toy, str(tmp_path))
    assert _of(found, "init_state", "next_state") == {"init_state": 0, "next_state": 0}
    assert found["step"] == 1
    assert _of(found, *EVALUATED) == dict.fromkeys(EVALUATED, 1)
    with ragged_toy.ignore_type():
        ragged_toy.model.top_k = None  # the whole gallery: 7 blocks of 4, one of 2
    with compilations() as found:
        evaluate.evaluate_checkpoint(
            ragged_toy,
            f"{tmp_path}/checkpoints/last/24",
            workdir=str(tmp_path / "again"),
        )
    assert _of(found, *EVALUATED) == dict.fromkeys(EVALUATED, 1)
