"""Blocks in which every place of a map sees all others.

Source: Wang et al., "Non-local Neural Networks", 2018. CACE-Net's form is the embedded
Gaussian one; fast-reid's is the dot product with a single channel inside.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.layers.linear import Conv, Dense
from reid_jax.layers.norm import BatchNorm
from reid_jax.layers.parameters import FAN_OUT

NON_LOCAL = "nonlocal"
"""How the names of non-local blocks begin; no ImageNet file has them."""

_COMPRESSION = 16
"""Channels of a map per channel inside its non-local block."""


class NonLocal(nn.Module):
    """Adds to each place of a map a weighted mean over all places, through attention.

    Source: Wang et al., "Non-local Neural Networks", 2018, the embedded Gaussian form,
    with 1/16 of the channels inside. The last convolution starts at zero, so that a
    pretrained network starts as it was.

    Attributes:
      dtype: of the matrix products; the softmax is float32.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to the same shape, in `dtype`."""
        batch, height, width, channels = features.shape
        inner = max(channels // _COMPRESSION, 1)

        def projected(name: str) -> jax.Array:
            dense = Dense(inner, dtype=self.dtype, kernel_init=FAN_OUT, name=name)
            return dense(features).reshape(batch, height * width, inner)

        theta, phi, g = map(projected, ("theta", "phi", "g"))
        scores = jnp.einsum(
            "bnc,bmc->bnm", theta, phi, preferred_element_type=jnp.float32
        )
        weights = jax.nn.softmax(scores).astype(g.dtype)
        mixed = jnp.einsum("bnm,bmc->bnc", weights, g)
        zeros = nn.initializers.zeros
        out = Dense(channels, dtype=self.dtype, kernel_init=zeros, name="out")
        return features + out(mixed).reshape(features.shape)


class DotNonLocal(nn.Module):
    """Adds to each place a mean over all places, weighted by products with it.

    As fast-reid has it: one channel inside, the products divided by the number of
    places in place of a softmax, and batch normalisation of what is added, whose scale
    starts at zero.

    Attributes:
      bn_groups: see `BatchNorm.groups`.
      dtype: of the convolutions; the products are float32.
    """

    bn_groups: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to the same shape, in `dtype`."""
        batch, height, width, channels = features.shape

        def projected(name: str) -> jax.Array:
            layer = Conv(1, 1, dtype=self.dtype, kernel_init=FAN_OUT, name=name)
            return layer(features).astype(jnp.float32).reshape(batch, height * width)

        theta, phi, g = map(projected, ("theta", "phi", "g"))
        # (theta phi^T) g = theta (phi^T g): no matrix of places by places is needed.
        mixed = theta * (phi * g).mean(1, keepdims=True)
        mixed = mixed.reshape(batch, height, width, 1).astype(self.dtype)
        added = Conv(channels, 1, dtype=self.dtype, name="W_0")(mixed)
        norm = BatchNorm(self.bn_groups, scale_init=nn.initializers.zeros, name="W_1")
        return features + norm(added, train=train)
