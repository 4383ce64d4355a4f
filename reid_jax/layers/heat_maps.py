"""Maps as pictures show them; there is no gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def activation(maps: jax.Array) -> jax.Array:
    """How strongly each place responds: norms [B, h, w] of [B, h, w, C], float32."""
    maps = jax.lax.stop_gradient(maps).astype(jnp.float32)
    return jnp.linalg.norm(maps, axis=-1)


def relative(maps: jax.Array) -> jax.Array:
    """Each map [..., h, w] from 0 at its smallest to 1 at its largest value.

    A map of one value is 0.
    """
    low, high = (f(maps, axis=(-2, -1), keepdims=True) for f in (jnp.min, jnp.max))
    return (maps - low) / jnp.where(high > low, high - low, 1)
