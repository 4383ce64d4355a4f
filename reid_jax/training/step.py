"""A training state's beginning, and the step that advances it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from reid_jax.experiment import Stage
from reid_jax.layers.gradients import summed_in
from reid_jax.models.method import Batch, Method
from reid_jax.runtime import checkpoint, sharding
from reid_jax.runtime.optimizer import make_optimizer, schedule
from reid_jax.runtime.state import AVERAGED, TrainState

StepFunction = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]

# Folded into the seed for initial parameters; stages fold in their index, from 0.
_INIT = 2**31 - 1


def init_state(
    method: Method,
    stage: Stage,
    optimizer: optax.GradientTransformation,
    given: Any = None,
    *,
    shapes: dict[str, jax.ShapeDtypeStruct],
    seed: int,
    ema_decay: float = 0.0,
) -> TrainState:
    """A fresh state of the first stage; to be traced.

    Args:
      method: whose variables.
      stage: the first one.
      optimizer: of that stage.
      given: variables that it begins with, None in the places of those to be drawn; or
        None for all of them.
      shapes: of a training batch.
      seed: of the run.
      ema_decay: see `next_state`.
    """
    example = {name: jnp.zeros(x.shape, x.dtype) for name, x in shapes.items()}
    key = jax.random.fold_in(jax.random.key(seed), _INIT)
    variables = method.init(key, example)
    if given is not None:
        # What is not drawn is not compiled: most of it, where a backbone is given.
        variables = jax.tree.map(
            lambda drawn, array: drawn if array is None else array, variables, given
        )
    return next_state(variables, stage, optimizer, seed=seed, ema_decay=ema_decay)


def next_state(
    variables: Any,
    stage: Stage,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    ema_decay: float = 0.0,
) -> TrainState:
    """The state at the start of a stage, from the variables that it begins with.

    With an `ema_decay` above 0 these are what the averages begin with, too.
    """
    rest = {name: value for name, value in variables.items() if name != "params"}
    return TrainState(
        # An explicit dtype: a weakly typed zero would make the second step recompile.
        step=jnp.zeros((), jnp.int32),
        rng=jax.random.fold_in(jax.random.key(seed), stage.index),
        params=variables["params"],
        collections=rest,
        opt_state=optimizer.init(variables["params"]),
        # A copy: what is donated to the step must not be given twice.
        average=jax.tree.map(jnp.copy, _averaged(variables)) if ema_decay else None,
    )


def _averaged(variables: Any) -> dict[str, Any]:
    """The collections that averages are kept of."""
    return {name: variables[name] for name in AVERAGED if name in variables}


def state_layout(
    method: Method,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    *,
    shapes: dict[str, jax.ShapeDtypeStruct],
    shard_parameters: bool = False,
    ema_decay: float = 0.0,
) -> TrainState:
    """Where the arrays of a state lie: a prefix of its tree, with shardings as leaves.

    Args:
      method: whose `row_axes` are split over the devices.
      optimizer: of the stage.
      mesh: of the run.
      shapes: of a training batch of the first stage.
      shard_parameters: whether parameters and optimizer state are split over the
        devices, see `largest_axis_sharding`; else each device has all of them.
      ema_decay: above 0 there are averages, which lie as what they are of.
    """
    variables = jax.eval_shape(method.init, jax.random.key(0), shapes)
    everywhere = sharding.replicated(mesh)
    params, opt_state = everywhere, everywhere
    if shard_parameters:
        shape = variables["params"]
        params, opt_state = sharding.largest_axis_sharding(
            (shape, jax.eval_shape(optimizer.init, shape)), mesh
        )
    rest = {
        name: sharding.row_sharding(value, mesh, axis=method.row_axes[name])
        if name in method.row_axes
        else everywhere
        for name, value in variables.items()
        if name != "params"
    }
    average = _averaged({"params": params, **rest}) if ema_decay else None
    return TrainState(everywhere, everywhere, params, rest, opt_state, average)


def make_step(
    method: Method,
    stage: Stage,
    optimizer: optax.GradientTransformation,
    rate: optax.Schedule,
    *,
    steps_per_epoch: int,
    layout: TrainState | None = None,
    ema_decay: float = 0.0,
    gradient_dtype: str = "compute",
) -> StepFunction:
    """The training step of a stage: (state, global batch) -> (state, scalar metrics).

    To be jitted over a mesh; everything in it sees the whole batch.

    Args:
      method: to train.
      stage: of it.
      optimizer: of the stage.
      rate: learning rate by step, a metric.
      steps_per_epoch: batches in an epoch.
      layout: of the states, from `state_layout`; None where there is no mesh.
      ema_decay: what is left of the averages in a step; 0 where there are none.
      gradient_dtype: see `summed_in`.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
        gradients, (metrics, collections) = _differentiate(
            method,
            stage,
            state,
            batch,
            steps_per_epoch=steps_per_epoch,
            layout=layout,
            gradient_dtype=gradient_dtype,
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        metrics = {
            **metrics,
            "gradient_norm": optax.tree.norm(gradients),
            "learning_rate": rate(state.step),
        }
        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            collections=collections,
            opt_state=opt_state,
        )
        if ema_decay:
            state = state.replace(average=_move_average(state, ema_decay))
        return state, metrics

    return step


def _move_average(state: TrainState, decay: float) -> dict[str, Any]:
    """decay * average + (1 - decay) * value, such that what rests is left as it is."""
    return jax.tree.map(
        lambda average, value: average + (1 - decay) * (value - average),
        state.average,
        _averaged(state.variables),
    )


def _differentiate(
    method: Method,
    stage: Stage,
    state: TrainState,
    batch: Batch,
    *,
    steps_per_epoch: int,
    layout: TrainState | None,
    gradient_dtype: str,
) -> tuple[Any, tuple[dict[str, jax.Array], Any]]:
    """Gradients of the objective, its metrics, and the collections after the batch.

    Parameters that `layout` splits are gathered to be used, and their gradients split
    again: left to itself, the compiler moves activations between the devices as well.
    """
    mesh = layout.step.mesh if layout else None
    whole, split = (sharding.replicated(mesh), layout.params) if mesh else (None, None)

    def objective(
        params: Any, collections: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
        params = sharding.constrain(params, whole)
        with sharding.within(mesh), summed_in(gradient_dtype):
            loss, metrics, new = method.objective(
                {"params": params, **collections},
                batch,
                rng=key,
                epoch=state.step.astype(jnp.float32) / steps_per_epoch,
                stage=stage.name,
            )
        return loss, ({"loss": loss, **metrics}, {**collections, **new})

    def of_rows(*inputs: Any) -> tuple[Any, Any]:
        gradients, rest = jax.grad(objective, has_aux=True)(state.params, *inputs)
        return sharding.constrain(gradients, split), rest

    inputs = state.collections, batch, jax.random.fold_in(state.rng, state.step)
    if stage.micro_batches == 1:
        return of_rows(*inputs)
    return _over_parts(of_rows, *inputs, params=state.params, stage=stage, mesh=mesh)


def _over_parts(
    differentiate: Callable[..., tuple[Any, Any]],
    collections: Any,
    batch: Batch,
    key: jax.Array,
    *,
    params: Any,
    stage: Stage,
    mesh: jax.sharding.Mesh | None,
) -> tuple[Any, tuple[dict[str, jax.Array], Any]]:
    """Differentiates the stage's micro-batches one after the other.

    They are parts of consecutive rows, which the devices exchange so that each part is
    spread over all of them: the same parts on any number of devices.

    Args:
      differentiate: (collections, batch, key) -> gradients, (metrics, collections).
      collections, batch, key: of the whole batch; each part has a key of its own.
      params: as the gradients in shape and place.
      stage: how many parts.
      mesh: of the run, if there is one.

    Returns:
      means of gradients and metrics, and the collections that went from part to part.
    """
    count = stage.micro_batches
    parts = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)
    if mesh:
        parts = sharding.constrain(parts, sharding.batch_sharding(mesh, axis=1))

    def one(carry: Any, inputs: Any) -> tuple[Any, dict[str, jax.Array]]:
        total, collections = carry
        index, part = inputs
        gradients, (metrics, collections) = differentiate(
            collections, part, jax.random.fold_in(key, index)
        )
        return (jax.tree.map(jnp.add, total, gradients), collections), metrics

    (total, collections), metrics = jax.lax.scan(
        one,
        (jax.tree.map(jnp.zeros_like, params), collections),
        (jnp.arange(count), parts),
    )
    mean = jax.tree.map(lambda x: x / count, total)
    return mean, (jax.tree.map(lambda x: x.mean(0), metrics), collections)


def stage_optimizer(
    method: Method, stage: Stage, *, steps_per_epoch: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer of a stage, and its learning rate by step."""
    rate = schedule(
        stage.optimizer, epochs=stage.epochs, steps_per_epoch=steps_per_epoch
    )
    frozen = method.frozen(stage.name)
    return make_optimizer(stage.optimizer, rate, frozen=frozen), rate


class StageProgram:
    """A stage's step and state over a mesh, for whoever runs it.

    Args:
      method: to train.
      stage: of it.
      mesh: of the run.
      shapes: of a training batch of the first stage.
      steps_per_epoch: batches in an epoch.
      seed: of the run.
      shard_parameters: see `state_layout`.
      ema_decay, gradient_dtype: see `make_step`.

    Attributes:
      step: the function of `make_step`, compiled once. It donates the state and returns
        it laid out as `layout`.
      layout: of states, see `state_layout`.
    """

    def __init__(
        self,
        method: Method,
        stage: Stage,
        mesh: jax.sharding.Mesh,
        *,
        shapes: dict[str, jax.ShapeDtypeStruct],
        steps_per_epoch: int,
        seed: int,
        shard_parameters: bool = False,
        ema_decay: float = 0.0,
        gradient_dtype: str = "compute",
    ):
        optimizer, rate = stage_optimizer(
            method, stage, steps_per_epoch=steps_per_epoch
        )
        self.layout = state_layout(
            method,
            optimizer,
            mesh,
            shapes=shapes,
            shard_parameters=shard_parameters,
            ema_decay=ema_decay,
        )
        self.step: StepFunction = jax.jit(
            make_step(
                method,
                stage,
                optimizer,
                rate,
                steps_per_epoch=steps_per_epoch,
                layout=self.layout,
                gradient_dtype=gradient_dtype,
                ema_decay=ema_decay,
            ),
            donate_argnums=0,
            out_shardings=(self.layout, sharding.replicated(mesh)),
        )
        self._init = functools.partial(
            init_state,
            method,
            stage,
            optimizer,
            shapes=shapes,
            seed=seed,
            ema_decay=ema_decay,
        )
        self._next = functools.partial(
            next_state, stage=stage, optimizer=optimizer, seed=seed, ema_decay=ema_decay
        )

    def fresh(self, given: Any = None) -> TrainState:
        """A state that has learned nothing but what is given, born on the mesh.

        Args:
          given: variables as `blank` has them, arrays in some places.
        """
        arrays = jax.tree.map(
            lambda x: None if isinstance(x, jax.ShapeDtypeStruct) else x, given
        )
        return jax.jit(self._init, out_shardings=self.layout)(arrays)

    def blank(self) -> Any:
        """Shapes, dtypes and shardings of the variables, for values to be put in."""
        return checkpoint.place(self.abstract().variables, self.layout.variables)

    def abstract(self) -> TrainState:
        """Shapes and dtypes of a state."""
        return jax.eval_shape(self._init)

    def following(self, variables: Any) -> TrainState:
        """The state that goes on from what another stage has learned."""
        return jax.jit(self._next, out_shardings=self.layout)(variables)
