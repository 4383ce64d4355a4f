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
import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from data_pipelines.entries import INT32, SPLITS, Entry, Split, make_entry, shown
from data_pipelines.part_labels.label_files import Label
from data_pipelines.readers import table_checks, table_rows
from data_pipelines.readers.sources import DataSet
from data_pipelines.readers.table_checks import OPTIONAL, REQUIRED
from data_pipelines.readers.table_rows import EXPECTED, Row
from reid_jax.errors import UserError

_WHOLE = re.compile(r"-?\d{1,18}", re.ASCII)
_WHOLE_FLOAT = re.compile(r"(-?\d+)\.0+$", re.ASCII)
_CAMERA_OF_SPLIT = {"train": 0, "query": 0, "gallery": 1}


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
    table = pathlib.Path(source).expanduser()
    if not table.is_file():
        raise UserError(f"--source={source} is not a file. {EXPECTED}")
    columns, rows = table_rows.read(table)
    table_checks.check_columns(table, columns)
    table_checks.check_rows(table, rows, table_checks.cell_problems)
    table_checks.check_rows(
        table, rows, functools.partial(table_checks.file_problems, table.parent)
    )
    persons, named = _persons(rows)
    table_checks.check_rows(
        table, rows, functools.partial(table_checks.person_problems, persons)
    )
    table_checks.check_splits(
        table, {r["split"] for r in rows if persons[r["person"]] > 0}
    )
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


def _persons(rows: Sequence[Row]) -> tuple[dict[str, int], bool]:
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


def _cameras(rows: Sequence[Row]) -> dict[str, int] | None:
    """The camera cells and what they are stored as; None without such a column."""
    if "camera" not in rows[0].cells:
        return None
    texts = {row["camera"] for row in rows}
    keys = {t: int(t) for t in texts} if _are_numbers(texts) else {t: t for t in texts}
    ranks = {key: n for n, key in enumerate(sorted(set(keys.values())))}
    return {text: ranks[key] for text, key in keys.items()}


def _remarks(
    columns: Sequence[str],
    rows: Sequence[Row],
    names: Mapping[str, int],
    cameras: Mapping[str, int] | None,
) -> Iterator[str]:
    """What the user should know of how the table was understood."""
    if unused := [c for c in columns if c not in (*REQUIRED, *OPTIONAL)]:
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
    rows: Sequence[Row],
    persons: Mapping[str, int],
    cameras: Mapping[str, int] | None,
) -> Split:
    kept = [row for row in rows if persons[row["person"]] != -1]
    entries = tuple(_entry(folder, row, persons, cameras) for row in kept)
    return Split(entries, junk=len(rows) - len(kept))


def _entry(
    folder: pathlib.Path,
    row: Row,
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
