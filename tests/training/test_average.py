"""Moving averages of parameters and batch statistics: kept, resumed, evaluated."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reid_jax import experiment
from reid_jax.errors import UserError
from reid_jax.evaluation import evaluate
from reid_jax.experiment import Stage
from reid_jax.runtime import checkpoint, sharding
from reid_jax.runtime.optimizer import OptimizerSpec
from reid_jax.training import train
from reid_jax.training.step import StageProgram, make_step, next_state
from reid_jax.weights import folders
from tests.training.test_resume import _stopped
from tests.training.test_train import _assert_bitwise_equal, _state

STAGE = Stage(0, "train", 1.0, 2, 2, OptimizerSpec("sgd", 0.1))


@pytest.fixture
def averaging(toy_config, on_devices):
    """A run that keeps averages, on two devices."""
    on_devices(2)
    toy_config.ema_decay = 0.9
    return toy_config


def test_averages_are_those_of_a_loop():
    def objective(variables, batch, *, rng, epoch, stage):
        del rng, epoch, stage
        loss = jnp.sum(jnp.sin(batch["x"] * variables["params"]["w"]))
        seen = variables["batch_stats"]["mean"] * 0.5 + batch["x"]
        new = {"batch_stats": {"mean": seen}, "bank": variables["bank"] + 1}
        return loss, {}, new

    method = types.SimpleNamespace(objective=objective)
    variables = {
        "params": {"w": jnp.arange(3.0)},
        "batch_stats": {"mean": jnp.ones(3)},
        "bank": jnp.zeros(2, jnp.int32),
    }
    sgd = optax.sgd(0.3)
    step = make_step(
        *(method, STAGE, sgd, lambda _: 0.3), steps_per_epoch=5, ema_decay=0.8
    )
    state = next_state(variables, STAGE, sgd, seed=0, ema_decay=0.8)
    parameter, mean = np.arange(3.0), np.ones(3)
    averages = [parameter, mean]
    for x in (0.5, 1.0, 2.0):
        state, _ = step(state, {"x": jnp.full(3, x)})
        parameter = parameter - 0.3 * x * np.cos(x * parameter)
        mean = mean * 0.5 + x
        pairs = zip(averages, (parameter, mean), strict=True)
        averages = [0.8 * average + 0.2 * value for average, value in pairs]
    assert set(state.average) == {"params", "batch_stats"}
    np.testing.assert_allclose(state.average["params"]["w"], averages[0], rtol=1e-5)
    found = state.averaged
    np.testing.assert_allclose(found["batch_stats"]["mean"], averages[1], rtol=1e-5)
    assert found["bank"].tolist() == [3, 3]


def test_averages_are_resumed_exactly_and_begin_anew_in_a_stage(averaging, tmp_path):
    averaging.shard_parameters = True
    averaging.checkpoint.update(every_epochs=1 / 6, keep=10)
    train.train_and_evaluate(averaging, str(tmp_path / "straight"))
    averaging.checkpoint.every_epochs = 0.0
    _stopped(averaging, tmp_path / "parts", step=4)
    train.train_and_evaluate(averaging, str(tmp_path / "parts"))
    states = [_state(tmp_path / "straight", step) for step in (4, 5, 6, 7)]
    _assert_bitwise_equal(
        _state(tmp_path / "parts", 10), _state(tmp_path / "straight", 10)
    )

    average, after = states[0]["average"], states[1]
    wanted = jax.tree.map(
        lambda a, p: 0.9 * a + 0.1 * p, average, {"params": after["params"]}
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        *(after["average"], wanted),
    )
    # The first stage's last parameters are what the second's averages begin with.
    border = states[2]["params"]
    _assert_bitwise_equal(states[3]["average"]["params"]["base"], border["base"])
    assert not np.array_equal(
        states[2]["average"]["params"]["base"]["kernel"], border["base"]["kernel"]
    )


def test_the_average_is_evaluated_and_exported_by_choice(averaging, tmp_path, capsys):
    (entry,) = train.train_and_evaluate(averaging, str(tmp_path))
    assert entry["averaged"]
    folder = checkpoint.find(str(tmp_path / "checkpoints" / "last"))
    stored = _state(tmp_path, 10)
    mesh = sharding.make_mesh()
    _, variables = experiment.restore(averaging, folder, mesh)
    _assert_bitwise_equal(dict(variables["params"]), stored["average"]["params"])
    # Another run that starts from this one starts from what it is evaluated by.
    read, _ = folders.read(folder.parent.parent / "last" / "10")
    _assert_bitwise_equal(read["params"], stored["average"]["params"])
    path, again = f"{tmp_path}/checkpoints/last/10", str(tmp_path / "again")
    (same,) = evaluate.evaluate_checkpoint(averaging, path, workdir=again)
    assert same["averaged"]
    assert same["metrics"] == entry["metrics"]
    assert "changed" not in same

    averaging.evaluation.ema = False
    capsys.readouterr()
    _, variables = experiment.restore(averaging, folder, mesh)
    _assert_bitwise_equal(dict(variables["params"]), stored["params"])
    assert "config.evaluation.ema is False" in capsys.readouterr().out
    changed = experiment.changed_fields(
        averaging, checkpoint.read_meta(folder)["config"]
    )
    assert changed == {"evaluation.ema": False}


def test_averages_lie_as_parameters_do(averaging, monkeypatch):
    monkeypatch.setattr(sharding, "LEAST_SPLIT", 8)
    method = experiment.build_method(averaging, num_classes=9)
    stage, _ = experiment.build_stages(averaging, method)
    program = StageProgram(
        method,
        stage,
        sharding.make_mesh(),
        shapes=experiment.example_batch(averaging, stage.batch_size),
        steps_per_epoch=6,
        seed=0,
        shard_parameters=True,
        ema_decay=0.9,
    )
    assert program.layout.average == {"params": program.layout.params}
    split = jax.tree.leaves(program.layout.params)
    assert any(one.spec != jax.sharding.PartitionSpec() for one in split)


def test_a_run_of_an_older_version_goes_on_without_averages(
    toy_config, tmp_path, on_devices
):
    on_devices(1)
    _stopped(toy_config, tmp_path, step=1)
    assert "average" not in _state(tmp_path, 1)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    del config["ema_decay"], config["evaluation"]["ema"]
    for stage in config["stages"].values():
        del stage["optimizer"]["clip_norm"]
    path.write_text(json.dumps(config))
    _stopped(toy_config, tmp_path, step=2)
    path.write_text(json.dumps(config))
    toy_config.ema_decay = 0.9
    with pytest.raises(UserError, match=r"ema_decay: 0\.0 there, 0\.9 here"):
        train.train_and_evaluate(toy_config, str(tmp_path))


def test_a_decay_is_below_one(toy_config, tmp_path):
    toy_config.ema_decay = 1.0
    with pytest.raises(
        UserError, match=r"ema_decay is 1\.0; it must be at least 0 and"
    ):
        train.train_and_evaluate(toy_config, str(tmp_path))
