"""Optimizers as the PyTorch papers mean them, and their learning-rate schedules."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax
import optax

from reid_jax.errors import UserError

OPTIMIZERS = ("sgd", "adam", "adamw")


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer with its schedule, all lengths in epochs.

    Attributes:
      name: `sgd` and `adam` couple the weight decay (L2 added to the gradient, which
        is what `weight_decay` means in PyTorch's SGD and Adam); `adamw` decouples it.
      learning_rate: at the end of the warm-up.
      momentum: of SGD; Adam's betas are 0.9 and 0.999.
      weight_decay: applied to every learning parameter, as the papers' code does.
      warmup_epochs: of linear growth from `warmup_from`.
      warmup_from: learning rate of the first step.
      final_factor: the cosine ends at `final_factor * learning_rate`.
    """

    name: str
    learning_rate: float
    momentum: float = 0.9
    weight_decay: float = 0.0
    warmup_epochs: float = 0.0
    warmup_from: float = 0.0
    final_factor: float = 0.0


def schedule(
    spec: OptimizerSpec, *, epochs: float, steps_per_epoch: int
) -> optax.Schedule:
    """Linear warm-up, then a cosine to the last step; a function of the step."""
    warmup = round(spec.warmup_epochs * steps_per_epoch)
    total = round(epochs * steps_per_epoch)
    return optax.warmup_cosine_decay_schedule(
        init_value=spec.warmup_from if warmup else spec.learning_rate,
        peak_value=spec.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(total, warmup + 1),
        end_value=spec.final_factor * spec.learning_rate,
    )


def make_optimizer(
    spec: OptimizerSpec, rate: optax.Schedule, *, frozen: Sequence[str] = ()
) -> optax.GradientTransformation:
    """The optimizer of a training stage.

    Args:
      spec: which optimizer.
      rate: learning rate by step, from `schedule`.
      frozen: regular expressions of parameter paths (`a/b/kernel`, matched from the
        start) that do not learn; they keep no optimizer state either.

    Raises:
      UserError: for an unknown optimizer name.
    """
    decay = optax.add_decayed_weights(spec.weight_decay)
    match spec.name:
        case "sgd":
            learner = optax.chain(decay, optax.sgd(rate, momentum=spec.momentum))
        case "adam":
            learner = optax.chain(decay, optax.adam(rate))
        case "adamw":
            learner = optax.adamw(rate, weight_decay=spec.weight_decay)
        case _:
            raise UserError(
                f"unknown optimizer {spec.name!r}; known: {', '.join(OPTIMIZERS)}"
            )
    if not frozen:
        return learner
    patterns = [re.compile(pattern) for pattern in frozen]

    def label(path: Any, _: Any) -> str:
        name = "/".join(str(getattr(key, "key", key)) for key in path)
        return "frozen" if any(p.match(name) for p in patterns) else "learns"

    return optax.partition(
        {"learns": learner, "frozen": optax.set_to_zero()},
        lambda params: jax.tree_util.tree_map_with_path(label, params),
    )
