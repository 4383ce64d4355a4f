"""Human parsing: targets from part labels, and the loss of predicted parts.

Source: Dou et al., "DROP", 2023, section 3.4 and Eq. 8.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.errors import UserError
from reid_jax.layers.group_labels import label_tables

UNLABELLED = 255
"""Target of a place that says nothing."""


def part_targets(
    parts: jax.Array, groups: Sequence[Sequence[int]], size: tuple[int, int]
) -> jax.Array:
    """Part labels reduced to the places of a feature map: the most frequent group.

    Every place is a cell of pixels; of equally frequent groups the first is taken, the
    background before all. Pixels without a label do not vote.

    Args:
      parts: uint8 [B, H, W], part classes; 0 background, 255 unlabelled.
      groups: part classes of each of the K groups. The first group that names a class
        has it; a class that no group names is unlabelled.
      size: rows and columns of the map; they divide H and W.

    Returns:
      int32 [B, rows, columns]: 0 background, 1 to K, `UNLABELLED` where no pixel of
      the cell has a label.
    """
    batch, height, width = parts.shape
    rows, columns = size
    if height % rows or width % columns:
        raise UserError(
            f"part labels of {height} x {width} pixels do not divide into a map of "
            f"{rows} x {columns}: choose an image_size of multiples of 32"
        )
    groups_of_pixels = jnp.asarray(_table(groups))[parts]
    cells = groups_of_pixels.reshape(
        batch, rows, height // rows, columns, width // columns, 1
    )
    votes = (cells == np.arange(len(groups) + 1)).sum((2, 4), dtype=jnp.int32)
    winner = jnp.argmax(votes, axis=-1).astype(jnp.int32)
    return jnp.where(votes.any(-1), winner, UNLABELLED)


def _table(groups: Sequence[Sequence[int]]) -> np.ndarray:
    """Class -> group, uint8 [256]."""
    table, known = label_tables(groups)
    numbers = np.where(table[:, -1], table[:, :-1].argmax(1) + 1, 0)
    return np.where(known, numbers, UNLABELLED).astype(np.uint8)


def parsing_loss(
    logits: jax.Array,
    targets: jax.Array,
    *,
    smoothing: float = 0.1,
    spatial: float = 0.5,
) -> jax.Array:
    """Spatial-smoothed parsing loss (DROP, Eq. 8), mean over the labelled places.

    Cross-entropy with label smoothing, plus `spatial` times the L1 differences of the
    probabilities between neighbours below and to the right. A difference counts where
    both places are labelled; an image without labels says nothing at all.

    Args:
      logits: [B, h, w, K + 1], the background first.
      targets: int [B, h, w] from `part_targets`.
      smoothing: share of the target that is spread over the K + 1 classes.
      spatial: gamma; 0 is the plain cross-entropy.

    Returns:
      float32 scalar, 0 where nothing is labelled.
    """
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    labelled = targets != UNLABELLED
    index = jnp.where(labelled, targets, 0)[..., None]
    chosen = jnp.take_along_axis(log_probabilities, index, axis=-1)[..., 0]
    # q_k of Eq. 8: 1 - (1 - 1/C) e for the target's class and e/C for the others.
    entropy = -(1 - smoothing) * chosen - smoothing * log_probabilities.mean(-1)
    total = jnp.where(labelled, entropy, 0).sum()
    if spatial:
        probabilities = jnp.exp(log_probabilities)
        total += spatial * sum(
            _variation(probabilities, labelled, axis) for axis in (1, 2)
        )
    return total / jnp.maximum(labelled.sum(), 1)


def _variation(probabilities: jax.Array, labelled: jax.Array, axis: int) -> jax.Array:
    """Sum of the differences between labelled neighbours along an axis."""
    differences = jnp.abs(jnp.diff(probabilities, axis=axis)).sum(-1)
    length = labelled.shape[axis]
    first = jax.lax.slice_in_dim(labelled, 0, length - 1, axis=axis)
    second = jax.lax.slice_in_dim(labelled, 1, length, axis=axis)
    return jnp.where(first & second, differences, 0).sum()


def parsing_accuracy(logits: jax.Array, targets: jax.Array) -> dict[str, jax.Array]:
    """Share of the places whose largest logit is the target's.

    Args:
      logits: [B, h, w, K + 1].
      targets: int [B, h, w] from `part_targets`.

    Returns:
      float32 scalars: `parsing_accuracy` over all labelled places, and
      `parts_accuracy` over those that show a part; 0 where there are none.
    """
    right = jnp.argmax(logits, axis=-1) == targets
    labelled = targets != UNLABELLED

    def share(places: jax.Array) -> jax.Array:
        count = jnp.maximum(places.sum(), 1)
        return (right & places).sum() / count.astype(jnp.float32)

    return {
        "parsing_accuracy": share(labelled),
        "parts_accuracy": share(labelled & (targets > 0)),
    }
