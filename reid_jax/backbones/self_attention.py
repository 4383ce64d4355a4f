"""The implementations of self-attention that a ViT may use."""

from __future__ import annotations

import jax

from reid_jax.backbones.attention import Attend, attend_all
from reid_jax.backbones.fused_attention import fused_attention
from reid_jax.errors import UserError

IMPLEMENTATIONS = ("einsum", "xla", "cudnn", "pallas")
"""Of self-attention: `attention`, those of `jax.nn.dot_product_attention`, and
`fused_attention`."""


def self_attention(implementation: str, *, train: bool) -> Attend:
    """Ordinary self-attention by one of `IMPLEMENTATIONS`.

    In test mode "xla" stands in for "cudnn" and "einsum" for "pallas", so that exported
    artifacts run anywhere.
    """
    if implementation == "einsum" or (implementation == "pallas" and not train):
        return attend_all
    if implementation == "pallas":
        return lambda query, key, value: (fused_attention(query, key, value), {})
    kernel = implementation if train else "xla"
    check_trains_here(kernel)

    def attend(
        query: jax.Array, key: jax.Array, value: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        if kernel == "cudnn" and query.shape[1] % 2:
            raise UserError(
                f"attention_implementation='cudnn' trains on an even number of tokens; "
                f"these are {query.shape[1]}: 'xla' takes any number"
            )
        found = jax.nn.dot_product_attention(query, key, value, implementation=kernel)
        return found, {}

    return attend


def check_trains_here(implementation: str) -> None:
    """Raises UserError for an implementation that the devices here cannot train by."""
    if implementation == "cudnn" and jax.default_backend() != "gpu":
        raise UserError(
            "attention_implementation='cudnn' trains on an NVIDIA GPU, and JAX runs on "
            f"{jax.default_backend()} here: 'xla' computes the same anywhere"
        )


def check_implementation(
    implementation: str, *, head_width: int, dtype: str, field: str
) -> None:
    """Raises UserError for an implementation of attention that a network cannot have.

    In test mode it runs anywhere; for training see `check_trains_here`.

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
    if dtype != "bfloat16" or head_width % 8 or head_width > 128:
        raise UserError(
            f"{field}='cudnn' computes in bfloat16, with heads of a multiple of 8 "
            f"channels up to 128; this network has dtype={dtype!r} and heads of "
            f"{head_width}"
        )
