"""The images that are embedded, with what is known of them."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import glob
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from data_pipelines import images as encoded
from data_pipelines import prepared
from data_pipelines.entries import is_text, printable
from data_pipelines.readers import table_rows
from data_pipelines.readers.table_rows import MISSING, Row
from data_pipelines.records import Records
from reid_jax.errors import UserError
from reid_jax.extractor import images
from reid_jax.extractor.images import BadImage, Source

COLUMNS = ("path", "person", "camera", "time")
"""Of a table that are read; all but the first may be missing."""

_INT32 = np.iinfo(np.int32).max
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
class Marks:
    """What rows depend on beside the network, noted before an image is read.

    Attributes:
      start: number of the first image.
      facts: of each image, what is known of it.
      versions: of each image, what changes when its content does.
    """

    start: int
    facts: Sequence[str]
    versions: Sequence[str]

    def digests(self, numbers: range) -> dict[str, str]:
        """Of the facts and the versions of these images."""
        part = slice(numbers.start - self.start, numbers.stop - self.start)
        return {
            "facts": _digest(self.facts[part]),
            "versions": _digest(self.versions[part]),
        }


@dataclasses.dataclass(frozen=True)
class Listing:
    """Images by number, each made when it is wanted.

    Attributes:
      names: their paths.
      make: an image of a number.
      version: of an image's number, what changes when its content does: of a file its
        size and time of modification, which need no reading.
      folder: that relative paths are relative to.
    """

    names: Sequence[str]
    make: Callable[[int], Item]
    version: Callable[[int], str]
    folder: str

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

    def places(self, numbers: range) -> list[str]:
        """Whole paths of these images."""
        return [whole(self.folder, self.names[i]) for i in numbers]

    def digest(self, numbers: range) -> str:
        """Tells these images from others, by their whole paths."""
        return _digest(self.places(numbers))

    def marks(self, numbers: range) -> Marks:
        """What the rows of these images depend on, as it is now."""
        items = map(self.make, numbers)
        return Marks(
            numbers.start,
            [repr((item.person, item.camera, item.time)) for item in items],
            [self.version(i) for i in numbers],
        )

    def items(self, numbers: range) -> Iterator[Item]:
        """These images."""
        return map(self.make, numbers)


def whole(folder: str, name: str) -> str:
    """A path that is the same wherever it is named from."""
    return os.path.normpath(os.path.join(folder, name))


def of_images(text: str) -> Listing:
    """A folder, an image, a glob pattern, or a table with a column `path`.

    Raises:
      UserError: nothing is there, or a table has wrong cells.
    """
    if not text.strip():
        raise UserError("--images is empty: is a variable of the shell not set?")
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

    def version(i: int) -> str:
        return hashlib.sha256(records[i]["image"]).hexdigest()[:16]

    folder = data_dir if "://" in data_dir else os.path.abspath(data_dir)
    return Listing(
        names,
        functools.partial(_of_record, records),
        version,
        os.path.join(folder, dataset, split),
    )


def _digest(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode(errors="surrogateescape") + b"\n")
    return digest.hexdigest()[:16]


def _matches(pattern: str) -> list[str]:
    found = glob.glob(os.path.expanduser(pattern), recursive=True)
    files = sorted(p for p in found if p.lower().endswith(images.SUFFIXES))
    if not files:
        raise UserError(f"no image files match --images={pattern}")
    return files


def _of_files(names: list[str]) -> Listing:
    for name in names:
        if not is_text(name):
            raise UserError(
                f"the name {printable(name)} has unprintable characters: rename it"
            )

    def make(i: int) -> Item:
        read = functools.partial(images.read_file, names[i])
        return Item(names[i], read, place=i)

    return _listed(names, make)


def _listed(names: list[str], make: Callable[[int], Item]) -> Listing:
    """Images that are files."""

    def version(i: int) -> str:
        try:
            found = os.stat(names[i])
        except (OSError, ValueError):  # it is named when it is read
            return ""
        return f"{found.st_size} {found.st_mtime_ns}"

    return Listing(names, make, version, os.getcwd())


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
    return _listed(names, functools.partial(_of_row, table, names, rows))


def _of_row(table: pathlib.Path, names: list[str], rows: list[Row], i: int) -> Item:
    camera = _cell(rows[i], "camera")
    numbered = camera is not None and camera.isdecimal() and int(camera) <= _INT32
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
    figures = text.partition(".")[0]
    try:
        if len(figures) > 10 and figures.isdecimal():
            raise ValueError("such as 202611291415, a second of the year 8384")
        try:
            if len(text) in (4, 6, 8) and text.isdecimal():
                raise ValueError("a date, such as 20261129, and no second of 1970")
            return datetime.datetime.fromtimestamp(float(text), datetime.UTC)
        except ValueError:
            time = datetime.datetime.fromisoformat(text)
            aware = time if time.tzinfo else time.replace(tzinfo=datetime.UTC)
            return aware.astimezone(datetime.UTC)  # as far as there are years
    except (ValueError, OverflowError, OSError) as error:
        raise UserError(
            f"{table}: row {row.number}, column time: {text!r} is neither a time such "
            "as 2026-11-29T14:15:00 nor seconds since 1970"
        ) from error
