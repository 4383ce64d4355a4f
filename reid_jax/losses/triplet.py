"""Triplet loss with batch-hard mining.

Source: Hermans et al., "In Defense of the Triplet Loss for Person Re-Identification",
2017, Eq. 5, with a hinge and Euclidean (not squared) distances.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from reid_jax.losses.distances import row_distances
from reid_jax.losses.groups import in_groups


class Hardest(NamedTuple):
    """The hardest pair of each anchor.

    Attributes:
      positive: float32 [B], distance to the farthest other image of the identity.
      negative: float32 [B], distance to the nearest image of another identity.
      valid: bool [B], whether both exist; where not, the distances mean nothing.
    """

    positive: jax.Array
    negative: jax.Array
    valid: jax.Array


def batch_hard_triplet(
    features: jax.Array, labels: jax.Array, *, margin: float | None, groups: int = 1
) -> jax.Array:
    """Mean over anchors of max(0, positive - negative + margin), or its soft form.

    Anchors without another image of their identity, or without one of another
    identity, are left out of the mean; with none left the loss is 0.

    Args:
      features: [B, D], not normalised.
      labels: int [B].
      margin: distance by which the negative should be farther than the positive;
        None is the soft margin, log(1 + exp(positive - negative)).
      groups: mine within this many groups of rows, as a run on that many GPUs did.

    Returns:
      float32 scalar.
    """
    hardest = jax.vmap(hardest_pairs)(
        in_groups(features, groups), in_groups(labels, groups)
    )
    excess = hardest.positive - hardest.negative
    if margin is None:
        losses = jax.nn.softplus(excess)
    else:
        losses = jnp.maximum(excess + margin, 0)
    losses = jnp.where(hardest.valid, losses, 0)
    return losses.sum() / jnp.maximum(hardest.valid.sum(), 1)


def hardest_pairs(features: jax.Array, labels: jax.Array) -> Hardest:
    """Finds each anchor's hardest positive and negative; of equal ones the first.

    Pairs are chosen by the Gram matrix, without gradient; the distances of the
    chosen ones are then taken from differences, which loses no digits to
    cancellation and costs B x D, not B x B x D.
    """
    features = features.astype(jnp.float32)
    squares = jax.lax.stop_gradient(_squared_distances(features))
    same = labels[:, None] == labels[None, :]
    positives = same & ~jnp.eye(labels.shape[0], dtype=bool)
    farthest = jnp.argmax(jnp.where(positives, squares, -jnp.inf), axis=1)
    nearest = jnp.argmin(jnp.where(same, jnp.inf, squares), axis=1)
    return Hardest(
        row_distances(features, features[farthest]),
        row_distances(features, features[nearest]),
        positives.any(1) & ~same.all(1),
    )


def _squared_distances(features: jax.Array) -> jax.Array:
    features -= features.mean(0)  # changes no distance, but leaves it more digits
    norms = jnp.square(features).sum(1)
    inner = jnp.matmul(features, features.T, precision=jax.lax.Precision.HIGHEST)
    return norms[:, None] + norms[None, :] - 2 * inner
