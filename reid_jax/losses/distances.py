"""Hard pairs of rows, and their distances with a gradient that stays finite.

Pairs are chosen by all squared distances, without gradient; the distances of the chosen
ones are then taken from differences, which lose no digits to cancellation and cost
B x D, not B x B x D.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

_LEAST_SQUARE = 1e-12
"""Squared distances are clamped here: the square root's gradient stays finite."""


def row_distances(left: jax.Array, right: jax.Array) -> jax.Array:
    """Euclidean distances [...] of rows [..., D] and as many others.

    From differences, which lose no digits to cancellation. Where two rows are equal,
    the gradient is zero.
    """
    square = jnp.square(left - right).sum(-1)
    return jnp.sqrt(jnp.maximum(square, _LEAST_SQUARE))


def squared_distances(left: jax.Array, right: jax.Array) -> jax.Array:
    """Those of all pairs [A, B] of rows [A, D] and [B, D], by their inner products."""
    centre = right.mean(0)  # changes no distance, but leaves them more digits
    left, right = left - centre, right - centre
    inner = jnp.matmul(left, right.T, precision=jax.lax.Precision.HIGHEST)
    norms = jnp.square(left).sum(1)[:, None] + jnp.square(right).sum(1)
    return jnp.maximum(norms - 2 * inner, 0)


class Mined(NamedTuple):
    """The hardest rows for each anchor.

    Attributes:
      positive: int32 [A], the farthest positive; of equally far ones the first.
      negative: int32 [A], the nearest negative.
      valid: bool [A], whether there are both; where not, neither means anything.
    """

    positive: jax.Array
    negative: jax.Array
    valid: jax.Array


def mined(distances: jax.Array, positives: jax.Array, negatives: jax.Array) -> Mined:
    """Batch-hard mining, by index: of equal distances one alone has the gradient.

    Args:
      distances: [A, B], or another measure that grows with them; rows are anchors.
      positives, negatives: bool [A, B], the pairs to choose among.
    """
    distances = jax.lax.stop_gradient(distances)
    return Mined(
        jnp.argmax(jnp.where(positives, distances, -jnp.inf), axis=1),
        jnp.argmin(jnp.where(negatives, distances, jnp.inf), axis=1),
        positives.any(1) & negatives.any(1),
    )


def mean_of_valid(losses: jax.Array, valid: jax.Array) -> jax.Array:
    """Mean of the losses that are valid, both of one shape; 0 where none is."""
    return jnp.where(valid, losses, 0).sum() / jnp.maximum(valid.sum(), 1)
