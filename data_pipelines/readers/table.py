"""One's own data from a table: a CSV or Parquet file with a row for each image.

Columns:
  path: image file, relative to the folder of the table.
  person: who it is. Whole numbers stay as they are, -1 for an image to leave out and
    0, in the gallery, for a distractor. Where any is no whole number (or too large to
    store), all are names and numbered from 1 in sorted order, except -1 and 0.
  split: train, query or gallery. A table may hold train alone, or the other two.
  camera (optional): number or name; numbered from 0 in sorted order. Without it, the
    queries get one camera and the gallery another, so that no ranking leaves out
    images of the query's own camera.
  parts (optional): label file of the image (`part_labels.label_files`), relative to the
    folder of the table; empty where there is none.
"""

import collections
import csv
import dataclasses
import difflib
import functools
import io
import math
import os
import pathlib
import re
from collections.abc import (
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)

from data_pipelines.entries import INT32, Entry, Split, make_entry, shown
from data_pipelines.part_labels.label_files import Label
from data_pipelines.readers.sources import DataSet
from reid_jax.errors import UserError

SPLITS = ("train", "query", "gallery")

EXPECTED = (
    "Expected a .csv or .parquet table with the columns path, person, split and, where "
    "there are any, camera and parts."
)
"""What `scan` reads, for messages."""

_REQUIRED = ("path", "person", "split")
_OPTIONAL = ("camera", "parts")
_PARQUET = (".parquet", ".pq")
_WHOLE = re.compile(r"-?\d{1,18}", re.ASCII)
_WHOLE_FLOAT = re.compile(r"(-?\d+)\.0+$", re.ASCII)
_CAMERA_OF_SPLIT = {"train": 0, "query": 0, "gallery": 1}
_PROBLEMS_SHOWN = 6

Cells = dict[str, str]


@dataclasses.dataclass(frozen=True)
class _File:
    """An image file under the name that the table gives it."""

    path: pathlib.Path
    name: str

    def read_bytes(self) -> bytes:
        return self.path.read_bytes()

    def __str__(self) -> str:
        return str(self.path)


@dataclasses.dataclass(frozen=True)
class _Row:
    """A row whose cells are there; `number` is what an editor shows."""

    number: int
    cells: Cells

    @classmethod
    def make(cls, number: int, columns: Sequence[str], cells: Iterable[str]) -> "_Row":
        """A row without the blanks around its cells, the split in small letters."""
        row = dict(zip(columns, map(str.strip, cells), strict=True))
        return cls(number, row | {"split": row.get("split", "").lower()})

    def __getitem__(self, column: str) -> str:
        return self.cells[column]


def scan(source: str | os.PathLike) -> dict[str, Split]:
    """Lists the images of a table.

    Args:
      source: the table.

    Returns:
      Split name -> images in the order of the table, for the splits that it has.

    Raises:
      UserError: the table cannot be read, lacks a column, or has wrong cells; it says
        which row and column.
    """
    table = pathlib.Path(source).expanduser()
    if not table.is_file():
        raise UserError(f"--source={source} is not a file. {EXPECTED}")
    columns, rows = _read(table)
    _check_columns(table, columns)
    _check_rows(table, rows, _cell_problems)
    _check_rows(table, rows, functools.partial(_file_problems, table.parent))
    persons, named = _persons(rows)
    _check_rows(table, rows, functools.partial(_person_problems, persons))
    _check_splits(table, {r["split"] for r in rows if persons[r["person"]] > 0})
    cameras = _cameras(rows)
    splits = {
        split: _split(
            table.parent, [r for r in rows if r["split"] == split], persons, cameras
        )
        for split in SPLITS
    }
    splits = {name: split for name, split in splits.items() if split.entries}
    first = next(iter(splits))
    splits[first] = dataclasses.replace(
        splits[first],
        remarks=tuple(_remarks(columns, rows, persons if named else {}, cameras)),
        person_names={n: text for text, n in persons.items() if named and n > 0},
    )
    return splits


def _read(table: pathlib.Path) -> tuple[list[str], list[_Row]]:
    """Names of the columns, and the rows."""
    if table.suffix.lower() in _PARQUET:
        return _read_parquet(table)
    try:
        text = table.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{table} cannot be read as UTF-8 text ({error}). {EXPECTED}"
        ) from error
    # Spreadsheets export with semicolons where the comma is the decimal point.
    separator = max(",;\t", key=text.partition("\n")[0].count)
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, strict=True, delimiter=separator)
    try:
        columns = [name.strip().lower() for name in next(reader, [])]
        return columns, list(_csv_rows(table, reader, columns))
    except csv.Error as error:
        raise UserError(f"{table}: row {reader.line_num}: {error}.") from error


def _csv_rows(
    table: pathlib.Path, reader: Iterator[list[str]], columns: Sequence[str]
) -> Iterator[_Row]:
    for cells in reader:
        if not any(map(str.strip, cells)):
            continue
        if len(cells) != len(columns):
            raise UserError(
                f"{table}: row {reader.line_num} has {len(cells)} cells; the first "
                f"row names {len(columns)} columns."
            )
        yield _Row.make(reader.line_num, columns, cells)


def _read_parquet(table: pathlib.Path) -> tuple[list[str], list[_Row]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            f"{table}: reading Parquet needs pyarrow. Install it with: pip install "
            "pyarrow. Or save the table as CSV."
        ) from error
    try:
        with table.open("rb") as file:
            stored = pyarrow.parquet.read_table(file, use_threads=False)
        columns = [name.strip().lower() for name in stored.column_names]
        values = [map(_text, column.to_pylist()) for column in stored.columns]
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{table} cannot be read as Parquet ({reason}).") from error
    rows = enumerate(zip(*values, strict=True), start=1)
    return columns, [_Row.make(n, columns, cells) for n, cells in rows]


def _text(value: object) -> str:
    """A Parquet value as the text that a CSV file would hold."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    # A column of whole numbers with gaps comes as float.
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return str(value)


def _check_columns(table: pathlib.Path, columns: Sequence[str]) -> None:
    known = (*_REQUIRED, *_OPTIONAL)
    found = f"Its columns: {shown(columns)}."
    for name in known:
        if columns.count(name) > 1:
            raise UserError(f"{table} has the column {name} twice. {found}")
        if name in columns:
            continue
        unknown = [c for c in columns if c not in known]
        near = difflib.get_close_matches(name, unknown, n=1, cutoff=0.75)
        if near:
            raise UserError(
                f"{table} has no column {name}. Is it {near[0]!r}? Rename that. {found}"
            )
        if name in _REQUIRED:
            raise UserError(f"{table} has no column {name}. {found} {EXPECTED}")


def _check_rows(
    table: pathlib.Path,
    rows: Sequence[_Row],
    problems: Callable[[Sequence[_Row]], Iterator[tuple[_Row, str, str]]],
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


def _cell_problems(rows: Sequence[_Row]) -> Iterator[tuple[_Row, str, str]]:
    """What can be said of the cells without looking at the files."""
    seen: dict[tuple[str, str], int] = {}
    for row in rows:
        for column in (*_REQUIRED, "camera"):
            if row.cells.get(column) == "":
                yield row, column, "it is empty"
        if row["split"] not in ("", *SPLITS):
            yield row, "split", f"{row['split']!r} is none of {', '.join(SPLITS)}"
        for column in ("path", "parts"):
            if not row.cells.get(column, "").isprintable():
                yield row, column, f"{row[column]!r} has unprintable characters"
        first = seen.setdefault((row["split"], row["path"]), row.number)
        if first != row.number and row["path"]:
            yield row, "path", f"{row['path']} is in row {first} already"


def _file_problems(
    folder: pathlib.Path, rows: Sequence[_Row]
) -> Iterator[tuple[_Row, str, str]]:
    for row in rows:
        for column in ("path", "parts"):
            name = row.cells.get(column)
            if name and not os.path.isfile(folder / name):
                yield row, column, f"there is no file {folder / name}"


def _person_problems(
    persons: Mapping[str, int], rows: Sequence[_Row]
) -> Iterator[tuple[_Row, str, str]]:
    for row in rows:
        person = persons[row["person"]]
        if person < -1:
            yield row, "person", f"{person} is negative"
        if person == 0 and row["split"] != "gallery":
            yield row, "person", "0, a distractor, belongs into the gallery"


def _check_splits(table: pathlib.Path, present: Collection[str]) -> None:
    """Refuses a table that can neither be trained on nor be evaluated on."""
    if not present:
        raise UserError(f"{table} has no image of an identity. {EXPECTED}")
    for there, lacking in (("query", "gallery"), ("gallery", "query")):
        if there in present and lacking not in present:
            raise UserError(
                f"{table} has identities in {there} but none in {lacking}: evaluation "
                "needs both."
            )


def _persons(rows: Sequence[_Row]) -> tuple[dict[str, int], bool]:
    """The person cells and what they are stored as; whether they are names."""
    # A column that held a gap comes out of many tools as 1.0, 2.0, ...
    whole = {row["person"]: _WHOLE_FLOAT.sub(r"\1", row["person"]) for row in rows}
    if _are_numbers(whole.values()):
        return {text: int(number) for text, number in whole.items()}, False
    special = {
        text: int(number)
        for text, number in whole.items()
        if _WHOLE.fullmatch(number) and int(number) in (-1, 0)
    }
    names = sorted(whole.keys() - special.keys())
    return special | {name: n for n, name in enumerate(names, start=1)}, True


def _are_numbers(texts: Iterable[str]) -> bool:
    return all(_WHOLE.fullmatch(t) and int(t) < INT32 for t in texts)


def _cameras(rows: Sequence[_Row]) -> dict[str, int] | None:
    """The camera cells and what they are stored as; None without such a column."""
    if "camera" not in rows[0].cells:
        return None
    texts = {row["camera"] for row in rows}
    keys = {t: int(t) for t in texts} if _are_numbers(texts) else {t: t for t in texts}
    ranks = {key: n for n, key in enumerate(sorted(set(keys.values())))}
    return {text: ranks[key] for text, key in keys.items()}


def _remarks(
    columns: Sequence[str],
    rows: Sequence[_Row],
    names: Mapping[str, int],
    cameras: Mapping[str, int] | None,
) -> Iterator[str]:
    """What the user should know of how the table was understood."""
    if unused := [c for c in columns if c not in (*_REQUIRED, *_OPTIONAL)]:
        yield f"Columns that were not used: {shown(unused)}."
    if names:
        numbered = [f"{text} = {n}" for text, n in names.items() if n > 0]
        yield f"Persons are names and were numbered: {shown(numbered)}."
    if cameras is None:
        yield (
            "There is no camera column: no ranking leaves out images of the query's "
            "own camera."
        )
    elif any(text != str(n) for text, n in cameras.items()):
        ordered = sorted(cameras, key=cameras.get)
        numbered = [f"{text} = {cameras[text]}" for text in ordered]
        yield f"Cameras were numbered: {shown(numbered)}."
    splits_of = collections.defaultdict(set)
    for row in rows:
        splits_of[row["path"]].add(row["split"])
    if several := [path for path, found in splits_of.items() if len(found) > 1]:
        yield f"Images in more than one split: {shown(several)}."


def _split(
    folder: pathlib.Path,
    rows: Sequence[_Row],
    persons: Mapping[str, int],
    cameras: Mapping[str, int] | None,
) -> Split:
    kept = [row for row in rows if persons[row["person"]] != -1]
    entries = tuple(_entry(folder, row, persons, cameras) for row in kept)
    return Split(entries, junk=len(rows) - len(kept))


def _entry(
    folder: pathlib.Path,
    row: _Row,
    persons: Mapping[str, int],
    cameras: Mapping[str, int] | None,
) -> Entry:
    split = row["split"]
    camera = _CAMERA_OF_SPLIT[split] if cameras is None else cameras[row["camera"]]
    entry = make_entry(
        _File(folder / row["path"], row["path"]),
        person=persons[row["person"]],
        camera=camera,
        distractors=split == "gallery",
    )
    if not row.cells.get("parts"):
        return entry
    # What kind of labels these are is an argument of the preparation.
    return dataclasses.replace(entry, parts=Label(folder / row["parts"], kind=""))


TABLE = DataSet(
    name="table",
    title="A table of images",
    scan=scan,
    expected=EXPECTED,
    published=None,
)
"""One's own data from a table."""
