"""One's own data from a table: a CSV or Parquet file with a row for each image.

Columns:
  path: image file, relative to the folder of the table.
  person: who it is. Whole numbers stay as they are, -1 for an image to leave out and
    0, in the gallery, for a distractor. Where any is no whole number (or too large to
    store), all are names and numbered from 1 in sorted order, except -1 and 0.
    Numbers are equal as numbers: 1, 1.0 and 0001 are one person.
  split: train, query or gallery. A table may hold train alone, or the other two.
  camera (optional): number or name; numbered from 0 in sorted order. Without it, the
    queries get one camera and the gallery another, so that no ranking leaves out
    images of the query's own camera.
  parts (optional): label file of the image (`part_labels.label_files`), relative to the
    folder of the table; empty where there is none.

What pandas reads as a missing value (`table_rows.MISSING`: nan, None, NA, ...) is an
empty cell. How each column was understood is said after preparing.
"""

import collections
import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator, Sequence

from data_pipelines.entries import SPLITS, Entry, Split, make_entry, read_all, shown
from data_pipelines.part_labels.label_files import Label
from data_pipelines.readers import table_checks, table_numbers, table_rows
from data_pipelines.readers.sources import DataSet
from data_pipelines.readers.table_numbers import Numbering
from data_pipelines.readers.table_rows import EXPECTED, USED, Row
from reid_jax import storage
from reid_jax.errors import UserError

_CAMERA_OF_SPLIT = {"train": 0, "query": 0, "gallery": 1}
_NO_CAMERAS = Numbering({}, {0: "none", 1: "none (gallery)"})


@dataclasses.dataclass(frozen=True)
class _File:
    """An image file under the name that the table gives it."""

    path: pathlib.Path
    name: str

    def read_bytes(self) -> bytes:
        return self.path.read_bytes()

    def __str__(self) -> str:
        return str(self.path)


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
    table = storage.expanded(source)
    if not table.is_file():
        raise UserError(f"--source={source} is not a file. {EXPECTED}")
    columns, rows, persons = _checked(table)
    cameras = _NO_CAMERAS
    if "camera" in columns:
        cameras = table_numbers.cameras({row["camera"] for row in rows})
    make = functools.partial(_split, table.parent, persons=persons, cameras=cameras)
    splits = {name: make([r for r in rows if r["split"] == name]) for name in SPLITS}
    splits = {name: split for name, split in splits.items() if split.entries}
    first = next(iter(splits))
    splits[first] = dataclasses.replace(
        splits[first],
        remarks=tuple(_remarks(columns, rows, persons, cameras)),
        person_names=persons.names,
        camera_names=cameras.names,
    )
    return splits


def _checked(table: pathlib.Path) -> tuple[list[str], list[Row], Numbering]:
    """Columns and rows that can be stored, and who the persons are."""
    columns, rows = table_rows.read(table)
    table_checks.check_columns(table, columns)
    table_checks.check_rows(table, rows, table_checks.cell_problems)
    table_checks.check_rows(
        table, rows, functools.partial(table_checks.file_problems, table.parent)
    )
    persons = table_numbers.persons({row["person"] for row in rows})
    table_checks.check_rows(
        table, rows, functools.partial(table_checks.person_problems, persons.numbers)
    )
    table_checks.check_splits(
        table, {r["split"] for r in rows if persons.numbers[r["person"]] > 0}
    )
    return columns, rows, persons


def _remarks(
    columns: Sequence[str], rows: Sequence[Row], persons: Numbering, cameras: Numbering
) -> Iterator[str]:
    """How each column was understood."""
    if persons.names:
        numbered = [f"{name} = {n}" for n, name in persons.names.items()]
        yield f"Column person: names, numbered in sorted order: {shown(numbered)}."
        few = [name for name in persons.names.values() if not name.isdecimal()]
        if 2 * len(few) < len(persons.names):
            yield f"Most persons are numbers, but not {shown(few)}: is that right?"
    else:
        yield "Column person: whole numbers, kept as they are."
    found = collections.Counter(row["split"] for row in rows)
    rows_of = ", ".join(f"{found[s]} {s}" for s in SPLITS if found[s])
    yield f"Column split: {rows_of} rows."
    if cameras is _NO_CAMERAS:
        yield (
            "There is no camera column: no ranking leaves out images of the query's "
            "own camera."
        )
    else:
        names = list(cameras.names.values())
        noun = "camera" if len(names) == 1 else "cameras"
        yield f"Column camera: {len(names)} {noun}: {shown(names)}."
    if "parts" in columns:
        named = sum(bool(row.parts) for row in rows)
        yield f"Column parts: label files in {named} of {len(rows)} rows."
    if unused := [c for c in columns if c not in USED]:
        yield f"Columns that were not used: {shown(unused)}."
    splits_of = collections.defaultdict(set)
    for row in rows:
        splits_of[os.path.normpath(row["path"])].add(row["split"])
    if several := [path for path, splits in splits_of.items() if len(splits) > 1]:
        yield f"Images in more than one split: {shown(several)}."


def _split(
    folder: pathlib.Path,
    rows: Sequence[Row],
    *,
    persons: Numbering,
    cameras: Numbering,
) -> Split:
    kept = [row for row in rows if persons.numbers[row["person"]] != -1]
    make = functools.partial(_entry, folder, persons=persons, cameras=cameras)
    return Split(tuple(read_all(make, kept)), junk=len(rows) - len(kept))


def _entry(
    folder: pathlib.Path, row: Row, *, persons: Numbering, cameras: Numbering
) -> Entry:
    split = row["split"]
    entry = make_entry(
        _File(folder / row["path"], row["path"]),
        person=persons.numbers[row["person"]],
        camera=(
            _CAMERA_OF_SPLIT[split]
            if cameras is _NO_CAMERAS
            else cameras.numbers[row["camera"]]
        ),
        distractors=split == "gallery",
    )
    if not row.parts:
        return entry
    # What kind of labels these are is an argument of the preparation.
    return dataclasses.replace(entry, parts=Label(folder / row.parts, kind=""))


TABLE = DataSet(
    name="table",
    title="A table of images",
    scan=scan,
    expected=EXPECTED,
    published=None,
)
"""One's own data from a table."""
