"""Dense layers and convolutions for networks that may compute in bfloat16.

flax's, but for their gradients: those are summed as `gradients.summed_in` says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.layers import gradients
from reid_jax.layers.parameters import parameter

ZEROS = nn.initializers.zeros


class Dense(nn.Module):
    """`nn.Dense`, with its parameters.

    Attributes:
      features: channels of the result.
      use_bias: whether there is one.
      dtype: of the product.
      kernel_init: of the kernel; the bias starts at zero.
      product: of inputs and kernel, `gradients.product` or `row_product`.
    """

    features: int
    use_bias: bool = True
    dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    product: Callable[..., jax.Array] = gradients.product

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps [..., C] to [..., features], in `dtype`."""
        shape = inputs.shape[-1], self.features
        kernel = parameter(self, "kernel", self.kernel_init, shape)
        bias = parameter(self, "bias", ZEROS, shape[-1:]) if self.use_bias else None
        return _in_dtype(self.dtype, self.product, inputs, kernel, bias)


class Conv(nn.Module):
    """`nn.Conv` of images, with its parameters.

    Attributes:
      features: channels of the result.
      size: of the kernel, which is square.
      stride: along both sides.
      padding: as of `lax.conv_general_dilated`, or pixels on all sides.
      use_bias, dtype, kernel_init: see `Dense`.
      convolution: of inputs, kernel, strides and padding: `gradients.convolved` or
        that of `convolution.py`.
    """

    features: int
    size: int
    stride: int = 1
    padding: str | int = "SAME"
    use_bias: bool = True
    dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    convolution: Callable[..., jax.Array] = gradients.convolved

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H', W', features], in `dtype`."""
        shape = self.size, self.size, inputs.shape[-1], self.features
        kernel = parameter(self, "kernel", self.kernel_init, shape)
        bias = parameter(self, "bias", ZEROS, shape[-1:]) if self.use_bias else None
        strides, padding = (self.stride, self.stride), self.padding
        if not isinstance(padding, str):
            padding = ((padding, padding),) * 2

        def convolved(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
            return self.convolution(inputs, kernel, strides, padding)

        return _in_dtype(self.dtype, convolved, inputs, kernel, bias)


def _in_dtype(
    dtype: Any,
    function: Callable[[jax.Array, jax.Array], jax.Array],
    inputs: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
) -> jax.Array:
    """`function(inputs, kernel) + bias`, computed in `dtype`."""
    inputs, kernel = inputs.astype(dtype), gradients.cast(kernel, dtype)
    if bias is None:
        return function(inputs, kernel)
    bias = gradients.cast(bias, dtype)
    outputs = function(inputs, kernel)
    return gradients.plus(outputs, bias.reshape(*[1] * (outputs.ndim - 1), -1))
