"""Distances of images that show only some of their parts."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from reid_jax.retrieval.distances import euclidean

NOTHING_IN_COMMON = 2.0
"""Distance of two images that show no common part: the most unit vectors can have."""


def visible_euclidean(
    query: jax.Array,
    query_visible: jax.Array,
    gallery: jax.Array,
    gallery_visible: jax.Array,
) -> jax.Array:
    """Mean Euclidean distance over the parts that both images show.

    Args:
      query: [Q, T, D], each part of unit norm.
      query_visible: bool [Q, T].
      gallery: [G, T, D].
      gallery_visible: bool [G, T].

    Returns:
      float32 [Q, G]; `NOTHING_IN_COMMON` where there is no such part. Each distance
      depends on its two images alone.
    """

    def add(
        sums: tuple[jax.Array, jax.Array], part: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        left, left_visible, right, right_visible = part
        both = left_visible[:, None] & right_visible
        distances = jnp.where(both, euclidean(left, right), 0)
        return (sums[0] + distances, sums[1] + both), None

    given = (query, query_visible, gallery, gallery_visible)
    parts = tuple(x.swapaxes(0, 1) for x in given)
    zeros = jnp.zeros((query.shape[0], gallery.shape[0]))
    # Part after part: [T, Q, G] need not be held.
    (total, count), _ = jax.lax.scan(add, (zeros, zeros), parts)
    return jnp.where(count > 0, total / jnp.maximum(count, 1), NOTHING_IN_COMMON)
