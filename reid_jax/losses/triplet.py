"""Triplet loss with batch-hard mining.

Source: Hermans et al., "In Defense of the Triplet Loss for Person Re-Identification",
2017, Eq. 5, with a hinge and Euclidean (not squared) distances.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from reid_jax.losses.distances import (
    mean_of_valid,
    mined,
    row_distances,
    squared_distances,
)
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
    return mean_of_valid(losses, hardest.valid)


def hardest_pairs(features: jax.Array, labels: jax.Array) -> Hardest:
    """Finds each anchor's hardest positive and negative; of equal ones the first."""
    features = features.astype(jnp.float32)
    same = labels[:, None] == labels[None, :]
    positives = same & ~jnp.eye(labels.shape[0], dtype=bool)
    found = mined(squared_distances(features, features), positives, ~same)
    return Hardest(
        row_distances(features, features[found.positive]),
        row_distances(features, features[found.negative]),
        found.valid,
    )
