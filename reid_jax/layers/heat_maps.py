"""Maps as pictures show them; there is no gradient."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def activation(maps: jax.Array) -> jax.Array:
    """How strongly each place responds: norms [B, h, w] of [B, h, w, C], float32."""
    maps = jax.lax.stop_gradient(maps).astype(jnp.float32)
    return jnp.linalg.norm(maps, axis=-1)


def rollout(weights: Sequence[jax.Array]) -> jax.Array:
    """How much of each token the last layer's tokens are made of, by attention alone.

    Attention rollout (Abnar & Zuidema, "Quantifying Attention Flow in Transformers",
    ACL 2020): a layer passes on (A + I) / 2, its attention averaged over heads and the
    residual connection in equal parts; the layers are multiplied, the last one first.

    Args:
      weights: of the layers, first to last, [B, heads, L, L] each; rows sum to 1.

    Returns:
      float32 [B, L, L]; rows sum to 1.
    """
    flow = jnp.eye(weights[0].shape[-1])
    for layer in weights:
        attention = layer.astype(jnp.float32).mean(1)
        flow = (attention @ flow + flow) / 2
    return jnp.broadcast_to(flow, attention.shape)


def relative(maps: jax.Array) -> jax.Array:
    """Each map [..., h, w] from 0 at its smallest to 1 at its largest value.

    A map of one value is 0.
    """
    low, high = (f(maps, axis=(-2, -1), keepdims=True) for f in (jnp.min, jnp.max))
    return (maps - low) / jnp.where(high > low, high - low, 1)


def strongest(
    strengths: jax.Array, grid: tuple[int, int], *, count: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The places of an image that correspond most strongly, each with its partner.

    Args:
      strengths: [..., N, N], not negative, of the places of two images.
      grid: rows and columns of both maps.
      count: the most places to choose.

    Returns:
      The centres of both images' places as fractions of height and width,
      [..., count, 2] each, and their strengths relative to the largest, [..., count];
      strongest first.
    """
    best, places = jax.lax.top_k(strengths.max(-1), min(count, strengths.shape[-1]))
    partners = jnp.take_along_axis(strengths.argmax(-1), places, axis=-1)
    largest = jnp.maximum(best[..., :1], 1e-12)

    def centres(places: jax.Array) -> jax.Array:
        rows, columns = places // grid[1], places % grid[1]
        return jnp.stack([(rows + 0.5) / grid[0], (columns + 0.5) / grid[1]], axis=-1)

    return centres(places), centres(partners), best / largest
