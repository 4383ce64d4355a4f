"""Distances between embeddings, in float32 whatever the network computed in."""

from __future__ import annotations

import jax
import jax.numpy as jnp

_SHORTEST = 1e-12
"""Vectors shorter than this have no direction and are taken for zero."""

_HUGE = 1e15
"""Squares of larger numbers, summed over a long vector, may overflow."""


def normalise(x: jax.Array) -> jax.Array:
    """Scales vectors along the last axis to unit L2 norm, float32.

    A zero vector stays zero and passes no gradient, where a plain division would
    give NaN for both. Huge ones are scaled down first, by a power of two, as their
    squares would overflow; the direction of an infinite one is NaN.
    """
    x = x.astype(jnp.float32)
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
    x = x * jnp.where(largest > _HUGE, 2.0**-80, 1.0)
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    nonzero = square > _SHORTEST**2
    return x * jnp.where(nonzero, jax.lax.rsqrt(jnp.where(nonzero, square, 1.0)), 0.0)


def euclidean(query: jax.Array, gallery: jax.Array) -> jax.Array:
    """Euclidean distances of all pairs, by |q|^2 + |g|^2 - 2 q.g.

    One matrix product at full float32 precision: the default of accelerators (bf16
    or TF32 passes) would reorder near neighbours. The cancellation leaves an absolute
    error of about 1e-7 times the squared norms in the squared distance.

    Args:
      query: [Q, D], any float type.
      gallery: [G, D].

    Returns:
      float32 [Q, G], never negative; the gradient is zero where the distance is.
    """
    query, gallery = query.astype(jnp.float32), gallery.astype(jnp.float32)
    product = jnp.matmul(query, gallery.T, precision=jax.lax.Precision.HIGHEST)
    norms = jnp.sum(query**2, axis=1)[:, None] + jnp.sum(gallery**2, axis=1)
    square = norms - 2.0 * product
    # The inner `where` keeps the infinite slope of the root at 0 out of the gradient.
    # A NaN takes the branch of the root, so that it stays visible.
    apart = ~(square <= 0.0)
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1.0)), 0.0)
