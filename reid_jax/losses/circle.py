"""Circle loss on pairs of a batch's images.

Source: Sun et al., "Circle Loss: A Unified Perspective of Pair Similarity
Optimization", 2020, section 3, on labels of pairs. Its form on labels of classes is in
`losses/angular.py`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from reid_jax.losses.distances import mean_of_valid
from reid_jax.losses.groups import in_groups
from reid_jax.retrieval.distances import normalise


def circle_loss(
    features: jax.Array,
    labels: jax.Array,
    *,
    margin: float,
    scale: float,
    groups: int = 1,
) -> jax.Array:
    """Mean over anchors of log(1 + sum of exp(negatives) * sum of exp(positives)).

    Anchors without another image of their identity, or without one of another
    identity, are left out of the mean; with none left the loss is 0.

    Args:
      features: [B, D]; they are made unit vectors.
      labels: int [B].
      margin: m of the paper, the relaxation.
      scale: gamma of the paper.
      groups: pairs are formed within this many groups of rows, as on that many GPUs.

    Returns:
      float32 scalar.
    """
    losses, valid = jax.vmap(lambda *rows: _of_anchors(*rows, margin, scale))(
        in_groups(normalise(features.astype(jnp.float32)), groups),
        in_groups(labels, groups),
    )
    return mean_of_valid(losses, valid)


def circle_logits(
    similarities: jax.Array, *, margin: float, scale: float
) -> tuple[jax.Array, jax.Array]:
    """Weighted similarities of any shape, as positives and as negatives.

    The larger both are, the worse: the weights, without gradient, are how far a
    similarity is from its optimum, 1 + margin or -margin.
    """
    fixed = jax.lax.stop_gradient(similarities)
    positive = jnp.maximum(1 + margin - fixed, 0) * (1 - margin - similarities)
    negative = jnp.maximum(fixed + margin, 0) * (similarities - margin)
    return scale * positive, scale * negative


def _of_anchors(
    units: jax.Array, labels: jax.Array, margin: float, scale: float
) -> tuple[jax.Array, jax.Array]:
    """Each row's loss, and whether it has pairs of both kinds."""
    similarities = jnp.matmul(units, units.T, precision=jax.lax.Precision.HIGHEST)
    same = labels[:, None] == labels[None, :]
    positives = same & ~jnp.eye(len(labels), dtype=bool)
    positive, negative = circle_logits(similarities, margin=margin, scale=scale)
    valid = positives.any(1) & ~same.all(1)
    sums = _log_sum(positive, positives) + _log_sum(negative, ~same)
    return jax.nn.softplus(jnp.where(valid, sums, 0)), valid


def _log_sum(logits: jax.Array, chosen: jax.Array) -> jax.Array:
    """log of the sum of exp over the chosen of each row; of none a very small number.

    Finite, so that a row without any has no NaN as its gradient.
    """
    return jax.nn.logsumexp(jnp.where(chosen, logits, -1e9), axis=1)
