"""What the JSON files of a run are made of, as far as a report reads them.

A form is a function that says whether a value is right, and whose docstring names what
it should be; or a list of one form, of every item; or a dictionary of forms by key, of
which one that ends in "?" may be absent, and `...` stands for every key; or a tuple of
forms, of which one fits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from reid_jax.errors import UserError

GREATEST = 3.4e38
"""About the greatest number of float32, in which all is computed."""

_EXACT = 2**53
"""Up to here every integer is a floating-point number."""


def number(value: Any) -> bool:
    """a number (NaN is one)"""
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return known and not abs(value) > GREATEST


def finite(value: Any) -> bool:
    """a finite number"""
    return number(value) and value == value


def count(value: Any) -> bool:
    """a whole number, 0 or more"""
    return number(value) and 0 <= value <= _EXACT and value == int(value)


def text(value: Any) -> bool:
    """text"""
    return isinstance(value, str)


def name(value: Any) -> bool:
    """a name"""
    return text(value) and value.isprintable() and 0 < len(value) <= 200


def null(value: Any) -> bool:
    """null"""
    return value is None


def anything(value: Any) -> bool:
    """anything"""
    return True


FIGURES = {...: number}

ENTRY = {
    "protocol": name,
    "step": count,
    "metrics": FIGURES,
    "changed?": {...: anything},
    "rerank?": {...: {...: anything}},
    "checkpoint?": text,
    "run?": text,
    "best?": {"step": count, "metrics?": (FIGURES, null)},
    "metrics_before_pairs?": FIGURES,
    "metrics_before_reranking?": FIGURES,
    "verification?": {
        "at?": [{"fpr": number, "tpr": number, "threshold": (number, null)}]
    },
}
"""Of `results.json`."""

START = {"command?": [text], "devices?": [text], "packages?": {...: anything}}
"""Of `manifest.json`."""

ROW = {"step": count}
"""Of `metrics.jsonl`."""

DETAILS = {
    "queries": [
        {
            **dict.fromkeys(("file", "person", "camera"), text),
            **dict.fromkeys(("average_precision", "first_rank"), number),
        }
    ],
    "cameras": {
        **{key: [text] for key in ("query", "gallery")},
        **{key: [[count]] for key in ("right", "asked")},
    },
    "distances": {"edges": [finite], "right": [count], "wrong": [count]},
}
"""Of the `details.json` of an evaluation."""


def checked(path: epath.Path, value: Any, form: Any) -> Any:
    """What a file holds, if it has the form.

    Raises:
      UserError: names the file and the first value that is not as it should be.
    """
    if fault := next(_faults(value, form, ""), None):
        raise _damaged(path, fault)
    return value


def checked_details(path: epath.Path, details: Any) -> Any:
    """A `details.json`, if it and its tables have their form.

    Raises:
      UserError: as `checked`.
    """
    checked(path, details, DETAILS)
    cameras, distances = details["cameras"], details["distances"]
    for field in ("right", "asked"):
        rows = [len(row) for row in cameras[field]]
        if rows != len(cameras["query"]) * [len(cameras["gallery"])]:
            raise _damaged(path, f"cameras.{field} is no table of its cameras")
    edges, *counts = (distances[key] for key in ("edges", "right", "wrong"))
    bins = max(len(edges) - 1, 0)
    if [len(n) for n in counts] != [bins, bins] or edges != sorted(edges):
        raise _damaged(path, "distances are no bins between edges")
    return details


def _damaged(path: epath.Path, fault: str) -> UserError:
    return UserError(f"{path} is damaged: {fault}; remove or mend that file")


def _faults(value: Any, form: Any, place: str) -> Iterator[str]:
    called = place.lstrip(".") or "it"
    if isinstance(form, tuple):
        every = [list(_faults(value, one, place)) for one in form]
        yield from every[0] if all(every) else ()
    elif isinstance(form, list):
        if not isinstance(value, list):
            yield f"{called} is no list"
            return
        for index, item in enumerate(value):
            yield from _faults(item, form[0], f"{place}[{index}]")
    elif isinstance(form, Mapping):
        if not isinstance(value, Mapping):
            yield f"{called} is no object"
            return
        for key, inner in form.items():
            yield from _at(value, key, inner, place)
    elif not form(value):
        yield f"{called} is not {form.__doc__}"


def _at(value: Mapping[str, Any], key: Any, form: Any, place: str) -> Iterator[str]:
    """Faults of what a key, or each of them, stands for."""
    if key is ...:
        for known, item in value.items():
            yield from _faults(item, form, f"{place}.{known}")
    elif (known := key.rstrip("?")) in value:
        yield from _faults(value[known], form, f"{place}.{known}")
    elif known == key:
        yield f"{place.lstrip('.') or 'it'} has no {key}"
