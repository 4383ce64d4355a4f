"""Floating-point operations of a function, counted from its jaxpr.

Only matrix products and convolutions count, a multiplication and an addition each,
as papers and tools of the field report them. XLA's own `cost_analysis` counts the
body of a scan once; here it counts as often as it runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core


def count_flops(function: Callable[..., Any], *args: Any) -> int:
    """Counts the operations of `function(*args)` without running it.

    Args:
      function: anything that JAX can trace; jit, remat, scan, vmap, grad and custom
        derivatives inside are followed. Of a `cond` the costliest branch counts.
      *args: arrays or `jax.ShapeDtypeStruct`s.

    Returns:
      2 x multiply-accumulates, over all devices.

    Raises:
      ValueError: a `while` loop whose body has matrix products; how often it runs is
        not in the jaxpr.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr: core.Jaxpr) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: core.JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _dot(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    inner = [_count(jaxpr) for jaxpr in _inner_jaxprs(params)]
    if not any(inner):
        return 0
    if name == "cond":
        return max(inner)
    if name == "while":
        raise ValueError(
            "cannot count a while loop with matrix products: its length is not static"
        )
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "shard_map":  # written for one device
        return params["mesh"].size * sum(inner)
    return sum(inner)


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item


def _dot(equation: core.JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    depth = math.prod(left[axis] for axis in contracted)
    return 2 * depth * math.prod(equation.outvars[0].aval.shape)


def _convolution(equation: core.JaxprEqn) -> int:
    kernel = equation.invars[1].aval.shape
    out_axis = equation.params["dimension_numbers"].rhs_spec[0]
    depth = math.prod(kernel) // kernel[out_axis]
    places = math.prod(equation.outvars[0].aval.shape)
    # A dilated input, as in the gradient of a strided convolution, is mostly zeros
    # that nobody multiplies.
    return 2 * depth * places // math.prod(equation.params["lhs_dilation"])
