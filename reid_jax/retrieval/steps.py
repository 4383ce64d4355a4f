"""The steps of re-ranking, by name, and the options of each."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from reid_jax.errors import UserError
from reid_jax.retrieval.expansion import Expansion
from reid_jax.retrieval.k_reciprocal import KReciprocal

STEPS: dict[str, type | None] = {
    "flip": None,
    "database_augmentation": Expansion,
    "query_expansion": Expansion,
    "k_reciprocal": KReciprocal,
}
"""Dataclasses of options; None for a step that has none."""

Steps = Sequence[str] | Mapping[str, Mapping[str, Any]]
"""Names of steps in their order, or with those options that are not the usual ones."""

_OF_EXPANSION = {"k": (1, 2**16), "alpha": (0, 1000)}
_LIMITS: dict[str, dict[str, tuple[float, float]]] = {
    "database_augmentation": _OF_EXPANSION,
    "query_expansion": _OF_EXPANSION,
    "k_reciprocal": {"k1": (1, 2**12), "k2": (1, 2**12), "lambda_value": (0, 1)},
}
"""The least and the greatest value of an option that make sense."""


def fields_of(rerank: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Steps of a re-ranking with their options, as entries of results have them."""
    return {
        step: dataclasses.asdict(options) if options else {}
        for step, options in rerank.items()
    }


def of_embeddings(rerank: Steps) -> dict[str, Any]:
    """Steps on embeddings that are there, with all their options.

    Raises:
      UserError: for a step or an option that there is not, or that makes no sense.
    """
    names = list(rerank) if isinstance(rerank, Mapping) else rerank
    if isinstance(names, tuple | list) and "flip" in names:
        raise UserError("rerank has flip, which is of images: embed(images, flip=True)")
    if wrong := wrong_steps(names, known=tuple(STEPS)[1:]):
        raise UserError(f"rerank is {wrong}")
    given = {step: rerank[step] if names is not rerank else {} for step in names}
    for step, options in given.items():
        if not isinstance(options, Mapping):
            raise UserError(
                f"rerank has {step!r}: {options!r}; it is a dict of options, such as "
                '{"k_reciprocal": {"k1": 10}}'
            )
        if found := list(wrong_options(step, options)):
            raise UserError("\n".join(f"rerank: {line}" for line in found))
    return {step: STEPS[step](**options) for step, options in given.items()}


def wrong_steps(steps: Any, known: Sequence[str] = tuple(STEPS)) -> str | None:
    """What is said of names of steps that are no steps, or do not follow each other."""
    if not isinstance(steps, tuple | list):
        return f'{steps!r}; it is a tuple of steps, such as ("k_reciprocal",)'
    unknown = [s for s in steps if not isinstance(s, str) or s not in known]
    if unknown:
        return (
            f"{tuple(steps)}, and there is no {unknown[0]!r}; it is a tuple of some of "
            f"{', '.join(known)}, such as ('{known[0]}','{known[-1]}')"
        )
    if len(set(steps)) < len(steps):
        return f"{tuple(steps)}; every step is taken once"
    if "flip" in steps[1:] or "k_reciprocal" in steps[:-1]:
        return (
            f"{tuple(steps)}; flip comes first, as it is of images, and k_reciprocal "
            "last, as it is of distances"
        )
    return None


def wrong_options(step: str, options: Mapping[str, Any]) -> Iterator[str]:
    """What is said of options that a step does not have, or of their values."""
    usual = fields_of({step: STEPS[step] and STEPS[step]()})[step]
    wrong = [line for name in options for line in _wrong(step, name, options, usual)]
    yield from wrong
    chosen = usual | dict(options)
    if not wrong and "k1" in chosen and chosen["k2"] > chosen["k1"]:
        yield (
            f"{step}.k2 is {chosen['k2']}; it is at most k1, which is {chosen['k1']}"
        )


def _wrong(
    step: str, name: str, options: Mapping[str, Any], usual: Mapping[str, Any]
) -> Iterator[str]:
    value, limits = options[name], _LIMITS.get(step, {}).get(name)
    if name not in usual:
        yield f"{step}.{name} is {value!r}; {step} has {', '.join(usual) or 'none'}"
    elif not _is_like(value, usual[name]):
        yield f"{step}.{name} is {value!r}; it is of type {type(usual[name]).__name__}"
    elif limits and not limits[0] <= value <= limits[1]:
        yield (
            f"{step}.{name} is {value}; it must be at least {limits[0]:,} and at most "
            f"{limits[1]:,}"
        )


def _is_like(value: Any, usual: bool | int | float) -> bool:
    """Whether a value may stand in another's place; a float may be whole."""
    if isinstance(usual, bool) or isinstance(value, bool):
        return isinstance(usual, bool) and isinstance(value, bool)
    if isinstance(value, numbers.Integral):
        return True
    return (
        isinstance(usual, float)
        and isinstance(value, numbers.Real)
        and math.isfinite(value)
    )
