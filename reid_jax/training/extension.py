"""A run that goes on from its last checkpoint with another schedule: `--extend`.

Batches and schedules are functions of the step in the stage. An extended run goes on at
its step of the new schedule, as if it had been the run's from its start: with more
epochs the cosine is longer, so that the learning rate goes up where it had come down.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reid_jax.errors import UserError
from reid_jax.experiment import Stage
from reid_jax.runtime import workdir as workdirs
from reid_jax.runtime.state import Meta
from reid_jax.training.batches import TrainingBatches


def check_begun(workdir: str) -> None:
    """Raises UserError if there is no run that could be extended."""
    if not workdirs.has_checkpoint(workdir):
        raise UserError(
            f"there is no run in {workdir} that could be extended; leave out --extend "
            "to begin one"
        )


def accepted(
    workdir: str,
    config: dict[str, Any],
    meta: Meta,
    *,
    stages: Sequence[Stage],
    batches: TrainingBatches,
) -> dict[str, Any]:
    """Changed fields, [there, here], that the run in `workdir` can go on with.

    Args:
      workdir: of the run.
      config: that it is to go on with.
      meta: of its last checkpoint.
      stages: of the config.
      batches: of the stages.

    Raises:
      UserError: if what is changed is over.
    """
    changes = workdirs.changes(workdir, config, meta["config"])
    extended = {f: list(pair) for f, pair in changes.items() if workdirs.is_schedule(f)}
    for stage in stages[: meta["stage_index"]]:
        for field in extended:
            if field.startswith(f"stages.{stage.name}."):
                raise UserError(
                    f"config.{field} can no longer be changed: the run in {workdir} is "
                    f"in stage {meta['stage']}, and {stage.name} is over"
                )
    now = stages[meta["stage_index"]]
    if batches.steps(now) < meta["step"]:
        done = meta["step"] / batches.steps_per_epoch(now)
        raise UserError(
            f"config.stages.{now.name}.epochs is {now.epochs:g}, but the run in "
            f"{workdir} has done {done:g} epochs of that stage"
        )
    return extended
