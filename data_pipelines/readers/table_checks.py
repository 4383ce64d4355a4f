"""What can be wrong with a table of images: columns, cells, files, splits."""

import difflib
import os
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from data_pipelines.entries import SPLITS, is_text, shown
from data_pipelines.readers.table_rows import EXPECTED, MISSING, REQUIRED, USED, Row
from reid_jax.errors import UserError

_PROBLEMS_SHOWN = 6


def check_columns(table: pathlib.Path, columns: Sequence[str]) -> None:
    """Raises UserError for a column that is missing, misspelt or there twice."""
    found = f"Its columns: {shown(columns)}."
    for name in USED:
        if columns.count(name) > 1:
            raise UserError(f"{table} has the column {name} twice. {found}")
        if name in columns:
            continue
        unknown = [c for c in columns if c not in USED]
        near = difflib.get_close_matches(name, unknown, n=1, cutoff=0.75)
        if near:
            raise UserError(
                f"{table} has no column {name}. Is it {near[0]!r}? Rename that. {found}"
            )
        if name in REQUIRED:
            raise UserError(f"{table} has no column {name}. {found} {EXPECTED}")


def check_rows(
    table: pathlib.Path,
    rows: Sequence[Row],
    problems: Callable[[Sequence[Row]], Iterator[tuple[Row, str, str]]],
) -> None:
    """Raises UserError with the first few problems: row, column and what is wrong."""
    found = [
        f"row {row.number}, column {column}: {problem}"
        for row, column, problem in problems(rows)
    ]
    if found:
        more = len(found) - _PROBLEMS_SHOWN
        raise UserError(
            f"{table}: {'; '.join(found[:_PROBLEMS_SHOWN])}"
            + (f"; and {more} more" if more > 0 else "")
            + ". Nothing was stored."
        )


def cell_problems(rows: Sequence[Row]) -> Iterator[tuple[Row, str, str]]:
    """What can be said of the cells without looking at the files."""
    seen: dict[tuple[str, str], int] = {}
    for row in rows:
        for column in (*REQUIRED, "camera"):
            if (cell := row.cells.get(column)) in MISSING:
                meant = f"{cell!r} stands for a missing value"
                yield row, column, meant if cell else "it is empty"
        if row["split"] not in (*MISSING, *SPLITS):
            yield row, "split", f"{row['split']!r} is none of {', '.join(SPLITS)}"
        for column in ("path", "parts"):
            if not is_text(row.cells.get(column, "")):
                yield row, column, f"{row[column]!r} has unprintable characters"
        place = os.path.normpath(row["path"])
        first = seen.setdefault((row["split"], place), row.number)
        if first != row.number and row["path"]:
            yield row, "path", f"{row['path']} is in row {first} already"


def file_problems(
    folder: pathlib.Path, rows: Sequence[Row]
) -> Iterator[tuple[Row, str, str]]:
    """Cells that name a file which is not there."""
    for row in rows:
        for column, name in (("path", row["path"]), ("parts", row.parts)):
            if name and not os.path.isfile(folder / name):
                yield row, column, f"there is no file {folder / name}"


def person_problems(
    persons: Mapping[str, int], rows: Sequence[Row]
) -> Iterator[tuple[Row, str, str]]:
    """Persons that are no identity and may not stand where they do."""
    for row in rows:
        person = persons[row["person"]]
        if person < -1:
            yield row, "person", f"{person} is negative"
        if person == 0 and row["split"] != "gallery":
            yield row, "person", "0, a distractor, belongs into the gallery"


def check_splits(table: pathlib.Path, present: Collection[str]) -> None:
    """Refuses a table that can neither be trained on nor be evaluated on."""
    if not present:
        raise UserError(f"{table} has no image of an identity. {EXPECTED}")
    for there, lacking in (("query", "gallery"), ("gallery", "query")):
        if there in present and lacking not in present:
            raise UserError(
                f"{table} has identities in {there} but none in {lacking}: evaluation "
                "needs both."
            )
