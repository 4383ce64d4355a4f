"""Triplet losses of persons that are several parts.

A person's distance to another is the mean of the Euclidean distances between their
corresponding parts. Sources: DROP (Dou et al., 2023), Eqs 6 and 7; BPBreID (Somers et
al., 2023) for the part-average triplet; Zhao et al., "Deep Fusion Feature
Representation Learning with Hard Mining Center-Triplet Loss", 2020, for the latter.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from reid_jax.layers.memory_bank import EMPTY
from reid_jax.losses.distances import (
    mean_of_valid,
    mined,
    row_distances,
    squared_distances,
)


def part_average_triplet(
    features: jax.Array,
    labels: jax.Array,
    *,
    margin: float,
    anchors: jax.Array | None = None,
) -> jax.Array:
    """Batch-hard triplet loss on distances averaged over parts (DROP, Eq. 7).

    Over one batch it is the part-average triplet loss; over the rows of a memory bank
    (`layers.memory_bank`) the part-aware compactness triplet loss. Anchors without
    another row of their identity, or without one of another identity, are left out of
    the mean; with none left the loss is 0. Of equally hard rows the first is taken.

    Args:
      features: [N, K, D], not normalised.
      labels: int [N]; rows labelled `EMPTY` do not exist.
      margin: by how much the negative should be farther than the positive.
      anchors: int [A], rows that are anchors; all by default.

    Returns:
      float32 scalar.
    """
    features = features.astype(jnp.float32)
    if anchors is None:
        anchors = jnp.arange(labels.shape[0])
    exists = labels != EMPTY
    same = labels[anchors][:, None] == labels
    itself = anchors[:, None] == jnp.arange(labels.shape[0])
    farthest, nearest, valid = mined(
        _mean_distances(features, anchors),
        same & exists & ~itself,  # of an anchor that does not exist there are none
        ~same & exists,
    )
    chosen = features[anchors]
    excess = row_distances(chosen, features[farthest]).mean(-1)
    excess -= row_distances(chosen, features[nearest]).mean(-1)
    return mean_of_valid(jnp.maximum(excess + margin, 0), valid)


def hard_center_triplet(
    features: jax.Array, labels: jax.Array, *, margin: float
) -> jax.Array:
    """Part-level hard mining center-triplet loss: each part by itself, then the mean.

    An identity's center should be nearer to the farthest of its own images than to the
    nearest image of another identity, by the margin. Identities weigh by their number
    of images; a batch of one identity costs nothing.

    Args:
      features: [B, K, D], not normalised.
      labels: int [B].
      margin: see above.

    Returns:
      float32 scalar.
    """
    same = labels[:, None] == labels
    weights = same / same.sum(1, keepdims=True)

    def one_part(rows: jax.Array) -> jax.Array:
        centers = jnp.matmul(weights, rows, precision=jax.lax.Precision.HIGHEST)
        distances = jnp.sqrt(squared_distances(centers, rows))
        farthest, nearest, valid = mined(distances, same, ~same)
        excess = row_distances(centers, rows[farthest])
        excess -= row_distances(centers, rows[nearest])
        return jnp.where(valid, jnp.maximum(excess + margin, 0), 0).mean()

    return jax.vmap(one_part, in_axes=1)(features.astype(jnp.float32)).mean()


def _mean_distances(features: jax.Array, anchors: jax.Array) -> jax.Array:
    """Distances [A, N] of rows `anchors` to all rows, averaged over parts."""
    parts = features.swapaxes(0, 1)  # [K, N, D]
    squares = jax.vmap(squared_distances)(parts[:, anchors], parts)  # Eq. 6
    return jnp.sqrt(squares).mean(0)
