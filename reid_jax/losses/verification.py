"""Verification of pairs of images: which pairs, and what their scores cost."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from reid_jax.losses.groups import in_groups


class Partners(NamedTuple):
    """Two images to compare each image of a batch with.

    Attributes:
      positive: int32 [B], row of another image of the same identity.
      negative: int32 [B], row of an image of another identity.
    """

    positive: jax.Array
    negative: jax.Array


def random_partners(labels: jax.Array, rng: jax.Array, *, groups: int = 1) -> Partners:
    """Draws one positive and one negative for each image, evenly.

    Args:
      labels: int [B]; in every group there are at least two identities, and every
        identity has at least two rows, as in an identity-balanced batch.
      rng: key.
      groups: partners are found within so many groups of rows, as on that many GPUs.
    """
    values = jax.random.uniform(rng, (2, *labels.shape * 2))
    return _greatest(labels, *values, groups=groups)


def hardest_partners(
    labels: jax.Array, distances: jax.Array, *, groups: int = 1
) -> Partners:
    """The farthest positive and the nearest negative of each image.

    Args:
      labels: int [B], see `random_partners`.
      distances: [B, B].
      groups: see `random_partners`.
    """
    return _greatest(labels, distances, -distances, groups=groups)


def _greatest(
    labels: jax.Array, positive: jax.Array, negative: jax.Array, *, groups: int
) -> Partners:
    """The partner with the greatest value [B, B] of each kind."""
    rows = jnp.arange(len(labels))
    group = rows // in_groups(rows, groups).shape[1]
    near = group[:, None] == group[None, :]
    same = labels[:, None] == labels[None, :]
    other = rows[:, None] != rows[None, :]
    return Partners(
        jnp.argmax(jnp.where(near & same & other, positive, -jnp.inf), axis=1),
        jnp.argmax(jnp.where(near & ~same, negative, -jnp.inf), axis=1),
    )


def verification_loss(
    logits: jax.Array, same: jax.Array, *, reduction: str = "mean", groups: int = 1
) -> jax.Array:
    """Binary cross-entropy of the probability that two images show one person.

    Source: CpaCol (see `losses/contrastive.py`), Eq. 10.

    Args:
      logits: [...], before the sigmoid.
      same: bool [...], whether the identities are equal.
      reduction: "mean" over the pairs, or "sum".
      groups: a sum is the mean of the sums of so many equal groups of pairs, as of
        that many GPUs, which average their gradients.

    Returns:
      float32 scalar.
    """
    logits = logits.astype(jnp.float32)
    costs = jax.nn.softplus(jnp.where(same, -logits, logits))
    return costs.mean() if reduction == "mean" else costs.sum() / groups


def margin_ranking_loss(
    positive: jax.Array, negative: jax.Array, *, margin: float
) -> jax.Array:
    """Mean of max(0, negative - positive + margin) over the scores of an image's pairs.

    Args:
      positive, negative: [B], scores with the partner of each kind.
      margin: by which the positive should be greater.

    Returns:
      float32 scalar.
    """
    excess = negative.astype(jnp.float32) - positive.astype(jnp.float32)
    return jnp.maximum(excess + margin, 0).mean()
