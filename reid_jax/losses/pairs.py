"""Losses of all pairs of a batch's images, whose features depend on both images.

Source: Yu et al., "Devil's in the Details: Aligning Visual Clues for Conditional
Embedding in Person Re-Identification", 2020 (CACE-Net), section 3.4.2.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from reid_jax.losses.distances import mean_of_valid, mined, row_distances


def mixup_cross_entropy(
    logits: jax.Array, labels: jax.Array, *, alpha: float
) -> jax.Array:
    """Cross-entropy against both images' identities (Eq. 8), mean over all pairs.

    Args:
      logits: [B, B, C] of the feature of image u, the first index, given v.
      labels: int [B].
      alpha: weight of u's identity; v's has the rest.

    Returns:
      float32 scalar.
    """
    losses = -jax.nn.log_softmax(logits.astype(jnp.float32))
    own = jnp.take_along_axis(losses, labels[:, None, None], axis=2)
    other = jnp.take_along_axis(losses, labels[None, :, None], axis=2)
    return jnp.mean(alpha * own + (1 - alpha) * other)


def pair_distances(features: jax.Array) -> jax.Array:
    """Distances |f(u|v) - f(v|u)|, float32 [B, B], of features [B, B, D] of u given v.

    Where the two are equal, the gradient is zero.
    """
    features = features.astype(jnp.float32)
    return row_distances(features, features.swapaxes(0, 1))


def pair_triplet(
    distances: jax.Array, labels: jax.Array, *, margin: float
) -> jax.Array:
    """Batch-hard triplet loss of distances that are given, mean over anchors.

    As `losses.triplet.batch_hard_triplet`, which takes features that each belong to
    one image: an anchor's hardest positive is the farthest other image of its
    identity, its hardest negative the nearest of another; anchors without either are
    left out of the mean, and with none left the loss is 0.

    Args:
      distances: [B, B]; rows are anchors.
      labels: int [B].
      margin: by which the negative should be farther than the positive.

    Returns:
      float32 scalar.
    """
    same = labels[:, None] == labels[None, :]
    positives = same & ~jnp.eye(labels.shape[0], dtype=bool)
    farthest, nearest, valid = mined(distances, positives, ~same)
    row = jnp.arange(labels.shape[0])
    excess = distances[row, farthest] - distances[row, nearest] + margin
    return mean_of_valid(jnp.maximum(excess, 0), valid)
