"""Segmentation heads."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.layers.linear import Conv
from reid_jax.layers.norm import BatchNorm


class MaskHead(nn.Module):
    """Two convolutions from a feature map to the logits of one mask.

    Source: Huang et al., "Human Parsing Based Alignment with Multi-Task Learning for
    Occluded Person Re-Identification", 2020: 3x3, batch normalisation, ReLU, 1x1, with
    weights from N(0, 0.001).

    Attributes:
      width: channels between them.
      bn_groups: see `BatchNorm.groups`.
    """

    width: int
    bn_groups: int = 1

    @nn.compact
    def __call__(self, maps: jax.Array, *, train: bool) -> jax.Array:
        """Float32 [B, h, w] of maps [B, h, w, C], in whose dtype it convolves."""
        convolution = partial(
            Conv, dtype=maps.dtype, kernel_init=nn.initializers.normal(0.001)
        )
        wide = convolution(self.width, 3, padding=1, use_bias=False, name="conv1")
        hidden = BatchNorm(self.bn_groups, name="bn")(wide(maps), train=train)
        logits = convolution(1, 1, name="conv2")(jax.nn.relu(hidden))
        return logits[..., 0].astype(jnp.float32)
