"""Products of many rows with one matrix, with gradients in the form that XLA runs fast.

The gradient of the matrix sums over all axes of the rows. As JAX derives it, these are
several, and on a CPU XLA copies both factors into another layout first, and computes
again for each copy all that leads to it: in a residual network every gradient since
the last layer. Of two matrices it needs no copy. Elsewhere the derived form stays.
"""

from __future__ import annotations

import functools

import jax
from jax import lax

from reid_jax.layers import gradients

Pair = tuple[jax.Array, jax.Array]


def row_product(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    """`inputs @ kernel`; a layer takes it as its `product`.

    Args:
      inputs: [..., C].
      kernel: [C, D], from `gradients.cast`.

    Returns:
      [..., D]. Differentiated in reverse only.
    """
    if kernel.dtype != inputs.dtype:
        return gradients.product(inputs, kernel)
    return _product(inputs, kernel)


def kernel_gradient(inputs: jax.Array, gradient: jax.Array) -> jax.Array:
    """The gradient [C, D] of a kernel, from [..., C] and [..., D], as two matrices."""
    rows, columns = (x.reshape(-1, x.shape[-1]) for x in (inputs, gradient))
    return lax.dot_general(rows, columns, (((0,), (0,)), ((), ())))


def _derived(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.dot_general(inputs, kernel, (((inputs.ndim - 1,), (0,)), ((), ())))


_product = jax.custom_vjp(_derived)


def _forward(inputs: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Pair]:
    return _derived(inputs, kernel), (inputs, kernel)


def _backward(saved: Pair, gradient: jax.Array) -> Pair:
    inputs, kernel = saved

    def derived(inputs: jax.Array, gradient: jax.Array) -> jax.Array:
        of_kernel = functools.partial(_derived, inputs)
        return jax.linear_transpose(of_kernel, kernel)(gradient)[0]

    of_inputs = functools.partial(_derived, kernel=kernel)
    (to_inputs,) = jax.linear_transpose(of_inputs, inputs)(gradient)
    to_kernel = lax.platform_dependent(
        inputs, gradient, cpu=kernel_gradient, default=derived
    )
    return to_inputs, to_kernel


_product.defvjp(_forward, _backward)
