"""The centre loss in a run: its centres are state, beside the parameters."""

import numpy as np

from reid_jax import experiment
from reid_jax.runtime import checkpoint, sharding
from reid_jax.training import train
from tests.training.test_train import _losses, _state


def test_centres_are_the_same_on_any_number_of_devices_and_resumed(
    baseline_config, tmp_path, on_devices
):
    def run(name, *, steps):
        baseline_config.max_steps = steps
        train.train_and_evaluate(baseline_config, str(tmp_path / name))
        state = _state(tmp_path / name, steps)
        return state["collections"]["centers"]["heads"]

    on_devices(1)
    straight = run("straight", steps=3)
    on_devices(2)
    first, resumed = run("parts", steps=1), run("parts", steps=3)
    assert straight.shape == (9, 1, 12)
    # Evaluation does without them, also with the loss of another run.
    for weight in (5e-4, 0.0):
        baseline_config.model.center_weight = weight
        _, variables = experiment.restore(
            baseline_config,
            checkpoint.find(str(tmp_path / "parts")),
            sharding.make_mesh(),
        )
        assert set(variables) == {"params", "batch_stats"}
    assert not np.allclose(first, straight)
    np.testing.assert_allclose(resumed, straight, rtol=1e-5, atol=1e-6)
    losses = [list(_losses(tmp_path / name).values()) for name in ("straight", "parts")]
    np.testing.assert_allclose(*losses, rtol=1e-5)
