"""Products of many rows with one matrix, with gradients in the form that XLA runs fast.

The gradient of the matrix sums over all axes of the rows. As JAX derives it, these are
several, and on a CPU XLA copies both factors into another layout first, and computes
again for each copy all that leads to it: in a residual network every gradient since
the last layer. Of two matrices it needs no copy. Elsewhere the derived form stays.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
from jax import lax

from reid_jax.layers import gradients

Pair = tuple[jax.Array, jax.Array]


def row_product(
    inputs: jax.Array,
    kernel: jax.Array,
    dimension_numbers: Any = None,
    precision: Any = None,
) -> jax.Array:
    """`inputs @ kernel`; a layer takes it as its `product`, or `dot_general`.

    Args:
      inputs: [..., C].
      kernel: [C, D], from `gradients.cast`.
      dimension_numbers: those of this product, which are the only ones.
      precision: as of `lax.dot_general`.

    Returns:
      [..., D]. Differentiated in reverse only.
    """
    expected = ((inputs.ndim - 1,), (0,)), ((), ())
    if dimension_numbers not in (None, expected):
        raise ValueError(f"a product of rows has {expected}, not {dimension_numbers}")
    if kernel.dtype != inputs.dtype:
        return gradients.product(inputs, kernel, precision=precision)
    return _product(precision, inputs, kernel)


def kernel_gradient(
    inputs: jax.Array, gradient: jax.Array, precision: Any = None
) -> jax.Array:
    """The gradient [C, D] of a kernel, from [..., C] and [..., D], as two matrices."""
    rows, columns = (x.reshape(-1, x.shape[-1]) for x in (inputs, gradient))
    return lax.dot_general(rows, columns, (((0,), (0,)), ((), ())), precision)


def _derived(precision: Any, inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    numbers = ((inputs.ndim - 1,), (0,)), ((), ())
    return lax.dot_general(inputs, kernel, numbers, precision)


_product = jax.custom_vjp(_derived, nondiff_argnums=(0,))


def _forward(
    precision: Any, inputs: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, Pair]:
    return _derived(precision, inputs, kernel), (inputs, kernel)


def _backward(precision: Any, saved: Pair, gradient: jax.Array) -> Pair:
    inputs, kernel = saved

    def derived(inputs: jax.Array, gradient: jax.Array) -> jax.Array:
        of_kernel = functools.partial(_derived, precision, inputs)
        return jax.linear_transpose(of_kernel, kernel)(gradient)[0]

    of_inputs = functools.partial(_derived, precision, kernel=kernel)
    (to_inputs,) = jax.linear_transpose(of_inputs, inputs)(gradient)
    to_kernel = lax.platform_dependent(
        inputs,
        gradient,
        cpu=functools.partial(kernel_gradient, precision=precision),
        default=derived,
    )
    return to_inputs, to_kernel


_product.defvjp(_forward, _backward)
