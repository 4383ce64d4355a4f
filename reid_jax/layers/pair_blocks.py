"""Networks over many pairs of images with the memory of a few."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from reid_jax.errors import UserError

Result = TypeVar("Result")


def in_blocks(function: Callable[..., Result], *pairs: Any, block: int) -> Result:
    """Computes `function(*pairs)`, a block of pairs at a time.

    The backward pass computes each block again, so that memory for what lies between
    a block's arguments and its results does not grow with the number of pairs. The
    blocks are not runs of consecutive pairs but every n-th pair, n the number of
    blocks: a pair axis that is sharded over devices then stays sharded, and each
    device works on its own rows of every block. On CPU, XLA is several times slower
    at gradients of convolutions inside such a loop; there a block of all pairs, which
    is computed without one, is best where memory allows.

    Args:
      function: maps pytrees whose arrays have a leading axis of pairs to another
        such pytree, each pair by itself (no batch normalisation inside), without side
        effects: call a Flax module as `module.apply(variables, ...)`. It may close
        over arrays, such as parameters or the maps that pairs are gathered from;
        these get their gradients.
      *pairs: its arguments, pytrees of arrays with a leading axis N.
      block: pairs at once, over all devices; best a multiple of their number. It
        need not divide N: copies of the last pair fill up, and are cut off again.

    Returns:
      What `function(*pairs)` returns, arrays with a leading axis N; the block only
      changes how they are rounded.

    Raises:
      UserError: if `block` is below 1.
    """
    if block < 1:
        raise UserError(f"{block} pairs at once: a block of pairs has at least 1")
    count = _count(pairs)
    if block >= count:
        return function(*pairs)
    blocks = -(-count // block)

    def split(array: jax.Array) -> jax.Array:
        last = jnp.repeat(array[-1:], blocks * block - count, axis=0)
        array = jnp.concatenate([array, last])
        return array.reshape(block, blocks, *array.shape[1:]).swapaxes(0, 1)

    def join(array: jax.Array) -> jax.Array:
        array = array.swapaxes(0, 1)
        return array.reshape(blocks * block, *array.shape[2:])[:count]

    # Within a loop nothing can merge the second computation with the first.
    again = jax.checkpoint(lambda some: function(*some), prevent_cse=False)
    return jax.tree.map(join, jax.lax.map(again, jax.tree.map(split, pairs)))


def _count(pairs: Any) -> int:
    counts = {len(array) for array in jax.tree.leaves(pairs)}
    if len(counts) != 1:
        raise ValueError(f"arrays of one number of pairs, not of {sorted(counts)}")
    return counts.pop()
