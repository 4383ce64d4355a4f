"""A method's training step for tests, compiled."""

from collections.abc import Callable
from typing import Any

import jax

from reid_jax.models.method import Method


def training_step(method: Method, stage: str = "train") -> Callable[..., Any]:
    """The jitted (variables, batch, rng, epoch) -> ((loss, rest), gradients).

    `rest` are the metrics and the new collections; `rng` and `epoch` may be left out.
    """

    @jax.jit
    def run(variables: Any, batch: Any, rng: jax.Array, epoch: float) -> Any:
        def loss(params: Any) -> tuple[jax.Array, Any]:
            value, *rest = method.objective(
                {**variables, "params": params},
                batch,
                rng=rng,
                epoch=epoch,
                stage=stage,
            )
            return value, tuple(rest)

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    def step(variables: Any, batch: Any, rng: Any = None, epoch: float = 0.0) -> Any:
        rng = jax.random.key(0) if rng is None else rng
        return run(variables, batch, rng, epoch)

    return step
