"""What a step draws from."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from reid_jax.models import method
from reid_jax.training.step import make_step, next_state
from tests.training.test_micro_batches import STAGE


class Noisy(method.Method):
    """Reports a number that it draws."""

    def objective(self, variables, batch, *, rng, epoch, stage):
        del batch, epoch, stage
        return variables["params"]["w"], {"drawn": jax.random.normal(rng)}, {}


def test_every_step_seed_and_stage_has_numbers_of_its_own():
    drawn, optimizer = set(), optax.sgd(0.1)
    for index, seed in ((0, 0), (0, 1), (1, 0)):
        stage = dataclasses.replace(STAGE, index=index, micro_batches=1)
        state = next_state({"params": {"w": jnp.ones(())}}, stage, optimizer, seed=seed)
        rate = optax.constant_schedule(0.1)
        step = jax.jit(make_step(Noisy(), stage, optimizer, rate, steps_per_epoch=5))
        for _ in range(2):
            state, metrics = step(state, {})
            drawn.add(float(metrics["drawn"]))
    assert len(drawn) == 6
