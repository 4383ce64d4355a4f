"""Distances of embeddings joined with scores of pairs."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def fuse_z_scores(
    distances: jax.Array, candidates: jax.Array, scores: jax.Array, *, weight: float
) -> jax.Array:
    """Ranking keys: z-scored distances minus `weight` times z-scored similarities.

    Mean and deviation are a query's over its candidates. Where there are other gallery
    images, they stay in their order behind the candidates.

    Args:
      distances: [Q, G], not negative.
      candidates: int [Q, K], gallery indices that were scored.
      scores: [Q, K], larger for the more alike.
      weight: 0 keeps the order of the distances.

    Returns:
      float32 [Q, G], smaller first.
    """
    near = jnp.take_along_axis(distances, candidates, axis=1)
    keys = z_scores(near) - weight * z_scores(scores)
    if candidates.shape[1] < distances.shape[1]:
        keys -= keys.max(1, keepdims=True) + 1  # below every distance
    rows = jnp.arange(distances.shape[0])[:, None]
    return distances.at[rows, candidates].set(keys)


def sort_candidates(
    distances: jax.Array, candidates: jax.Array, scores: jax.Array
) -> jax.Array:
    """Ranking keys: candidates by their scores alone, before all others in their order.

    A candidate's key is its place among the candidates, minus their number; equal
    scores have equal keys, and one that is NaN stays visible.

    Args:
      distances: [Q, G], not negative.
      candidates: int [Q, K], gallery indices that were scored.
      scores: [Q, K], smaller for the more alike.

    Returns:
      [Q, G] of the distances' dtype, smaller first.
    """
    smaller = (scores[:, None, :] < scores[:, :, None]).sum(-1)
    keys = (smaller - scores.shape[1]).astype(distances.dtype)
    keys = jnp.where(jnp.isnan(scores), jnp.nan, keys)
    rows = jnp.arange(distances.shape[0])[:, None]
    return distances.at[rows, candidates].set(keys)


def z_scores(values: jax.Array) -> jax.Array:
    """Rows [Q, K] with mean 0 and deviation 1; one of equal values gives zeros."""
    values = values.astype(jnp.float32)
    # Of equal values the mean is rounded, but their differences are zeros.
    apart = values - values[:, :1]
    centred = apart - apart.mean(1, keepdims=True)
    return centred / (jnp.sqrt(jnp.square(centred).mean(1, keepdims=True)) + 1e-7)
