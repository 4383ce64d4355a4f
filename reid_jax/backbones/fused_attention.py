"""Attention of an image's tokens as one TPU kernel, which keeps no logits or weights.

A ViT's sequence is short: queries, keys and values of a head, and the logits between
them, fit into a core's fast memory together. A call of the kernel reads them once and
writes the output alone; its gradient computes the weights again. Separate products
write and read arrays of [heads, L, L] several times. The kernel is for TPUs; elsewhere
the plain form computes the same. It was compiled for TPUs, and run in Pallas'
interpreter, but not on a device yet.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec

from reid_jax.backbones.attention import attention

LANES = 128
"""Of a TPU's vector register: a block of channels is a multiple of it, or all."""

_NOTHING = 1e-30
"""Below the sum of a token's shares, whose largest is 1, unless it sees none."""

Triple = tuple[jax.Array, jax.Array, jax.Array]


def fused_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    own: jax.Array | None = None,
    *,
    parts_visible: bool = True,
) -> jax.Array:
    """`attention`, where all tokens but the parts see all, or all but the parts.

    Args:
      query, key, value: [B, L, heads, d].
      own: bool [B, heads, P, L]: what the tokens 1 to P see; a token that sees none
        gets zeros. None is no such token.
      parts_visible: whether the other tokens see those.

    Returns:
      [B, L, heads, d] in value's dtype. Differentiated in reverse only.
    """
    if own is None:  # no block of a kernel is empty: CLS' successor sees all, too
        own = jnp.ones((len(query), query.shape[2], 1, query.shape[1]), bool)
    return _attention(parts_visible, query, key, value, own)


def mask_of(own: jax.Array, parts_visible: bool) -> jax.Array:
    """bool [B, heads, L, L]: what every token sees; arguments of `fused_attention`."""
    parts, length = own.shape[-2:]
    token = jnp.arange(length)
    is_part = (token >= 1) & (token <= parts)
    others = jnp.broadcast_to(parts_visible | ~is_part, own.shape[:-2] + (length,) * 2)
    return others.at[..., 1 : parts + 1, :].set(own)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(
    parts_visible: bool,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    own: jax.Array,
) -> jax.Array:
    return jax.lax.platform_dependent(
        query,
        key,
        value,
        own,
        tpu=functools.partial(forward_kernel, parts_visible),
        default=functools.partial(_plain, parts_visible),
    )


def _forward(
    parts_visible: bool, *inputs: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return _attention(parts_visible, *inputs), inputs


def _backward(
    parts_visible: bool, saved: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array | None, ...]:
    found = jax.lax.platform_dependent(
        *(*saved, gradient),
        tpu=functools.partial(backward_kernel, parts_visible),
        default=functools.partial(_plain_gradients, parts_visible),
    )
    return *found, None


_attention.defvjp(_forward, _backward)


def _plain(parts_visible: bool, *inputs: jax.Array) -> jax.Array:
    *arrays, own = inputs
    return attention(*arrays, mask_of(own, parts_visible))[0]


def _plain_gradients(
    parts_visible: bool, *inputs_and_gradient: jax.Array
) -> tuple[jax.Array, ...]:
    *inputs, own, gradient = inputs_and_gradient
    return jax.vjp(lambda *x: _plain(parts_visible, *x, own), *inputs)[1](gradient)


# The kernels.


def forward_kernel(
    parts_visible: bool,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    own: jax.Array,
    *,
    interpret: bool = False,
) -> jax.Array:
    """As `fused_attention`; `interpret` runs it without a TPU."""
    (output,) = _call(
        functools.partial(_forward_body, parts_visible),
        own,
        (query, key, value),
        1,
        interpret,
    )
    return output


def backward_kernel(
    parts_visible: bool,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    own: jax.Array,
    gradient: jax.Array,
    *,
    interpret: bool = False,
) -> Triple:
    """The gradients of query, key and value, of that of the output."""
    return _call(
        functools.partial(_backward_body, parts_visible),
        own,
        (query, key, value, gradient),
        3,
        interpret,
    )


def _call(
    body: Any,
    own: jax.Array,
    arrays: Sequence[jax.Array],
    results: int,
    interpret: bool,
) -> tuple[jax.Array, ...]:
    """Runs `body` for each image and group of heads, on the devices that have them."""
    batch, length, heads, width = arrays[0].shape
    group = _group(heads, width)
    flat = [x.reshape(batch, length, heads * width) for x in arrays]

    def call(own: jax.Array, *flat: jax.Array) -> list[jax.Array]:
        block = pl.BlockSpec((1, length, group * width), lambda b, h: (b, 0, h))
        rows = own.shape[2]
        parts = pl.BlockSpec((1, group, rows, length), lambda b, h: (b, h, 0, 0))
        made = jax.ShapeDtypeStruct(flat[0].shape, flat[0].dtype)
        return pl.pallas_call(
            functools.partial(body, group),
            grid=(len(flat[0]), heads // group),
            in_specs=[parts, *[block] * len(flat)],
            out_specs=[block] * results,
            out_shape=[made] * results,
            interpret=interpret,
        )(own, *flat)

    # A kernel is nothing that the compiler can split over devices.
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size > 1 and batch % mesh.size == 0:
        rows = PartitionSpec(*mesh.axis_names)
        call = jax.shard_map(
            call, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False
        )
    found = call(own.astype(jnp.float32), *flat)
    return tuple(x.reshape(arrays[0].shape) for x in found)


def _group(heads: int, width: int) -> int:
    """Heads at a time: the fewest whose channels fill registers, or all."""
    for count in range(1, heads):
        if heads % count == 0 and count * width % LANES == 0:
            return count
    return heads


def _forward_body(parts_visible: bool, group: int, *refs: Any) -> None:
    own, *inputs, output = refs
    for head, places in _heads(group, output.shape[-1]):
        query, key, value = (x[0, :, places] for x in inputs)
        weights = _weights(parts_visible, own[0, head], query, key)
        found = _product(weights.astype(value.dtype), value, (1, 0))
        output[0, :, places] = found.astype(output.dtype)


def _backward_body(parts_visible: bool, group: int, *refs: Any) -> None:
    own, *inputs, to_query, to_key, to_value = refs
    for head, places in _heads(group, to_query.shape[-1]):
        query, key, value, gradient = (x[0, :, places] for x in inputs)
        weights = _weights(parts_visible, own[0, head], query, key)
        of_value = _product(weights.astype(gradient.dtype), gradient, (0, 0))
        of_weights = _product(gradient, value, (1, 1))
        total = (of_weights * weights).sum(1, keepdims=True)
        of_logits = (weights * (of_weights - total)).astype(query.dtype)
        scale = query.shape[-1] ** -0.5
        of_query = _product(of_logits, key, (1, 0)) * scale
        of_key = _product(of_logits, query * scale, (0, 0))
        to_query[0, :, places] = of_query.astype(to_query.dtype)
        to_key[0, :, places] = of_key.astype(to_key.dtype)
        to_value[0, :, places] = of_value.astype(to_value.dtype)


def _heads(group: int, channels: int) -> list[tuple[int, slice]]:
    """The heads of a block, and where each has its channels."""
    width = channels // group
    return [(head, slice(head * width, (head + 1) * width)) for head in range(group)]


def _weights(
    parts_visible: bool, own: jax.Array, query: jax.Array, key: jax.Array
) -> jax.Array:
    """What each token takes of each other, float32 [L, L], as `attention` has it."""
    logits = _product(query * query.shape[-1] ** -0.5, key, (1, 1))
    parts = len(own)
    token, seen = (jax.lax.broadcasted_iota(jnp.int32, logits.shape, i) for i in (0, 1))
    mask = jnp.ones(logits.shape, jnp.float32)
    if not parts_visible:
        mask = jnp.where((seen >= 1) & (seen <= parts), 0.0, mask)
    for part in range(parts):
        mask = jnp.where(token == 1 + part, own[part : part + 1], mask)
    logits = jnp.where(mask > 0, logits, jnp.finfo(jnp.float32).min)
    shares = jnp.exp(logits - logits.max(1, keepdims=True)) * mask
    return shares / jnp.maximum(shares.sum(1, keepdims=True), _NOTHING)


def _product(left: jax.Array, right: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """The float32 product of two matrices over an axis of each."""
    numbers = ((axes[:1], axes[1:]), ((), ()))
    return jax.lax.dot_general(left, right, numbers, preferred_element_type=jnp.float32)
