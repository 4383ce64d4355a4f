"""Scaled dot-product attention."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

Attend = Callable[
    [jax.Array, jax.Array, jax.Array], tuple[jax.Array, dict[str, jax.Array]]
]
"""From query, key and value [B, L, heads, D/heads] to the output of the same shape,
and whatever arrays of the layer are worth keeping, by name."""


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Scaled dot-product attention with float32 logits and softmax.

    Args:
      query: [B, T, heads, d].
      key, value: [B, S, heads, d].
      mask: bool, broadcastable to [B, heads, T, S]; which keys a query sees. A query
        that sees none gets zeros.

    Returns:
      The output [B, T, heads, d] in value's dtype, and the weights [B, heads, T, S],
      float32.
    """
    query = query * query.shape[-1] ** -0.5
    logits = jnp.einsum(
        "bthd,bshd->bhts", query, key, preferred_element_type=jnp.float32
    )
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits)
    if mask is not None:
        weights = jnp.where(mask, weights, 0)
    output = jnp.einsum("bhts,bshd->bthd", weights.astype(value.dtype), value)
    return output, weights


def attend_all(
    query: jax.Array, key: jax.Array, value: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Ordinary self-attention, as an `Attend`."""
    return attention(query, key, value)[0], {}


def attend_and_keep(
    query: jax.Array, key: jax.Array, value: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`attend_all` that keeps the `weights` [B, heads, L, L], for pictures."""
    output, weights = attention(query, key, value)
    return output, {"weights": weights}
