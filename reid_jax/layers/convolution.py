"""Convolutions and ReLU in the forms that XLA runs fast, chosen when it lowers.

On a CPU a 1x1 convolution is a matrix product: as a convolution it takes XLA 1.2 to 1.5
times as long, and its weight gradient, whose input is first copied into another layout,
several times. Everywhere else it stays the convolution that it is.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

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
    padding: str | Sequence[tuple[int, int]],
    *,
    feature_group_count: int = 1,
    dimension_numbers: Any = ("NHWC", "HWIO", "NHWC"),
    **options: Any,
) -> jax.Array:
    """`lax.conv_general_dilated` with the same values; layers take it by this name.

    Args:
      inputs: [B, H, W, C].
      kernel: [h, w, C / feature_group_count, D], from `gradients.cast`: one that was
        not cast is for images without groups and further options.
      strides, padding, feature_group_count, dimension_numbers, **options: as there.
        A 1x1 kernel without padding and groups is differentiated in reverse only.

    Returns:
      [B, H', W', D] in the dtype of `inputs`.
    """
    if kernel.dtype != inputs.dtype:
        return gradients.convolved(inputs, kernel, strides, padding, **options)
    # "SAME" and "VALID" are none for such a kernel.
    padded = not isinstance(padding, str) and any(map(any, padding))
    if kernel.shape[:-2] == (1, 1) and feature_group_count == 1 and not padded:
        return _traced_once(tuple(strides), options.get("precision"), inputs, kernel)
    return lax.conv_general_dilated(
        inputs,
        kernel,
        strides,
        padding,
        feature_group_count=feature_group_count,
        dimension_numbers=dimension_numbers,
        **options,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _pointwise(
    strides: tuple[int, int], precision: Any, inputs: jax.Array, kernel: jax.Array
) -> jax.Array:
    """A 1x1 convolution.

    With derivatives of its own, as the transposed product that JAX would derive has its
    factors in an order for which XLA copies both into another layout.
    """
    return lax.platform_dependent(
        inputs,
        kernel,
        cpu=functools.partial(_product, strides, precision),
        default=functools.partial(_convolved, strides, precision),
    )


def _pointwise_forward(
    strides: tuple[int, int], precision: Any, inputs: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, Pair]:
    return _pointwise(strides, precision, inputs, kernel), (inputs, kernel)


def _pointwise_backward(
    strides: tuple[int, int], precision: Any, saved: Pair, gradient: jax.Array
) -> Pair:
    return lax.platform_dependent(
        *saved,
        gradient,
        cpu=functools.partial(_product_gradients, strides, precision),
        default=functools.partial(_convolved_gradients, strides, precision),
    )


_pointwise.defvjp(_pointwise_forward, _pointwise_backward)

# Once for each shape, and inlined where it is called: a network calls it often.
_traced_once = jax.jit(_pointwise, static_argnums=(0, 1), inline=True)


def _convolved(
    strides: tuple[int, int], precision: Any, inputs: jax.Array, kernel: jax.Array
) -> jax.Array:
    return lax.conv_general_dilated(
        inputs,
        kernel,
        strides,
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )


def _convolved_gradients(
    strides: tuple[int, int],
    precision: Any,
    inputs: jax.Array,
    kernel: jax.Array,
    gradient: jax.Array,
) -> Pair:
    of_inputs = functools.partial(_convolved, strides, precision, kernel=kernel)
    of_kernel = functools.partial(_convolved, strides, precision, inputs)
    (to_inputs,) = jax.linear_transpose(of_inputs, inputs)(gradient)
    (to_kernel,) = jax.linear_transpose(of_kernel, kernel)(gradient)
    return to_inputs, to_kernel


def _product(
    strides: tuple[int, int], precision: Any, inputs: jax.Array, kernel: jax.Array
) -> jax.Array:
    seen = inputs[:, :: strides[0], :: strides[1]]
    numbers = ((3,), (0,)), ((), ())
    return lax.dot_general(seen, kernel[0, 0], numbers, precision)


def _product_gradients(
    strides: tuple[int, int],
    precision: Any,
    inputs: jax.Array,
    kernel: jax.Array,
    gradient: jax.Array,
) -> Pair:
    seen = inputs[:, :: strides[0], :: strides[1]]
    numbers = ((3,), (1,)), ((), ())
    to_seen = lax.dot_general(gradient, kernel[0, 0], numbers, precision)
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
        to_kernel = kernel_gradient(seen, gradient, precision)[None, None]
    else:
        turned = kernel_gradient(gradient, seen, precision)
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
