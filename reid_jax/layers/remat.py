"""Blocks whose activations are computed again for the gradient, instead of kept."""

from __future__ import annotations

from typing import Any

import flax.linen as nn


def run_block(block: nn.Module, *inputs: Any, remat: bool, **fixed: Any) -> Any:
    """`block(*inputs, **fixed)`, with the same parameters and random numbers.

    Args:
      block: a bound module.
      *inputs: arrays.
      remat: keep only the block's inputs for the gradient, and compute the block again
        there (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016): less
        memory, and about a third more arithmetic in a training step. On a CPU XLA
        computes all blocks again at once, which saves nothing.
      **fixed: arguments that are no arrays, or that no gradient is wanted of.
    """

    def call(block: nn.Module, *inputs: Any) -> Any:
        return block(*inputs, **fixed)

    return (nn.remat(call) if remat else call)(block, *inputs)
