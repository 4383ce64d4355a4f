"""Verification of pairs of images: which pairs, and what their scores cost."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Partners(NamedTuple):
    """Two images to compare each image of a batch with.

    Attributes:
      positive: int32 [B], row of another image of the same identity.
      negative: int32 [B], row of an image of another identity.
    """

    positive: jax.Array
    negative: jax.Array


def random_partners(labels: jax.Array, rng: jax.Array) -> Partners:
    """Draws one positive and one negative for each image, evenly.

    Args:
      labels: int [B]; every identity has at least two rows, and there are at least
        two identities, as in every identity-balanced batch.
      rng: key.
    """
    return _greatest(labels, *jax.random.uniform(rng, (2, *labels.shape * 2)))


def hardest_partners(labels: jax.Array, distances: jax.Array) -> Partners:
    """The farthest positive and the nearest negative of each image.

    Args:
      labels: int [B], see `random_partners`.
      distances: [B, B].
    """
    return _greatest(labels, distances, -distances)


def _greatest(labels: jax.Array, positive: jax.Array, negative: jax.Array) -> Partners:
    """The partner with the greatest value [B, B] of each kind."""
    same = labels[:, None] == labels[None, :]
    other = ~jnp.eye(labels.shape[0], dtype=bool)
    return Partners(
        jnp.argmax(jnp.where(same & other, positive, -jnp.inf), axis=1),
        jnp.argmax(jnp.where(same, -jnp.inf, negative), axis=1),
    )


def verification_loss(logits: jax.Array, same: jax.Array) -> jax.Array:
    """Binary cross-entropy of the probability that two images show one person.

    Source: CpaCol (see `losses/contrastive.py`), Eq. 10, as the mean over pairs.

    Args:
      logits: [...], before the sigmoid.
      same: bool [...], whether the identities are equal.

    Returns:
      float32 scalar.
    """
    logits = logits.astype(jnp.float32)
    return jax.nn.softplus(jnp.where(same, -logits, logits)).mean()


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
