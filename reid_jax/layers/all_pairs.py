"""All pairs of a batch's images, in blocks: memory is that of one block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Rows = Any
"""A pytree of arrays with a leading axis of B images."""


def by_offset(
    function: Callable[[Any, Any], tuple[Any, Any]], rows: Rows, *, block: int
) -> tuple[Any, Any]:
    """Applies a symmetric function to every pair of rows, each pair once.

    Image u is compared with u + k (modulo B) for k = 0 to B // 2, which reaches every
    unordered pair, those of an image with itself included. The images u stay where
    they are, split over the devices, and the offsets k are scanned, `block` of them at
    a time; the gradient computes each block again. So what is held is B x `block` pairs
    of whatever the function needs, and each device computes the pairs of its rows.

    Args:
      function: of two images' rows (without their leading axis): what u becomes given
        v, and what v becomes given u, two pytrees of one structure. Exchanging the
        images must exchange the two. It must not couple pairs: no batch statistics.
      rows: of all images.
      block: offsets at once.

    Returns:
      Two pytrees with leaves [B // 2 + 1, B, ...]: at [k, u], of u given u + k, and of
      u + k given u. `by_images` sorts them by images.
    """
    size = len(jax.tree.leaves(rows)[0])
    offsets = size // 2 + 1
    steps = -(-offsets // block)
    shifts = jnp.arange(steps * block) % offsets  # the last block is filled up

    @jax.checkpoint
    def compare(rows: Rows, shifts: jax.Array) -> tuple[Any, Any]:
        def one(shift: jax.Array) -> tuple[Any, Any]:
            others = (jnp.arange(size) + shift) % size
            return jax.vmap(function)(rows, jax.tree.map(lambda x: x[others], rows))

        return jax.vmap(one)(shifts)

    _, found = jax.lax.scan(
        lambda _, shifts: (None, compare(rows, shifts)),
        None,
        shifts.reshape(steps, block),
    )
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:offsets], found)


def by_images(of_first: jax.Array, of_second: jax.Array) -> jax.Array:
    """Sorts results of `by_offset`, [B // 2 + 1, B, ...], by both images.

    Returns:
      [B, B, ...]: at [u, v], of u given v.
    """
    size = of_first.shape[1]
    first, second = np.indices((size, size))
    offset = (second - first) % size
    ahead = offset <= size // 2
    both = jnp.stack([of_first, of_second])
    return both[
        np.where(ahead, 0, 1),
        np.where(ahead, offset, size - offset),
        np.where(ahead, first, second),
    ]
