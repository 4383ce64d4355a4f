"""The images that are embedded, with what is known of them."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import glob
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from data_pipelines import images as encoded
from data_pipelines import prepared
from data_pipelines.readers import table_rows
from data_pipelines.readers.table_rows import MISSING, Row
from data_pipelines.records import Records
from reid_jax.errors import UserError
from reid_jax.extractor import images
from reid_jax.extractor.images import BadImage, Source

COLUMNS = ("path", "person", "camera", "time")
"""Of a table that are read; all but the first may be missing."""

_TABLES = (".csv", ".tsv", *table_rows.PARQUET)


@dataclasses.dataclass(frozen=True)
class Item(Source):
    """An image with what is known of it; `name` is its path.

    Attributes:
      place: its number in the list.
      person, camera: what the source calls them.
      time: when it was taken, in UTC.
    """

    place: int = 0
    person: str | None = None
    camera: str | None = None
    time: datetime.datetime | None = None


@dataclasses.dataclass(frozen=True)
class Listing:
    """Images by number, each made when it is wanted.

    Attributes:
      names: their paths.
      make: an image of a number.
    """

    names: Sequence[str]
    make: Callable[[int], Item]

    def share(self, index: int, count: int) -> range:
        """The numbers of the images of one of `count` shares.

        Raises:
          UserError: if there is no such share, or it has no image.
        """
        if not 0 <= index < count:
            raise UserError(
                f"--shard={index}/{count}: shares are numbered from 0 to {count - 1}"
            )
        total = len(self.names)
        if total < count:
            raise UserError(
                f"--shard={index}/{count}: there are only {total} images; use at most "
                f"{total} shares"
            )
        return range(index * total // count, (index + 1) * total // count)

    def digest(self, numbers: range) -> str:
        """Tells these images from others, by their paths."""
        digest = hashlib.sha256()
        for i in numbers:
            digest.update(self.names[i].encode(errors="surrogateescape") + b"\n")
        return digest.hexdigest()[:16]

    def items(self, numbers: range) -> Iterator[Item]:
        """These images."""
        return map(self.make, numbers)


def of_images(text: str) -> Listing:
    """A folder, an image, a glob pattern, or a table with a column `path`.

    Raises:
      UserError: nothing is there, or a table has wrong cells.
    """
    path = pathlib.Path(os.path.expanduser(text))
    if path.suffix.lower() in _TABLES and path.is_file():
        return _of_table(path)
    if not path.exists() and glob.has_magic(text):
        return _of_files(_matches(text))
    return _of_files(list(map(str, images.files(path))))


def of_split(dataset: str, split: str, data_dir: str) -> Listing:
    """A split of a prepared data set; paths are the names of the pictures.

    Raises:
      UserError: it is not there, or is damaged.
    """
    records = prepared.open_records(dataset, split, data_dir)
    names = [records.filename(i) for i in range(len(records))]
    return Listing(names, functools.partial(_of_record, records))


def _matches(pattern: str) -> list[str]:
    found = glob.glob(os.path.expanduser(pattern), recursive=True)
    files = sorted(p for p in found if p.lower().endswith(images.SUFFIXES))
    if not files:
        raise UserError(f"no image files match --images={pattern}")
    return files


def _of_files(names: list[str]) -> Listing:
    for name in names:
        if not name.isprintable():  # nor could a table hold what is no UTF-8
            shown = name.encode("unicode_escape").decode()
            raise UserError(f"the name {shown} has unprintable characters: rename it")

    def make(i: int) -> Item:
        read = functools.partial(images.read_file, names[i])
        return Item(names[i], read, place=i)

    return Listing(names, make)


def _of_record(records: Records, i: int) -> Item:
    def read() -> dict[str, np.ndarray]:
        try:
            return {"image": encoded.decode(records[i]["image"])}
        except ValueError as error:
            raise BadImage(
                f"the stored image {records.filename(i)} is damaged: {error}"
            ) from error

    return Item(
        records.filename(i),
        read,
        {"camera": np.int32(records.camera[i])},
        place=i,
        person=records.person_name(records.person[i]),
        camera=records.camera_name(records.camera[i]),
    )


def _of_table(table: pathlib.Path) -> Listing:
    columns, rows = table_rows.read(table, COLUMNS)
    if "path" not in columns:
        raise UserError(
            f"{table} has no column path; its columns: {', '.join(columns)}"
        )
    if not rows:
        raise UserError(f"{table} has no rows")
    for row in rows:
        if not _cell(row, "path"):
            raise UserError(f"{table}: row {row.number}, column path: it is empty")
        _time(table, row)
    names = [str(table.parent / row["path"]) for row in rows]
    return Listing(names, functools.partial(_of_row, table, names, rows))


def _of_row(table: pathlib.Path, names: list[str], rows: list[Row], i: int) -> Item:
    camera = _cell(rows[i], "camera")
    numbered = camera is not None and camera.isdecimal()
    return Item(
        names[i],
        functools.partial(images.read_file, names[i]),
        {"camera": np.int32(camera)} if numbered else {},
        place=i,
        person=_cell(rows[i], "person"),
        camera=camera,
        time=_time(table, rows[i]),
    )


def _cell(row: Row, column: str) -> str | None:
    text = row.cells.get(column, "")
    return None if text in MISSING else text


def _time(table: pathlib.Path, row: Row) -> datetime.datetime | None:
    """ISO 8601, in UTC unless it says otherwise, or seconds since 1970."""
    text = _cell(row, "time")
    if text is None:
        return None
    try:
        try:
            return datetime.datetime.fromtimestamp(float(text), datetime.UTC)
        except ValueError:
            time = datetime.datetime.fromisoformat(text)
            return time if time.tzinfo else time.replace(tzinfo=datetime.UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise UserError(
            f"{table}: row {row.number}, column time: {text!r} is neither a time such "
            "as 2026-11-29T14:15:00 nor seconds since 1970"
        ) from error
