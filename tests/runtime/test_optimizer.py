"""Optimizers and schedules against PyTorch's update rules, written out in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.errors import UserError
from reid_jax.runtime.optimizer import (
    OptimizerSpec,
    idle_groups,
    make_optimizer,
    schedule,
)

RATES = (0.1, 0.05, 0.2)
DECAY = 0.01


def _gradients():
    rng = np.random.default_rng(0)
    return [rng.normal(size=5) for _ in RATES]


def _sgd(parameter):
    """torch.optim.SGD: d = g + wd p; buf = m buf + d; p -= lr buf."""
    buffer = 0.0
    for rate, gradient in zip(RATES, _gradients(), strict=True):
        buffer = 0.8 * buffer + gradient + DECAY * parameter
        parameter = parameter - rate * buffer
    return parameter


def _adam(parameter, *, coupled):
    """torch.optim.Adam and AdamW with betas (0.9, 0.999), eps 1e-8."""
    first = second = 0.0
    steps = zip(RATES, _gradients(), strict=True)
    for step, (rate, gradient) in enumerate(steps, start=1):
        if coupled:
            gradient = gradient + DECAY * parameter
        else:
            parameter = parameter - rate * DECAY * parameter
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        scale = np.sqrt(second / (1 - 0.999**step)) + 1e-8
        parameter = parameter - rate * first / (1 - 0.9**step) / scale
    return parameter


REFERENCES = {
    "sgd": _sgd,
    "adam": lambda p: _adam(p, coupled=True),
    "adamw": lambda p: _adam(p, coupled=False),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_updates_are_those_of_pytorch(name):
    start = np.linspace(-1, 1, 5)
    spec = OptimizerSpec(name, 0.1, momentum=0.8, weight_decay=DECAY)
    optimizer = make_optimizer(spec, lambda step: jnp.asarray(RATES)[step])
    parameter = {"w": jnp.asarray(start, jnp.float32)}
    state = optimizer.init(parameter)
    for gradient in _gradients():
        updates, state = optimizer.update(
            {"w": jnp.asarray(gradient)}, state, parameter
        )
        parameter = jax.tree.map(jnp.add, parameter, updates)
    np.testing.assert_allclose(parameter["w"], REFERENCES[name](start), rtol=1e-5)


def test_frozen_paths_do_not_learn_and_keep_no_state():
    spec = OptimizerSpec("sgd", 0.1, weight_decay=DECAY)
    optimizer = make_optimizer(spec, lambda _: 0.1, frozen=("base/",))
    parameters = {"base": {"w": jnp.ones(7)}, "head": {"base": jnp.ones(3)}}
    state = optimizer.init(parameters)
    updates, _ = optimizer.update(parameters, state, parameters)
    assert not np.any(updates["base"]["w"])
    assert np.all(updates["head"]["base"] != 0)
    assert 7 not in {np.size(leaf) for leaf in jax.tree.leaves(state)}


@pytest.mark.parametrize("norm", [0.5, 100.0])
def test_clipping_is_that_of_pytorch(norm):
    """clip_grad_norm_ over all that learns, then SGD with its coupled decay."""
    spec = OptimizerSpec(
        "sgd",
        0.1,
        weight_decay=DECAY,
        clip_norm=norm,
        groups={"bias": {"pattern": "b", "learning_rate": 2.0}},
    )
    optimizer = make_optimizer(spec, lambda _: 0.1, frozen=("frozen",))
    parameters = {"w": jnp.ones(5), "b": jnp.ones(2), "frozen": jnp.ones(3)}
    state = optimizer.init(parameters)
    wanted, buffers = {"w": np.ones(5), "b": np.ones(2)}, {"w": 0.0, "b": 0.0}
    for gradient in _gradients():
        gradients = {"w": gradient, "b": gradient[:2] - 1}
        total = np.sqrt(sum((g**2).sum() for g in gradients.values()))
        for name, g in gradients.items():
            g = g * min(1.0, norm / total) + DECAY * wanted[name]
            buffers[name] = 0.9 * buffers[name] + g
            rate = 0.2 if name == "b" else 0.1
            wanted[name] = wanted[name] - rate * buffers[name]
        given = jax.tree.map(jnp.asarray, gradients) | {"frozen": jnp.full(3, 1e3)}
        updates, state = optimizer.update(given, state, parameters)
        parameters = jax.tree.map(jnp.add, parameters, updates)
    for name, value in wanted.items():
        np.testing.assert_allclose(parameters[name], value, rtol=1e-5)
    assert np.all(parameters["frozen"] == 1)


def test_groups_multiply_rate_and_decay():
    """As PyTorch's parameter groups: TransReID's biases learn twice as fast."""
    spec = OptimizerSpec(
        "sgd",
        0.1,
        weight_decay=DECAY,
        groups={
            "bias": {"pattern": ".*bias$", "learning_rate": 2.0, "weight_decay": 0.0},
            "head": {"pattern": "head/", "learning_rate": 10.0},
            "late": {"pattern": "head/bias"},
            "tail": {"pattern": "kernel"},
        },
    )
    optimizer = make_optimizer(spec, lambda _: 0.1)
    parameters = {
        "base": {"kernel": jnp.full(2, 3.0), "bias": jnp.full(2, 3.0)},
        "head": {"kernel": jnp.full(2, 3.0), "bias": jnp.full(2, 3.0)},
    }
    assert idle_groups(spec, parameters) == ["late", "tail"]
    assert "head" in idle_groups(spec, parameters, frozen=("head/kernel",))
    gradients = jax.tree.map(jnp.ones_like, parameters)
    updates, _ = optimizer.update(gradients, optimizer.init(parameters), parameters)
    wanted = {
        "base": {"kernel": -0.1 * (1 + DECAY * 3), "bias": -0.2},
        "head": {"kernel": -1.0 * (1 + DECAY * 3), "bias": -0.2},
    }
    jax.tree.map(
        lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-6),
        updates,
        wanted,
    )


def test_schedule_of_aaformer():
    """Section IV-A: 8e-4 to 8e-3 in 10 epochs, then a cosine over 120 in all."""
    spec = OptimizerSpec(
        "sgd", 8e-3, warmup_epochs=10, warmup_from=8e-4, final_factor=0.002
    )
    rate = schedule(spec, epochs=120, steps_per_epoch=50)
    assert float(rate(0)) == pytest.approx(8e-4)
    assert float(rate(250)) == pytest.approx((8e-4 + 8e-3) / 2)
    assert float(rate(500)) == pytest.approx(8e-3)
    progress = (2000 - 500) / 5500
    cosine = (1 + math.cos(math.pi * progress)) / 2
    assert float(rate(2000)) == pytest.approx(8e-3 * (0.002 + 0.998 * cosine))
    assert float(rate(6000)) == pytest.approx(1.6e-5)


def test_schedule_of_bot():
    """Luo et al., 2019: 3.5e-6 to 3.5e-4 in 10 epochs, a tenth from 40 and from 70."""
    spec = OptimizerSpec(
        "adam", 3.5e-4, warmup_epochs=10, warmup_from=3.5e-6, milestones=(40, 70)
    )
    rate = schedule(spec, epochs=120, steps_per_epoch=7)
    wanted = {0: 3.5e-6, 35: (3.5e-6 + 3.5e-4) / 2, 70: 3.5e-4, 279: 3.5e-4}
    wanted |= {281: 3.5e-5, 489: 3.5e-5, 491: 3.5e-6, 839: 3.5e-6}
    for step, value in wanted.items():
        assert float(rate(step)) == pytest.approx(value), step
    spec = OptimizerSpec("sgd", 0.1, milestones=(1, 2), decay_factor=0.5)
    rate = schedule(spec, epochs=3, steps_per_epoch=7)
    assert [float(rate(step)) for step in (6, 8, 15)] == pytest.approx(
        [0.1, 0.05, 0.025]
    )


def test_schedule_without_warm_up_starts_at_the_learning_rate():
    rate = schedule(OptimizerSpec("sgd", 0.3), epochs=0.01, steps_per_epoch=10)
    assert float(rate(0)) == pytest.approx(0.3)


def test_unknown_optimizer():
    with pytest.raises(
        UserError, match="'lion' of a stage is unknown; known: sgd, adam, adamw"
    ):
        make_optimizer(OptimizerSpec("lion", 0.1), lambda _: 0.1)
