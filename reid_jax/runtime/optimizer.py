"""Optimizers as the PyTorch papers mean them, and their learning-rate schedules."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
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
      milestones: epochs at which the learning rate is multiplied by `decay_factor`,
        in place of the cosine.
      decay_factor: see `milestones`.
      groups: parameters with a learning rate or decay of their own, by name:
        `pattern`, a regular expression of their paths, and the multipliers
        `learning_rate` and `weight_decay`. The first pattern that fits counts; a
        config sorts its groups by name.
        Paths read `a/b/kernel`; patterns match from their start. On the command line
        `--config.stages.train.optimizer.groups.biases.pattern=".*bias$"` makes a group
        `biases`, and `...groups.biases.learning_rate=2` gives it a multiplier.
      clip_norm: gradients whose global norm (of all that learns, of the whole batch) is
        larger are scaled down to it, before weight decay is added, which is what
        `clip_grad_norm_` before a step of PyTorch's means; 0 leaves them as they are.
    """

    name: str
    learning_rate: float
    momentum: float = 0.9
    weight_decay: float = 0.0
    warmup_epochs: float = 0.0
    warmup_from: float = 0.0
    final_factor: float = 0.0
    milestones: tuple[float, ...] = ()
    decay_factor: float = 0.1
    groups: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    clip_norm: float = 0.0


def schedule(
    spec: OptimizerSpec, *, epochs: float, steps_per_epoch: int
) -> optax.Schedule:
    """Linear warm-up, then a cosine to the last step, or steps; by step number."""
    warmup = round(spec.warmup_epochs * steps_per_epoch)
    if spec.milestones:
        return _steps(spec, warmup, steps_per_epoch)
    total = round(epochs * steps_per_epoch)
    return optax.warmup_cosine_decay_schedule(
        init_value=spec.warmup_from if warmup else spec.learning_rate,
        peak_value=spec.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(total, warmup + 1),
        end_value=spec.final_factor * spec.learning_rate,
    )


def _steps(spec: OptimizerSpec, warmup: int, steps_per_epoch: int) -> optax.Schedule:
    falls = {round(m * steps_per_epoch): spec.decay_factor for m in spec.milestones}
    constant = optax.piecewise_constant_schedule(spec.learning_rate, falls)
    if not warmup:
        return constant
    growth = optax.linear_schedule(spec.warmup_from, spec.learning_rate, warmup)
    return lambda step: jnp.where(step < warmup, growth(step), constant(step))


def make_optimizer(
    spec: OptimizerSpec, rate: optax.Schedule, *, frozen: Sequence[str] = ()
) -> optax.GradientTransformation:
    """The optimizer of a training stage.

    Args:
      spec: which optimizer.
      rate: learning rate by step, from `schedule`.
      frozen: regular expressions of parameter paths that do not learn; they keep no
        optimizer state either.

    Raises:
      UserError: for an unknown optimizer name.
    """
    learners = {"": _learner(spec, rate), "frozen": optax.set_to_zero()}
    for name, group in spec.groups.items():
        learners[f"group {name}"] = _learner(spec, rate, **_multipliers(group))
    if not frozen and not spec.groups:
        return _clipped(learners[""], spec.clip_norm)
    labels = functools.partial(_labels, spec, frozen)

    def frozen_ones(params: Any) -> Any:
        return jax.tree.map(lambda name: name == "frozen", labels(params))

    learner = optax.partition(learners, labels)
    return _clipped(learner, spec.clip_norm, frozen=frozen_ones)


def idle_groups(
    spec: OptimizerSpec, params: Any, *, frozen: Sequence[str] = ()
) -> list[str]:
    """Names of the groups that no learning parameter is of; see `make_optimizer`."""
    found = set(jax.tree.leaves(_labels(spec, frozen, params)))
    return [name for name in spec.groups if f"group {name}" not in found]


def _labels(spec: OptimizerSpec, frozen: Sequence[str], params: Any) -> Any:
    """For each parameter `frozen`, `group NAME`, or "" where it is neither."""
    rules = [(re.compile(pattern), "frozen") for pattern in frozen]
    for name, group in spec.groups.items():
        rules.append((re.compile(group["pattern"]), f"group {name}"))

    def label(path: Any, _: Any) -> str:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return next((found for rule, found in rules if rule.match(name)), "")

    return jax.tree_util.tree_map_with_path(label, params)


def _clipped(
    learner: optax.GradientTransformation,
    norm: float,
    *,
    frozen: Callable[[Any], Any] | None = None,
) -> optax.GradientTransformation:
    """Gradients clipped by their global norm; what is frozen has no part in it."""
    if not norm:
        return learner
    clip = optax.clip_by_global_norm(norm)
    if frozen is None:
        return optax.chain(clip, learner)
    return optax.chain(optax.masked(optax.set_to_zero(), frozen), clip, learner)


def _multipliers(group: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in group.items() if name != "pattern"}


def _learner(
    spec: OptimizerSpec,
    rate: optax.Schedule,
    *,
    learning_rate: float = 1.0,
    weight_decay: float = 1.0,
) -> optax.GradientTransformation:
    """The optimizer with its learning rate and decay multiplied."""
    decay = spec.weight_decay * weight_decay

    def scaled(step: jax.Array) -> jax.Array:
        return rate(step) * learning_rate

    match spec.name:
        case "sgd":
            coupled = optax.add_decayed_weights(decay)
            return optax.chain(coupled, optax.sgd(scaled, momentum=spec.momentum))
        case "adam":
            return optax.chain(optax.add_decayed_weights(decay), optax.adam(scaled))
        case "adamw":
            return optax.adamw(scaled, weight_decay=decay)
    raise UserError(
        f"optimizer.name={spec.name!r} of a stage is unknown; known: "
        f"{', '.join(OPTIMIZERS)}"
    )
