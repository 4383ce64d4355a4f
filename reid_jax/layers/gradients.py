"""The dtype in which gradients of a bfloat16 network's parameters are summed.

Parameters are float32, and a layer that computes in bfloat16 casts them. As JAX derives
it, the gradient of what was cast is bfloat16, too: each device sums over its rows and
rounds, the devices' sums are added as they are, and only the total is cast back. Where
gradients are summed in float32, the cast lies within the derivatives of `product`,
`convolved`, `plus` and `rounded`: they take the parameter as it is, compute what they
would compute of the cast one, and its gradient leaves them in its own dtype.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

DTYPES = ("compute", "float32")
"""What `summed_in` takes."""

Pair = tuple[jax.Array, jax.Array]
Pads = Sequence[tuple[int, int]]

_IN_FLOAT32 = contextvars.ContextVar("gradients are summed in float32", default=False)


@contextlib.contextmanager
def summed_in(dtype: str) -> Iterator[None]:
    """Has what is traced within sum its gradients in a dtype.

    It is how a step is differentiated and nothing of a network: within the step it
    reaches every layer, as `jax.default_matmul_precision` does, and is no attribute of
    each. It is read where a layer is traced, which is before its derivative is; a
    function that is jitted outside of it stays as it was traced.

    Args:
      dtype: "compute", the layer's own, or "float32".
    """
    token = _IN_FLOAT32.set(dtype == "float32")
    try:
        yield
    finally:
        _IN_FLOAT32.reset(token)


def dtype_of_sums() -> str:
    """What `summed_in` took, for what is traced again by a derivative of its own."""
    return "float32" if _IN_FLOAT32.get() else "compute"


def cast(parameter: jax.Array, dtype: Any) -> jax.Array:
    """`parameter` in the `dtype` that a layer computes in.

    Or as it is, where its gradient is to keep its dtype: for one of the functions
    below, which tell it by that.
    """
    return parameter if _IN_FLOAT32.get() else parameter.astype(dtype)


def product(inputs: jax.Array, kernel: jax.Array, *, dtype: Any = None) -> jax.Array:
    """`inputs @ kernel`.

    Args:
      inputs: [..., C].
      kernel: [C, D], from `cast`.
      dtype: of the result; None for that of `inputs`.

    Returns:
      [..., D]. Differentiated in reverse only, where `kernel` was not cast.
    """
    plain = functools.partial(_product, dtype)
    if kernel.dtype == inputs.dtype:
        return plain(inputs, kernel)
    return _with_cast(plain, _of_product, inputs, kernel)


def convolved(
    inputs: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: str | Pads,
) -> jax.Array:
    """`lax.conv_general_dilated` of images.

    Args:
      inputs: [B, H, W, C].
      kernel: [h, w, C, D], from `cast`.
      strides, padding: as there.

    Returns:
      [B, H', W', D] in the dtype of `inputs`. Differentiated in reverse only, where
      `kernel` was not cast.
    """
    plain = functools.partial(_convolved, tuple(strides), padding)
    if kernel.dtype == inputs.dtype:
        return plain(inputs, kernel)
    pads = padding
    if isinstance(padding, str):
        sides = inputs.shape[1:3], kernel.shape[:2]
        pads = lax.padtype_to_pads(*sides, strides, padding)
    gradient = functools.partial(_of_convolved, tuple(strides), pads, kernel.shape[:2])
    return _with_cast(plain, gradient, inputs, kernel)


def plus(outputs: jax.Array, bias: jax.Array) -> jax.Array:
    """`outputs + bias` in the dtype of `outputs`.

    Args:
      outputs: [...].
      bias: from `cast`, of a shape that is broadcast to it.
    """
    if bias.dtype == outputs.dtype:
        return outputs + bias
    # Rounded once, as the sum of two bfloat16 is: float32 has it without an error.
    total = outputs.astype(bias.dtype) + rounded(bias, outputs.dtype)
    return total.astype(outputs.dtype)


def rounded(parameter: jax.Array, dtype: Any) -> jax.Array:
    """The values that `parameter`, from `cast`, has in `dtype`, as float32.

    Their gradient is that of `parameter`.
    """
    if parameter.dtype == dtype:
        return parameter.astype(jnp.float32)
    return _rounded(parameter, dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _rounded(parameter: jax.Array, dtype: Any) -> jax.Array:
    # XLA may leave out a cast to and fro.
    digits = jnp.finfo(dtype)
    return lax.reduce_precision(parameter, digits.nexp, digits.nmant)


@_rounded.defjvp
def _rounded_jvp(
    dtype: Any, values: tuple[jax.Array], tangents: tuple[jax.Array]
) -> Pair:
    return _rounded(*values, dtype), *tangents


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _with_cast(
    plain: Callable[..., jax.Array],
    gradient_of_kernel: Callable[..., jax.Array],
    inputs: jax.Array,
    kernel: jax.Array,
) -> jax.Array:
    """`plain` of inputs and the kernel in their dtype.

    Args:
      plain: linear in both.
      gradient_of_kernel: of inputs and the result's gradient, in a `dtype`.
      inputs, kernel: of `plain`, but for the kernel's dtype.
    """
    return plain(inputs, kernel.astype(inputs.dtype))


def _forward(plain: Any, _: Any, inputs: jax.Array, kernel: jax.Array) -> Any:
    return plain(inputs, kernel.astype(inputs.dtype)), (inputs, kernel)


def _backward(
    plain: Any, gradient_of_kernel: Any, saved: Pair, gradient: jax.Array
) -> Pair:
    inputs, kernel = saved
    of_inputs = functools.partial(plain, kernel=kernel.astype(inputs.dtype))
    (to_inputs,) = jax.linear_transpose(of_inputs, inputs)(gradient)
    return to_inputs, gradient_of_kernel(inputs, gradient, dtype=kernel.dtype)


_with_cast.defvjp(_forward, _backward)


def _product(dtype: Any, inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    numbers = ((inputs.ndim - 1,), (0,)), ((), ())
    return lax.dot_general(inputs, kernel, numbers, preferred_element_type=dtype)


def _of_product(inputs: jax.Array, gradient: jax.Array, *, dtype: Any) -> jax.Array:
    rows = tuple(range(inputs.ndim - 1))
    numbers = (rows, rows), ((), ())
    return lax.dot_general(inputs, gradient, numbers, preferred_element_type=dtype)


def _convolved(
    strides: Sequence[int],
    padding: str | Pads,
    inputs: jax.Array,
    kernel: jax.Array,
) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        inputs, kernel, strides, padding, dimension_numbers=numbers
    )


def _of_convolved(
    strides: Sequence[int],
    pads: Pads,
    size: Sequence[int],
    inputs: jax.Array,
    gradient: jax.Array,
    *,
    dtype: Any,
) -> jax.Array:
    """The convolution of images with gradients that JAX derives, of another dtype.

    Its batch are the channels, and what it sums over the images; the strides lie
    between the gradients. Of a 1x1 kernel it is a product: a GPU computes that of
    bfloat16 factors, and the convolution of float32 copies.
    """
    if tuple(size) == (1, 1) and not any(map(any, pads)):
        seen = inputs[:, :: strides[0], :: strides[1]]
        return _of_product(seen, gradient, dtype=dtype)[None, None]
    sides = zip(
        size, inputs.shape[1:3], gradient.shape[1:3], strides, pads, strict=True
    )
    return lax.conv_general_dilated(
        inputs,
        gradient,
        (1, 1),
        [
            (low, taps + (moved - 1) * stride - length - low)
            for taps, length, moved, stride, (low, _) in sides
        ],
        rhs_dilation=strides,
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
        preferred_element_type=dtype,
    )
