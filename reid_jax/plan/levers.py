"""What a run can change to fit: fields of its config, the smallest change first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from reid_jax.experiment import Stage

_MOST_PARTS = 8

Fields = dict[str, Any]


def levers(config: Any, stage: Stage, *, devices: int) -> Iterator[Fields]:
    """Changes of fields of a config, to be tried in turn.

    First those that leave results as they are: parameters split over devices, then
    blocks that are computed again for their gradients, then both. Then bfloat16, which
    rounds, and at last parts of a batch one after the other, which see less of it; each
    alone, and with everything before it.

    Args:
      config: whose fields are as they are.
      stage: whose step does not fit.
      devices: that it runs on.
    """
    parts = f"stages.{stage.name}.micro_batches"
    taken: Fields = {}
    for more in _single(config, stage, devices):
        yield more
        if taken:
            yield taken | more
        if parts not in more:
            taken |= more


def _single(config: Any, stage: Stage, devices: int) -> Iterator[Fields]:
    """The levers that are not used yet, each alone."""
    model = config.model
    if devices > 1 and not config.shard_parameters:
        yield {"shard_parameters": True}
    if "remat" in model and not model.remat:
        yield {"model.remat": True}
    if model.get("dtype", "bfloat16") != "bfloat16":
        yield {"model.dtype": "bfloat16"}
    parts = 2 * stage.micro_batches
    while parts <= _MOST_PARTS and _cuts(stage, parts, devices):
        yield {f"stages.{stage.name}.micro_batches": parts}
        parts *= 2


def _cuts(stage: Stage, parts: int, devices: int) -> bool:
    """Whether a batch makes so many parts of two identities or more for the devices."""
    return (
        stage.identities % parts == 0
        and stage.identities >= 2 * parts
        and stage.batch_size // parts % devices == 0
    )
