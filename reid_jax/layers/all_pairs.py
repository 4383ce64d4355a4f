"""All pairs of a batch's images, in blocks: memory is that of one block."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

Rows = Any
"""A pytree of arrays with a leading axis of B images."""


def by_offset(
    function: Callable[[Any, Any, Any], tuple[Any, Any]],
    weights: Any,
    rows: Rows,
    *,
    block: int,
) -> tuple[Any, Any]:
    """Applies a symmetric function to every pair of rows, each pair once.

    Image u is compared with u + k (modulo B) for k = 0 to B // 2, which reaches every
    unordered pair, those of an image with itself included. The offsets k are scanned,
    `block` of them at a time; the gradient computes each block again. So what is held
    is B x `block` pairs of whatever the function needs.

    Within `jax.sharding.use_abstract_mesh`, as a training step is, each device computes
    the pairs whose first image it has: all images are gathered once, and their
    gradients summed once. (Left to the compiler, both come once for each block.)

    Args:
      function: of weights and two images' rows (without their leading axis): what u
        becomes given v, and what v becomes given u, two pytrees of one structure.
        Exchanging the images must exchange the two. It must not couple pairs: no batch
        statistics. What is differentiated must be among its arguments.
      weights: of the function.
      rows: of all images.
      block: offsets at once.

    Returns:
      Two pytrees with leaves [B // 2 + 1, B, ...]: at [k, u], of u given u + k, and of
      u + k given u. `by_images` sorts them by images.
    """
    mesh = jax.sharding.get_abstract_mesh()
    size = len(jax.tree.leaves(rows)[0])
    if mesh.size < 2 or size % mesh.size:
        return _pairs(function, weights, rows, rows, 0, block=block)
    (axis,) = mesh.axis_names

    def of_a_device(weights: Any, mine: Rows) -> tuple[Any, Any]:
        weights = jax.tree.map(
            partial(jax.lax.pcast, axis_name=axis, to="varying"), weights
        )
        everyone = jax.tree.map(
            partial(jax.lax.all_gather, axis_name=axis, tiled=True), mine
        )
        first = jax.lax.axis_index(axis) * (size // mesh.size)
        return _pairs(function, weights, mine, everyone, first, block=block)

    split = jax.shard_map(
        of_a_device,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(axis)),
        out_specs=PartitionSpec(None, axis),
    )
    return split(weights, rows)


def _pairs(
    function: Callable[[Any, Any, Any], tuple[Any, Any]],
    weights: Any,
    rows: Rows,
    everyone: Rows,
    first: jax.Array | int,
    *,
    block: int,
) -> tuple[Any, Any]:
    """As `by_offset`, of `rows`, which are those of `everyone` from `first` on."""
    size = len(jax.tree.leaves(everyone)[0])
    here = first + jnp.arange(len(jax.tree.leaves(rows)[0]))
    offsets = size // 2 + 1
    steps = -(-offsets // block)
    shifts = jnp.arange(steps * block) % offsets  # the last block is filled up

    @jax.checkpoint
    def compare(
        weights: Any, rows: Rows, everyone: Rows, shifts: jax.Array
    ) -> tuple[Any, Any]:
        def one(shift: jax.Array) -> tuple[Any, Any]:
            others = jax.tree.map(lambda x: x[(here + shift) % size], everyone)
            return jax.vmap(partial(function, weights))(rows, others)

        return jax.vmap(one)(shifts)

    _, found = jax.lax.scan(
        lambda _, shifts: (None, compare(weights, rows, everyone, shifts)),
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
