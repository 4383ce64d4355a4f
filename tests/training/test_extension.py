"""`--extend`: a run that goes on with another schedule, and says so."""

import json

import numpy as np
import pytest

from reid_jax.errors import UserError
from reid_jax.runtime import optimizer
from reid_jax.training import train
from tests.training.test_resume import _stopped
from tests.training.test_train import _losses, _rows


def test_a_finished_run_goes_on_at_its_step_of_the_new_schedule(
    toy_config, tmp_path, on_devices
):
    on_devices(1)
    train.train_and_evaluate(toy_config, str(tmp_path))
    before = _losses(tmp_path)
    toy_config.stages.second.epochs = 1.0  # of 6 steps; it has done 4
    with pytest.raises(UserError, match=r"0\.66.* there, 1\.0 here(?s:.*)--extend"):
        train.train_and_evaluate(toy_config, str(tmp_path))
    (entry,) = train.train_and_evaluate(toy_config, str(tmp_path), extend=True)

    assert entry["step"] == 12
    losses = _losses(tmp_path)
    assert list(losses) == list(range(1, 13))
    assert all(losses[step] == value for step, value in before.items())
    spec = optimizer.OptimizerSpec(**toy_config.stages.second.optimizer.to_dict())
    rate = optimizer.schedule(spec, epochs=1.0, steps_per_epoch=6)
    rates = {row["step"]: row["learning_rate"] for row in _rows(tmp_path)}
    np.testing.assert_allclose([rates[11], rates[12]], [rate(4), rate(5)], rtol=1e-6)
    assert rates[11] > rates[10]
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["stages"]["second"]["epochs"] == 1.0
    starts = json.loads((tmp_path / "manifest.json").read_text())
    assert [start.get("extended") for start in starts] == [
        None,
        {"from_step": 10, "fields": {"stages.second.epochs": [4 / 6, 1.0]}},
    ]
    # From now on these are the run's own fields.
    assert train.train_and_evaluate(toy_config, str(tmp_path))[0]["step"] == 12


def test_what_cannot_be_extended_is_left_as_it_was(toy_config, tmp_path, on_devices):
    on_devices(1)
    with pytest.raises(UserError, match=r"no run in .* that could be extended"):
        train.train_and_evaluate(toy_config, str(tmp_path / "new"), extend=True)
    assert not (tmp_path / "new").exists()
    _stopped(toy_config, tmp_path, step=8)
    left = (tmp_path / "config.json").read_bytes()
    for stage, field, value, message in (
        ("first", "epochs", 2.0, r"stages\.first\.epochs can no longer be changed"),
        ("second", "epochs", 1 / 6, r"has done 0\.333333 epochs of that stage"),
        ("second", "identities", 3, r"(?s)second\.identities: 4 there.*\.$"),
    ):
        old = toy_config.stages[stage][field]
        toy_config.stages[stage][field] = value
        with pytest.raises(UserError, match=message) as raised:
            train.train_and_evaluate(toy_config, str(tmp_path), extend=True)
        assert "With --extend" not in str(raised.value)
        toy_config.stages[stage][field] = old
    assert (tmp_path / "config.json").read_bytes() == left
