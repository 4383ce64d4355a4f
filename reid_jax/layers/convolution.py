"""Convolutions and ReLU in the forms that XLA runs fast, chosen when it lowers.

On a CPU a 1x1 convolution is a matrix product: as a convolution it takes XLA 1.2 to 1.5
times as long, and its weight gradient, whose input is first copied into another layout,
several times. Everywhere else it stays the convolution that it is.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from reid_jax.layers import gradients
from reid_jax.layers.products import kernel_gradient

Pair = tuple[jax.Array, jax.Array]


def convolution(
    inputs: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: str | gradients.Pads,
) -> jax.Array:
    """`gradients.convolved` with the same values; layers take it by this name.

    Args:
      inputs: [B, H, W, C].
      kernel: [h, w, C, D], from `gradients.cast`.
      strides, padding: as there.

    Returns:
      [B, H', W', D] in the dtype of `inputs`. Of a 1x1 kernel without padding it is
      differentiated in reverse only.
    """
    # "SAME" and "VALID" are none for such a kernel.
    padded = not isinstance(padding, str) and any(map(any, padding))
    cast = kernel.dtype == inputs.dtype
    if cast and kernel.shape[:2] == (1, 1) and not padded:
        return _traced_once(tuple(strides), inputs, kernel)
    return gradients.convolved(inputs, kernel, strides, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pointwise(
    strides: tuple[int, int], inputs: jax.Array, kernel: jax.Array
) -> jax.Array:
    """A 1x1 convolution.

    With derivatives of its own, as the transposed product that JAX would derive has its
    factors in an order for which XLA copies both into another layout.
    """
    return lax.platform_dependent(
        inputs,
        kernel,
        cpu=functools.partial(_product, strides),
        default=functools.partial(_convolved, strides),
    )


def _pointwise_forward(
    strides: tuple[int, int], inputs: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, Pair]:
    return _pointwise(strides, inputs, kernel), (inputs, kernel)


def _pointwise_backward(
    strides: tuple[int, int], saved: Pair, gradient: jax.Array
) -> Pair:
    return lax.platform_dependent(
        *saved,
        gradient,
        cpu=functools.partial(_product_gradients, strides),
        default=functools.partial(_convolved_gradients, strides),
    )


_pointwise.defvjp(_pointwise_forward, _pointwise_backward)

# Once for each shape, and inlined where it is called: a network calls it often.
_traced_once = jax.jit(_pointwise, static_argnums=0, inline=True)


def _convolved(
    strides: tuple[int, int], inputs: jax.Array, kernel: jax.Array
) -> jax.Array:
    return gradients.convolved(inputs, kernel, strides, "VALID")


def _convolved_gradients(
    strides: tuple[int, int], inputs: jax.Array, kernel: jax.Array, gradient: jax.Array
) -> Pair:
    of_inputs = functools.partial(_convolved, strides, kernel=kernel)
    of_kernel = functools.partial(_convolved, strides, inputs)
    (to_inputs,) = jax.linear_transpose(of_inputs, inputs)(gradient)
    (to_kernel,) = jax.linear_transpose(of_kernel, kernel)(gradient)
    return to_inputs, to_kernel


def _product(
    strides: tuple[int, int], inputs: jax.Array, kernel: jax.Array
) -> jax.Array:
    seen = inputs[:, :: strides[0], :: strides[1]]
    return lax.dot_general(seen, kernel[0, 0], (((3,), (0,)), ((), ())))


def _product_gradients(
    strides: tuple[int, int], inputs: jax.Array, kernel: jax.Array, gradient: jax.Array
) -> Pair:
    seen = inputs[:, :: strides[0], :: strides[1]]
    to_seen = lax.dot_general(gradient, kernel[0, 0], (((3,), (1,)), ((), ())))
    # Zeros in the places between, and behind the last one.
    between = [
        (0, size - (count - 1) * stride - 1, stride - 1)
        for size, count, stride in zip(
            inputs.shape[1:3], seen.shape[1:3], strides, strict=True
        )
    ]
    to_inputs = lax.pad(
        to_seen, jnp.zeros((), to_seen.dtype), [(0, 0, 0), *between, (0, 0, 0)]
    )
    # The narrower first, which is up to twice as fast.
    if seen.shape[-1] <= gradient.shape[-1]:
        to_kernel = kernel_gradient(seen, gradient)[None, None]
    else:
        turned = kernel_gradient(gradient, seen)
        # Of four axes: XLA would undo the transposition of a mere matrix.
        to_kernel = turned[None, None].swapaxes(2, 3)
    return to_inputs, to_kernel


@functools.partial(jax.jit, inline=True)
def relu(values: jax.Array) -> jax.Array:
    """`jax.nn.relu`, of any shape and float type, with the same gradient.

    On a CPU as a choice between two arrays. XLA takes a maximum with a constant for so
    cheap that it computes it again in each of its readers, with all that leads to it:
    in a residual network every sum since the first. It computes a choice once.
    """
    return _relu(values)


@jax.custom_jvp
def _relu(values: jax.Array) -> jax.Array:
    return lax.platform_dependent(values, cpu=_chosen, default=jax.nn.relu)


@_relu.defjvp
def _relu_jvp(values: tuple[jax.Array], tangents: tuple[jax.Array]) -> Pair:
    (value,), (tangent,) = values, tangents
    return _relu(value), jnp.where(value > 0, tangent, 0)


def _chosen(values: jax.Array) -> jax.Array:
    # Not of what is above 0: a NaN stays one.
    return jnp.where(values <= 0, jnp.zeros_like(values), values)
