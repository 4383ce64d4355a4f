"""The centre loss in a run: its centres are state, beside the parameters."""

import numpy as np

from reid_jax.training import train
from tests.training.test_train import _assert_bitwise_equal, _losses, _state


def test_centres_are_the_same_on_any_number_of_devices_and_resumed(
    baseline_config, tmp_path, on_devices
):
    def run(name, *, steps):
        baseline_config.max_steps = steps
        train.train_and_evaluate(baseline_config, str(tmp_path / name))
        return _state(tmp_path / name, steps)

    on_devices(2)
    straight, first = run("straight", steps=3), run("parts", steps=1)
    _assert_bitwise_equal(run("parts", steps=3), straight)
    on_devices(8)
    eight = run("eight", steps=3)
    before, after, other = (
        state["collections"]["centers"]["heads"] for state in (first, straight, eight)
    )
    assert after.shape == (9, 1, 12)
    assert not np.allclose(before, after)
    np.testing.assert_allclose(other, after, rtol=1e-5, atol=1e-6)
    losses = [list(_losses(tmp_path / n).values()) for n in ("straight", "eight")]
    np.testing.assert_allclose(*losses, rtol=1e-5)
