"""What the persons and cameras of a table are stored as."""

import collections
import dataclasses
import decimal
import re
from collections.abc import Iterable, Mapping

from data_pipelines.entries import INT32

_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Numbering:
    """How the cells of a column were understood.

    Attributes:
      numbers: cell -> what is stored.
      names: what is stored -> the source's name of it, in the order of the numbers;
        empty where the numbers of the source are stored.
    """

    numbers: Mapping[str, int]
    names: Mapping[int, str]


def persons(cells: Iterable[str]) -> Numbering:
    """Whole numbers stay; where any cell is none, names are numbered from 1.

    Cells that are equal as numbers are one person: `1`, `1.0` and `0001`. -1 and 0 keep
    their meaning among names.
    """
    groups = _groups(cells)
    if all(map(_is_whole, groups)):
        numbers = {key: int(key) for key in groups}
        return Numbering(_by_cell(groups, numbers), {})
    special = {key: int(key) for key in groups if key in (-1, 0)}
    names = _sorted_names({k: c for k, c in groups.items() if k not in special})
    numbers = special | {key: n for n, key in enumerate(names, start=1)}
    return Numbering(
        _by_cell(groups, numbers), dict(enumerate(names.values(), start=1))
    )


def cameras(cells: Iterable[str]) -> Numbering:
    """Numbered from 0, in the order of the numbers or else of the names."""
    groups = _groups(cells)
    if all(map(_is_whole, groups)):
        names = {key: str(int(key)) for key in sorted(groups)}
    else:
        names = _sorted_names(groups)
    numbers = {key: n for n, key in enumerate(names)}
    return Numbering(_by_cell(groups, numbers), dict(enumerate(names.values())))


_Key = decimal.Decimal | str


def _groups(cells: Iterable[str]) -> dict[_Key, set[str]]:
    """The cells that mean the same, under the number or the text that they are."""
    groups = collections.defaultdict(set)
    for cell in cells:
        key = decimal.Decimal(cell) if _NUMBER.fullmatch(cell) else cell
        groups[key].add(cell)
    return groups


def _is_whole(key: _Key) -> bool:
    if isinstance(key, str) or not -(10**18) < key < INT32:
        return False
    return key == int(key)


def _sorted_names(groups: Mapping[_Key, set[str]]) -> dict[_Key, str]:
    """Each group under one of its spellings, in the order of these."""
    names = {key: min(cells) for key, cells in groups.items()}
    return dict(sorted(names.items(), key=lambda item: item[1]))


def _by_cell(
    groups: Mapping[_Key, set[str]], numbers: Mapping[_Key, int]
) -> dict[str, int]:
    return {cell: numbers[key] for key, cells in groups.items() for cell in cells}
