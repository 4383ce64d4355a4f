"""Distances of rows that are chosen already, with a gradient that stays finite."""

from __future__ import annotations

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
