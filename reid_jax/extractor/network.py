"""A network as its users need it, wherever it was read from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

Arrays = dict[str, jax.Array]
"""An Embedding, see `reid_jax.models.method`: arrays by name, the images leading."""


@dataclasses.dataclass(frozen=True)
class Network:
    """What embeds images and compares their embeddings.

    Attributes:
      method: dotted name of the paper's module.
      fingerprint: tells it from another network, see `runtime.fingerprint`.
      image_size: height and width that it takes.
      resize: how images become that large, of `data_pipelines.images.RESIZES`.
      parts: names of the parts whose visibility it tells.
      inputs: what it reads beside the images, in order: of `camera` and `parts`.
      embed: (variables, images uint8 [B, H, W, 3], *inputs) -> Embedding. Rows do not
        depend on each other.
      distance: of two Embeddings, float32 [Q, G]; smaller is more alike.
      variables: the first argument of `embed`.
      squared_distances: whether distances are squares already.
    """

    method: str
    fingerprint: str
    image_size: tuple[int, int]
    resize: str
    parts: tuple[str, ...]
    inputs: tuple[str, ...]
    embed: Callable[..., Arrays]
    distance: Callable[[Arrays, Arrays], jax.Array]
    variables: Any
    squared_distances: bool = False
