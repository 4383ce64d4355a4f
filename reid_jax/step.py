"""A training state's beginning, and the step that advances it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from reid_jax.experiment import Stage
from reid_jax.models.method import Batch, Method
from reid_jax.runtime import sharding
from reid_jax.runtime.checkpoint import TrainState

StepFunction = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]

# Folded into the seed for initial parameters; stages fold in their index, from 0.
_INIT = 2**31 - 1


def init_state(
    method: Method,
    stage: Stage,
    optimizer: optax.GradientTransformation,
    *,
    shapes: dict[str, jax.ShapeDtypeStruct],
    seed: int,
) -> TrainState:
    """A fresh state of the first stage; to be traced.

    Args:
      method: whose variables.
      stage: the first one.
      optimizer: of that stage.
      shapes: of a training batch.
      seed: of the run.
    """
    example = {name: jnp.zeros(x.shape, x.dtype) for name, x in shapes.items()}
    key = jax.random.fold_in(jax.random.key(seed), _INIT)
    return next_state(method.init(key, example), stage, optimizer, seed=seed)


def next_state(
    variables: Any,
    stage: Stage,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
) -> TrainState:
    """The state at the start of a stage, from the variables that it begins with."""
    rest = {name: value for name, value in variables.items() if name != "params"}
    return TrainState(
        # An explicit dtype: a weakly typed zero would make the second step recompile.
        step=jnp.zeros((), jnp.int32),
        rng=jax.random.fold_in(jax.random.key(seed), stage.index),
        params=variables["params"],
        collections=rest,
        opt_state=optimizer.init(variables["params"]),
    )


def state_layout(
    method: Method, mesh: jax.sharding.Mesh, *, shapes: dict[str, jax.ShapeDtypeStruct]
) -> TrainState:
    """Where the arrays of a state lie: a prefix of its tree, with shardings as leaves.

    Args:
      method: whose `row_axes` are split over the devices.
      mesh: of the run.
      shapes: of a training batch of the first stage.
    """
    variables = jax.eval_shape(method.init, jax.random.key(0), shapes)
    everywhere = sharding.replicated(mesh)
    rest = {
        name: sharding.row_sharding(value, mesh, axis=method.row_axes[name])
        if name in method.row_axes
        else everywhere
        for name, value in variables.items()
        if name != "params"
    }
    return TrainState(everywhere, everywhere, everywhere, rest, everywhere)


def make_step(
    method: Method,
    stage: Stage,
    optimizer: optax.GradientTransformation,
    rate: optax.Schedule,
    *,
    steps_per_epoch: int,
) -> StepFunction:
    """The training step of a stage: (state, global batch) -> (state, scalar metrics).

    To be jitted over a mesh; everything in it sees the whole batch.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
        def objective(params: Any) -> tuple[jax.Array, tuple[Any, Any]]:
            loss, metrics, new = method.objective(
                {"params": params, **state.collections},
                batch,
                rng=jax.random.fold_in(state.rng, state.step),
                epoch=state.step.astype(jnp.float32) / steps_per_epoch,
                stage=stage.name,
            )
            return loss, (metrics, new)

        value_and_grad = jax.value_and_grad(objective, has_aux=True)
        (loss, (metrics, new)), gradients = value_and_grad(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        metrics = {
            "loss": loss,
            **metrics,
            "gradient_norm": optax.tree.norm(gradients),
            "learning_rate": rate(state.step),
        }
        return (
            state.replace(
                step=state.step + 1,
                params=optax.apply_updates(state.params, updates),
                collections={**state.collections, **new},
                opt_state=opt_state,
            ),
            metrics,
        )

    return step


def jit_step(
    method: Method,
    stage: Stage,
    optimizer: optax.GradientTransformation,
    rate: optax.Schedule,
    *,
    steps_per_epoch: int,
    layout: TrainState,
    mesh: jax.sharding.Mesh,
) -> StepFunction:
    """The step of `make_step` compiled over a mesh, once per stage.

    It donates the state and returns it laid out as `layout` (from `state_layout`).
    """
    return jax.jit(
        make_step(method, stage, optimizer, rate, steps_per_epoch=steps_per_epoch),
        donate_argnums=0,
        out_shardings=(layout, sharding.replicated(mesh)),
    )
