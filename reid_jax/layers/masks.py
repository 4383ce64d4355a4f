"""Which patches belong to which part, when the rule is fixed in advance."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.errors import UserError
from reid_jax.layers.stripes import stripe_borders


def stripes(grid: tuple[int, int], granularities: Sequence[int]) -> np.ndarray:
    """Horizontal stripes: `(6,)` is PCB's partition, `(2, 3)` that of MGN.

    Args:
      grid: rows and columns of patches.
      granularities: stripes per partition; each partition covers the grid.

    Returns:
      bool [P, N], P = sum(granularities), N = rows * columns.
    """
    rows, columns = grid
    row = np.arange(rows).repeat(columns)
    return np.stack(
        [
            (top <= row) & (row < bottom)
            for count in granularities
            for top, bottom in pairwise(stripe_borders(rows, count))
        ]
    )


def semantics(
    parts: jax.Array,
    groups: Sequence[Sequence[int]],
    *,
    patch_size: int,
    stride: tuple[int, int],
) -> jax.Array:
    """Part labels reduced to patches: a patch belongs to every group it contains.

    Args:
      parts: uint8 [B, H, W], part classes; a class in no group (255, unlabelled,
        say) belongs to none.
      groups: part classes of each group; groups may overlap.
      patch_size: side of a patch in pixels.
      stride: rows and columns between patches.

    Returns:
      bool [B, P, N], P = len(groups), patches in row-major order.
    """
    table = np.zeros((256, len(groups)), np.int32)
    for index, classes in enumerate(groups):
        if not classes or min(classes) < 0 or max(classes) > 254:
            raise UserError(
                f"part_groups: {tuple(classes)} is no group of part classes, which "
                "are numbers from 0 to 254"
            )
        table[list(classes), index] = 1
    members = jnp.asarray(table)[parts]  # [B, H, W, P]
    window = (1, patch_size, patch_size, 1)
    pooled = jax.lax.reduce_window(
        members, np.int32(0), jax.lax.max, window, (1, *stride, 1), "VALID"
    )
    return pooled.reshape(pooled.shape[0], -1, len(groups)).swapaxes(1, 2) > 0


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Means over the patches of each part; zeros for a part without patches.

    Args:
      values: [B, N, D].
      mask: bool [P, N] or [B, P, N].

    Returns:
      float32 [B, P, D].
    """
    weights = mask.astype(jnp.float32)
    weights /= jnp.maximum(weights.sum(-1, keepdims=True), 1)
    weights = jnp.broadcast_to(weights, (values.shape[0], *weights.shape[-2:]))
    return jnp.einsum(
        "bpn,bnd->bpd",
        weights,
        values.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )


def partition_indices(subsets: jax.Array, counts: Sequence[int]) -> jax.Array:
    """Which part holds each patch, for one partition after another.

    Args:
      subsets: bool [B, P, N].
      counts: parts of each partition, P in all.

    Returns:
      int32 [B, len(counts), N]: the index within the partition, -1 for none; where
      parts overlap, the last.
    """
    indices = []
    for group in jnp.split(subsets, np.cumsum(counts)[:-1], axis=1):
        index = jnp.arange(group.shape[1])[:, None]
        indices.append(jnp.where(group, index, -1).max(1))
    return jnp.stack(indices, axis=1)


def relative_weights(weights: jax.Array, subsets: jax.Array) -> jax.Array:
    """Attention of each part relative to its largest weight, NaN outside its subset.

    Args:
      weights: [B, P, N], not negative.
      subsets: bool [B, P, N].

    Returns:
      [B, P, N] in [0, 1].
    """
    largest = weights.max(-1, keepdims=True)
    return jnp.where(subsets, weights / jnp.where(largest > 0, largest, 1), jnp.nan)
