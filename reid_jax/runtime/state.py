"""What a training step reads and writes, and what a checkpoint says of it."""

from __future__ import annotations

from typing import Any, TypedDict

import flax
import jax

AVERAGED = ("params", "batch_stats")
"""Collections that a moving average is kept of: the network as it is evaluated."""


class TrainState(flax.struct.PyTreeNode):
    """What a training step reads and writes.

    Attributes:
      step: int32 scalar, steps done in this stage.
      rng: root key of this stage; step keys are folded from it.
      params: parameters.
      collections: every other Flax collection (batch statistics, memory banks).
      opt_state: of this stage's optimizer.
      average: moving averages over this stage of the collections of `AVERAGED`, by
        name; None where the run keeps none.
    """

    step: jax.Array
    rng: jax.Array
    params: Any
    collections: Any
    opt_state: Any
    average: Any = None

    @property
    def variables(self) -> dict[str, Any]:
        """All Flax collections, as `Method` takes them."""
        return {"params": self.params, **self.collections}

    @property
    def averaged(self) -> dict[str, Any]:
        """All Flax collections, averages in the place of what they are of."""
        return {**self.variables, **(self.average or {})}

    @property
    def as_saved(self) -> dict[str, Any]:
        """What is saved, by name: nothing for averages that a run does not keep."""
        return {name: x for name, x in vars(self).items() if x is not None}


class Meta(TypedDict):
    """What a checkpoint says of itself; JSON.

    Attributes:
      stage, stage_index: the training stage that it was saved in.
      step, global_step: steps done in that stage, and in the whole run.
      method: dotted name of the module.
      num_classes: training identities.
      metric_rows: rows of `metrics.jsonl` that were written before it.
      data: fingerprint of the training split, see `Records.fingerprint`; absent in
        checkpoints of older versions.
      process_count: processes that saved it.
      best: score, stage and entries of `results.json` of the run's best evaluation so
        far; None before the first.
      evaluation_due: whether an evaluation of this state was put off by a notice to
        stop; absent in checkpoints of older versions.
      sampler: version of the plan of its batches, `sampling.VERSION`; absent for 1.
      config: fields by dotted name.
    """

    stage: str
    stage_index: int
    step: int
    global_step: int
    method: str
    num_classes: int
    metric_rows: int
    data: dict[str, Any]
    process_count: int
    best: dict[str, Any] | None
    evaluation_due: bool
    sampler: int
    config: dict[str, Any]


def wrong_entry(meta: Any) -> str:
    """What is wrong with what should be `Meta`, as in "lacks 'step'"; "" if nothing."""
    if not isinstance(meta, dict):
        return "is no JSON object"
    kinds = {"stage": str, "method": str, "config": dict}
    kinds |= dict.fromkeys(("stage_index", "step", "global_step"), int)
    kinds |= dict.fromkeys(("num_classes", "process_count"), int)
    for name, kind in kinds.items():
        if name not in meta:
            return f"lacks {name!r}"
        value, least = meta[name], 1 if name == "num_classes" else 0
        if not isinstance(value, kind) or (kind is int and value < least):
            return f"has {value!r} as {name!r}"
    best = meta.get("best")
    if best is not None and not isinstance(best, dict):
        return f"has {best!r} as 'best'"
    return ""
