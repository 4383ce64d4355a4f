"""Scaled dot-product attention, and the implementations of it that a ViT may use."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from reid_jax.errors import UserError

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


IMPLEMENTATIONS = ("einsum", "xla", "cudnn")
"""Of self-attention: `attention` above, and those of `jax.nn.dot_product_attention`."""


def self_attention(implementation: str, *, train: bool) -> Attend:
    """Ordinary self-attention by one of `IMPLEMENTATIONS`.

    In test mode "xla" stands in for "cudnn", so that exported artifacts run anywhere.
    """
    if implementation == "einsum":
        return attend_all
    kernel = implementation if train else "xla"

    def attend(
        query: jax.Array, key: jax.Array, value: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        found = jax.nn.dot_product_attention(query, key, value, implementation=kernel)
        return found, {}

    return attend


def check_implementation(
    implementation: str, *, head_width: int, dtype: str, field: str
) -> None:
    """Raises UserError for an implementation of attention that cannot run here.

    Args:
      implementation: one of `IMPLEMENTATIONS`.
      head_width: channels of a head.
      dtype: of the matrix products.
      field: what it is called where it is chosen, for the message.
    """
    if implementation not in IMPLEMENTATIONS:
        raise UserError(
            f"{field} is one of {', '.join(IMPLEMENTATIONS)}, not {implementation!r}"
        )
    if implementation != "cudnn":
        return
    if jax.default_backend() != "gpu":
        raise UserError(
            f"{field}='cudnn' needs an NVIDIA GPU, and JAX runs on "
            f"{jax.default_backend()} here: 'xla' computes the same anywhere"
        )
    if dtype != "bfloat16" or head_width % 8 or head_width > 128:
        raise UserError(
            f"{field}='cudnn' computes in bfloat16, with heads of a multiple of 8 "
            f"channels up to 128; this network has dtype={dtype!r} and heads of "
            f"{head_width}"
        )
