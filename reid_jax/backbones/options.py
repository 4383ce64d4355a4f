"""Whether a backbone has the options that a config gives it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from reid_jax.backbones.resnet import ResNet
from reid_jax.errors import UserError


def check_options(
    backbone: type[nn.Module], options: Mapping[str, Any], *, hint: str
) -> None:
    """Raises UserError for options that a whole backbone does not have.

    Args:
      backbone: its module.
      options: `config.model.options`.
      hint: how both are chosen together, for the message.
    """
    fields = [field.name for field in dataclasses.fields(backbone)]
    if unknown := [name for name in options if name not in fields]:
        raise UserError(
            f"model.options has {', '.join(unknown)}, which no {backbone.__name__} "
            f"has: {hint}"
        )
    blocks = options.get("blocks", (0, 0, 0, 0))
    if backbone is ResNet and len(blocks) != 4:
        raise UserError(
            f"model.options.blocks={tuple(blocks)}: give four layers' bottlenecks"
        )
