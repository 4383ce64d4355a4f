"""Equal blocks of a Transformer as one that is compiled once.

A program of twelve blocks takes a compiler twelve times as long as a loop over one. The
parameters stay what they are, a tree for each block; within the program they are
stacked. Random numbers are those of the blocks one by one.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from reid_jax.backbones.attention import Attend
from reid_jax.backbones.transformer import DROP_PATHS, Block, Paths

Kept = dict[str, jax.Array]


def scan_blocks(
    blocks: Sequence[Block],
    tokens: jax.Array,
    *,
    train: bool,
    attend: Attend,
    remat: bool,
) -> tuple[jax.Array, jax.Array, tuple[Kept, ...]]:
    """Runs bound blocks, which differ in their rates of `drop_path` alone.

    Args:
      blocks: that have their parameters.
      tokens: [B, L, D].
      train: whether paths are dropped.
      attend: the attention of all of them.
      remat: compute each block again for its gradient.

    Returns:
      The tokens after the last block and before it, and what `attend` kept in each.
    """
    block = blocks[0].clone(parent=None, name=None)
    count = len(tokens)
    inputs = [
        (bound.variables["params"], _paths(bound, count) if train else None)
        for bound in blocks
    ]

    def one(
        carry: tuple[jax.Array, jax.Array], inputs: tuple[Kept, Paths | None]
    ) -> tuple[tuple[jax.Array, jax.Array], Kept]:
        (before, _), (weights, drawn) = carry, inputs
        after, kept = block.apply(
            {"params": weights}, before, train=train, attend=attend, paths=drawn
        )
        return (after, before), kept

    if remat:
        one = jax.checkpoint(one, prevent_cse=False)  # a loop keeps blocks apart
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *inputs)
    (tokens, before), kept = jax.lax.scan(one, (tokens, tokens), stacked)
    layers = (jax.tree.map(lambda x, i=i: x[i], kept) for i in range(len(blocks)))
    return tokens, before, tuple(layers)


def _paths(block: Block, count: int) -> Paths:
    """What the block's two `DropPath`s would draw for `count` images."""
    keep = 1 - block.drop_path
    if keep == 1:
        return Paths(jnp.ones((2, count), bool), jnp.float32(keep))
    keys = [block.scope.push(name).make_rng("drop_path") for name in DROP_PATHS]
    drawn = [jax.random.bernoulli(key, keep, (count,)) for key in keys]
    return Paths(jnp.stack(drawn), jnp.float32(keep))
