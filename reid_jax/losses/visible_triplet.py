"""Batch-hard triplet loss on parts that are not seen in every image."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from reid_jax.losses.distances import mean_of_valid, mined, row_distances
from reid_jax.losses.groups import in_groups
from reid_jax.retrieval.distances import euclidean


def visible_triplet(
    features: jax.Array,
    visible: jax.Array,
    labels: jax.Array,
    *,
    margin: float,
    groups: int = 1,
) -> jax.Array:
    """Mean over anchors of max(0, positive - negative + margin).

    The distance of two images is the mean Euclidean one over the parts visible in
    both; without any they are no pair. An anchor counts if it has a farthest other
    image of its identity and a nearest of another one; with none left the loss is 0.

    Args:
      features: [B, K, D], not normalised.
      visible: bool [B, K].
      labels: int [B].
      margin: distance by which the negative should be farther than the positive.
      groups: mine within this many consecutive groups of rows.

    Returns:
      float32 scalar.
    """
    split = partial(in_groups, groups=groups)
    losses, valid = jax.vmap(partial(_hinges, margin=margin))(
        split(features.astype(jnp.float32)), split(visible), split(labels)
    )
    return mean_of_valid(losses, valid)


def _hinges(
    features: jax.Array, visible: jax.Array, labels: jax.Array, *, margin: float
) -> tuple[jax.Array, jax.Array]:
    """Each anchor's loss, and whether it counts."""
    distances, pair = _distances(features, visible)
    same = labels[:, None] == labels[None, :]
    positives = same & pair & ~jnp.eye(len(labels), dtype=bool)
    farthest, nearest, valid = mined(distances, positives, ~same & pair)
    excess = _to(features, visible, farthest) - _to(features, visible, nearest)
    return jnp.maximum(excess + margin, 0), valid


def _distances(features: jax.Array, visible: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Distances of all pairs [B, B], and which have a part in common."""
    features = features - features.mean(0)  # changes no distance, but leaves digits
    common = visible[:, None] & visible[None, :]  # [B, B, K]
    apart = jax.vmap(euclidean, in_axes=1, out_axes=2)(features, features)
    count = common.sum(2)
    return (apart * common).sum(2) / jnp.maximum(count, 1), count > 0


def _to(features: jax.Array, visible: jax.Array, chosen: jax.Array) -> jax.Array:
    """The distance of each row to its chosen one, from differences, with gradient."""
    apart = row_distances(features, features[chosen])
    common = visible & visible[chosen]
    return (apart * common).sum(1) / jnp.maximum(common.sum(1), 1)
