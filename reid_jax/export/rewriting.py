"""Functions in the operations that converters to other formats know.

A function is traced and bound anew: calls are taken apart, and operations that are not
known elsewhere, or not with a batch of any size, become others with the same values.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

_CALLS = (
    *("jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint"),
    *("custom_jvp_call", "custom_vjp_call"),
)
"""Operations that only hold others."""


def rewritten(closed: core.ClosedJaxpr) -> Callable[..., list[jax.Array]]:
    """A function that does what a traced one does, without the operations below."""

    def function(*args: jax.Array) -> list[jax.Array]:
        return _evaluate(closed.jaxpr, closed.consts, args)

    return function


def _evaluate(
    jaxpr: core.Jaxpr, consts: Sequence[Any], args: Sequence[Any]
) -> list[Any]:
    known: dict[core.Var, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    known |= zip(jaxpr.invars, args, strict=True)

    def read(place: core.Var | core.Literal) -> Any:
        return place.val if isinstance(place, core.Literal) else known[place]

    for equation in jaxpr.eqns:
        found = _bound(equation, [read(place) for place in equation.invars])
        known |= zip(equation.outvars, found, strict=True)
    return [read(place) for place in jaxpr.outvars]


def _bound(equation: core.JaxprEqn, given: list[Any]) -> list[Any]:
    """What an equation returns."""
    name, params = equation.primitive.name, equation.params
    if name in _RULES:
        return [_RULES[name](*given, **params)]
    if name == "cond" and params.get("branches_platforms"):
        # Forms for several platforms: the last is that of those without their own.
        inner = params["branches"][-1]
        return _evaluate(inner.jaxpr, inner.consts, given[1:])
    if name in _CALLS:
        inner = params["jaxpr"] if "jaxpr" in params else params["call_jaxpr"]
        if isinstance(inner, core.ClosedJaxpr):
            return _evaluate(inner.jaxpr, inner.consts, given)
        return _evaluate(inner, (), given)
    found = equation.primitive.bind(*given, **params)
    return list(found) if equation.primitive.multiple_results else [found]


def _stack(*arrays: jax.Array, axis: int) -> jax.Array:
    return lax.concatenate([lax.expand_dims(x, (axis,)) for x in arrays], axis)


def _pad(
    array: jax.Array, value: jax.Array, *, padding_config: Sequence[tuple[int, ...]]
) -> jax.Array:
    """As a concatenation; padding between elements, or below 0, stays what it is."""
    if any(min(low, high) < 0 or between for low, high, between in padding_config):
        return lax.pad(array, value, padding_config)
    for axis, (low, high, _) in enumerate(padding_config):
        sides = [
            jnp.full((*array.shape[:axis], n, *array.shape[axis + 1 :]), value)
            for n in (low, high)
        ]
        pieces = (sides[0], array, sides[1])
        kept = [p for p, n in zip(pieces, (low, 1, high), strict=True) if n]
        array = lax.concatenate(kept, axis) if len(kept) > 1 else array
    return array


def _max_pool(
    array: jax.Array,
    *,
    window_dimensions: Sequence[int],
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **dilations: Sequence[int],
) -> jax.Array:
    """The largest of shifted slices, one for each place of the window."""
    if any(n != 1 for dilation in dilations.values() for n in dilation):
        raise NotImplementedError("max-pooling with dilation")
    lowest = -jnp.inf if jnp.issubdtype(array.dtype, jnp.floating) else None
    if lowest is None:
        lowest = jnp.iinfo(array.dtype).min
    array = _pad(
        array,
        jnp.asarray(lowest, array.dtype),
        padding_config=[(low, high, 0) for low, high in padding],
    )
    for axis, (size, stride) in enumerate(
        zip(window_dimensions, window_strides, strict=True)
    ):
        if size > 1 or stride > 1:
            array = _max_along(array, axis, size, stride)
    return array


def _max_along(array: jax.Array, axis: int, size: int, stride: int) -> jax.Array:
    reach = (array.shape[axis] - size) // stride * stride + 1
    shifted = [
        lax.slice_in_dim(array, first, first + reach, stride, axis)
        for first in range(size)
    ]
    return list(itertools.accumulate(shifted, jnp.maximum))[-1]


def _reduce_window(
    array: jax.Array, first: jax.Array, *, jaxpr: Any, consts: Any, **window: Any
) -> jax.Array:
    """Max-pooling that starts from another value than the lowest one."""
    del consts
    steps = [equation.primitive.name for equation in jaxpr.eqns]
    if steps != ["max"]:
        raise NotImplementedError(f"pooling by {', '.join(steps)}")
    return jnp.maximum(_max_pool(array, **window), first)


_RULES: dict[str, Callable[..., Any]] = {
    "platform_index": lambda **_: 0,  # `_bound` does not read it
    "stack": _stack,
    "pad": _pad,
    "reduce_window_max": _max_pool,
    "reduce_window": _reduce_window,
}
