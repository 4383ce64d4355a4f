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
from reid_jax.losses.distances import row_distances


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
    # Pairs are chosen without gradient from the Gram matrix; the distances of the
    # chosen ones then cost A x K x D and lose no digits to cancellation.
    distances = jax.lax.stop_gradient(_mean_distances(features, anchors))
    exists = labels != EMPTY
    same = labels[anchors][:, None] == labels
    itself = anchors[:, None] == jnp.arange(labels.shape[0])
    positives = same & exists & ~itself
    negatives = ~same & exists
    farthest = jnp.argmax(jnp.where(positives, distances, -jnp.inf), axis=1)
    nearest = jnp.argmin(jnp.where(negatives, distances, jnp.inf), axis=1)
    chosen = features[anchors]
    excess = row_distances(chosen, features[farthest]).mean(-1)
    excess -= row_distances(chosen, features[nearest]).mean(-1)
    valid = exists[anchors] & positives.any(1) & negatives.any(1)
    losses = jnp.where(valid, jnp.maximum(excess + margin, 0), 0)
    return losses.sum() / jnp.maximum(valid.sum(), 1)


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
        distances = jnp.sqrt(jax.lax.stop_gradient(_squares(centers, rows)))
        farthest = jnp.argmax(jnp.where(same, distances, -jnp.inf), axis=1)
        nearest = jnp.argmin(jnp.where(same, jnp.inf, distances), axis=1)
        excess = row_distances(centers, rows[farthest])
        excess -= row_distances(centers, rows[nearest])
        return jnp.where(~same.all(), jnp.maximum(excess + margin, 0), 0).mean()

    return jax.vmap(one_part, in_axes=1)(features.astype(jnp.float32)).mean()


def _mean_distances(features: jax.Array, anchors: jax.Array) -> jax.Array:
    """Distances [A, N] of rows `anchors` to all rows, averaged over parts."""
    parts = features.swapaxes(0, 1)  # [K, N, D]
    squares = jax.vmap(_squares)(parts[:, anchors], parts)  # Eq. 6
    return jnp.sqrt(squares).mean(0)


def _squares(left: jax.Array, right: jax.Array) -> jax.Array:
    """Squared distances [A, N] of [A, D] and [N, D] by their inner products."""
    centre = right.mean(0)  # changes no distance, but leaves them more digits
    left, right = left - centre, right - centre
    inner = jnp.matmul(left, right.T, precision=jax.lax.Precision.HIGHEST)
    norms = jnp.square(left).sum(1)[:, None] + jnp.square(right).sum(1)
    return jnp.maximum(norms - 2 * inner, 0)
