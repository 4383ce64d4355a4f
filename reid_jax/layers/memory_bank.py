"""A memory of the last batches' part embeddings, first in, first out.

Source: the part embedding memory bank of DROP (Dou et al., 2023), section 3.3. It is a
collection of a method's variables that only the training step reads and changes:

embeddings  float32 [M, B, K, D], of M batches of B images with K parts
labels      int32 [M, B], `EMPTY` where nothing has been stored yet
pointer     int32 scalar, the place that the next batch takes

The images of a batch keep their places along B, which may lie over the devices.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from reid_jax.errors import UserError

Bank = dict[str, jax.Array]

EMPTY = -1
"""Label of a row that holds nothing."""


class Remembered(NamedTuple):
    """What a bank holds once the current batch is in it.

    Attributes:
      features: float32 [B * M, K, D]. Only the current batch's rows pass gradients.
      labels: int32 [B * M], `EMPTY` for rows that hold nothing yet.
      newest: int32 [B], the current batch's rows.
    """

    features: jax.Array
    labels: jax.Array
    newest: jax.Array


def empty(*, batches: int, batch_size: int, parts: int, width: int) -> Bank:
    """A bank of `batches` batches, the current one included, that holds nothing."""
    return {
        "embeddings": jnp.zeros((batches, batch_size, parts, width)),
        "labels": jnp.full((batches, batch_size), EMPTY, jnp.int32),
        "pointer": jnp.zeros((), jnp.int32),
    }


def remember(
    bank: Bank, embeddings: jax.Array, labels: jax.Array
) -> tuple[Remembered, Bank]:
    """Puts the current batch in the place of the oldest.

    Args:
      bank: the collection; not changed.
      embeddings: [B, K, D] of the current batch.
      labels: int [B], at least 0.

    Returns:
      the rows to compare, and the bank after the step, without gradient.

    Raises:
      UserError: if the bank is one of other batches.
    """
    stored, known, place = jax.lax.stop_gradient(
        [jnp.asarray(bank[name]) for name in ("embeddings", "labels", "pointer")]
    )
    if stored.shape[1:] != embeddings.shape:
        raise UserError(
            f"the memory bank is one of batches {_size(stored.shape[1:])}; this batch "
            f"is {_size(embeddings.shape)}. A bank is bound to the batch size, the "
            "parts and the width that it was made for: start a new run"
        )
    batches = stored.shape[0]
    both = {
        "embeddings": stored.at[place].set(embeddings.astype(jnp.float32)),
        "labels": known.at[place].set(labels),
    }
    # Image-major rows: the axis that lies over the devices stays the outer one.
    rows = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), both)
    newest = jnp.arange(labels.shape[0]) * batches + place
    after = {**jax.lax.stop_gradient(both), "pointer": (place + 1) % batches}
    return Remembered(rows["embeddings"], rows["labels"], newest), after


def _size(shape: tuple[int, ...]) -> str:
    return "of {} images x {} parts x {} channels".format(*shape)
