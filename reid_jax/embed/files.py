"""Files of embeddings: a row for each image, and which network they are of.

Parquet: `path`, `person` and `camera` (text), `time` (UTC), each empty where it is not
known, and a column for every array of the Embedding under its name: lists of a fixed
size, row-major where the array has more axes. The schema's metadata holds `About` as
JSON under the key `reid_jax`. An `.npz` has the same, each array in its own shape.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from reid_jax.embed.listing import Item, whole
from reid_jax.errors import UserError

Embedding = dict[str, np.ndarray]

SUFFIXES = (".parquet", ".npz")
_KEY = b"reid_jax"
# What Arrow, NumPy and zipfile raise on files that are damaged, or of other kinds.
_UNREADABLE = (
    *(OSError, EOFError, ValueError, LookupError, TypeError, AttributeError),
    *(zipfile.BadZipFile, zlib.error, NotImplementedError, pa.ArrowException),
)
_KNOWN = {
    "path": pa.string(),
    "person": pa.string(),
    "camera": pa.string(),
    "time": pa.timestamp("us", tz="UTC"),
}


@dataclasses.dataclass(frozen=True)
class About:
    """What a file of embeddings says of itself.

    Attributes:
      method, fingerprint, image_size: of the network.
      flip: whether mirror images were averaged in.
      images: digest of the list of whole paths.
      shard: which share of the list, from 0, and of how many.
      folder: that relative paths are relative to.
      arrays: shape of each array of the Embedding, without the images' axis.
      skipped: messages of the images that could not be read and were left out.
      facts, versions: digests of what is known of each image, and of its size and time
        of modification (of its content, in a prepared split); "" in older files.
    """

    method: str
    fingerprint: str
    image_size: tuple[int, int]
    flip: bool
    images: str
    shard: tuple[int, int]
    folder: str
    arrays: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    facts: str = ""
    versions: str = ""


def table(items: Sequence[Item], embedding: Embedding, about: About) -> pa.Table:
    """Rows of Parquet."""
    known = {
        "path": [item.name for item in items],
        **{
            name: [getattr(i, name) for i in items] for name in _KNOWN if name != "path"
        },
    }
    columns = {name: pa.array(known[name], kind) for name, kind in _KNOWN.items()}
    columns |= {name: _column(array) for name, array in embedding.items()}
    shapes = {name: array.shape[1:] for name, array in embedding.items()}
    return _about(pa.table(columns), dataclasses.replace(about, arrays=shapes))


def _about(rows: pa.Table, about: About) -> pa.Table:
    text = json.dumps(dataclasses.asdict(about))
    return rows.replace_schema_metadata({_KEY: text.encode()})


def _column(array: np.ndarray) -> pa.Array:
    if array.ndim == 1:
        return pa.array(array)
    flat = pa.array(np.ascontiguousarray(array).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, math.prod(array.shape[1:]))


def write_part(path: pathlib.Path, rows: pa.Table) -> None:
    """Writes rows in one step."""
    temporary = path.with_suffix(".writing")
    pq.write_table(rows, temporary, write_page_checksum=True)
    os.replace(temporary, path)


def join(
    parts: Sequence[pathlib.Path],
    path: pathlib.Path,
    about: About,
    *,
    kind: str,
    images: int,
) -> About:
    """Writes the rows of all parts to one file.

    Args:
      parts: in their order.
      path: is not there.
      about: what the file will say of itself; `skipped` has the images of no part.
      kind: one of `SUFFIXES`.
      images: how many the rows and the skipped ones must be together.

    Returns:
      what the file says of itself.

    Raises:
      UserError: a part is damaged, or rows are missing.
    """
    abouts = [read_about(part) for part in parts]
    skipped = (*(line for part in abouts for line in part.skipped), *about.skipped)
    about = dataclasses.replace(about, arrays=abouts[0].arrays, skipped=skipped)
    rows = sum(pq.read_metadata(part).num_rows for part in parts)
    if rows + len(skipped) != images:
        raise UserError(
            f"{parts[0].parent} has {rows} embeddings and {len(skipped)} messages of "
            f"{images} images: remove that folder and give the same command again"
        )
    if kind == ".npz":
        _write_npz(path, parts, about)
        return about
    schema = _about(pq.read_schema(parts[0]).empty_table(), about).schema
    with pq.ParquetWriter(path, schema, write_page_checksum=True) as writer:
        for part in parts:
            writer.write_table(_read_table(part))  # a row group each
    return about


def _write_npz(path: pathlib.Path, parts: Sequence[pathlib.Path], about: About) -> None:
    rows = pa.concat_tables(map(_read_table, parts))
    stored = {
        name: np.array([text or "" for text in rows[name].to_pylist()])
        for name in ("path", "person", "camera")
        if rows[name].null_count < len(rows)
    }
    if rows["time"].null_count < len(rows):
        stored["time"] = rows["time"].to_numpy()
    text = json.dumps(dataclasses.asdict(about))
    with path.open("wb") as file:
        np.savez(file, about=np.array(text), **stored, **_arrays(rows, about))


def read_about(path: str | os.PathLike[str]) -> About:
    """What a file says of itself.

    Raises:
      UserError: if it is not there, or no file of embeddings.
    """
    try:
        if pathlib.Path(path).suffix == ".npz":
            with np.load(path) as stored:
                text = str(stored["about"])
        else:
            text = (pq.read_schema(path).metadata or {})[_KEY]
        found = json.loads(text)
        found["arrays"] = {name: tuple(x) for name, x in found["arrays"].items()}
        for name in ("image_size", "shard", "skipped"):
            found[name] = tuple(found[name])
        return About(**found)
    except FileNotFoundError as error:
        raise UserError(f"there is no file {os.fspath(path)}") from error
    except _UNREADABLE as error:
        raise UserError(
            f"{os.fspath(path)} is no file of embeddings, or is damaged"
        ) from error


def read_paths(path: pathlib.Path) -> list[str]:
    """Whole paths of the images that a file has rows of.

    Raises:
      UserError: if it is no file of embeddings, or is damaged.
    """
    folder = read_about(path).folder
    try:
        if path.suffix == ".npz":
            with np.load(path) as stored:
                names = stored["path"].tolist()
        else:
            names = _read_table(path, columns=["path"])["path"].to_pylist()
    except _UNREADABLE as error:
        raise UserError(f"{path} is damaged") from error
    return [whole(folder, name) for name in names]


def read(
    path: str | os.PathLike[str], *, rows: int = 8192
) -> Iterator[tuple[pa.RecordBatch, Embedding]]:
    """The rows of a Parquet file, block by block, with their Embeddings.

    Args:
      path: of the file.
      rows: at most, of a block.

    Raises:
      UserError: if it is no file of embeddings, or is damaged.
    """
    about = read_about(path)
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(batch_size=rows):
                yield batch, _arrays(batch, about)
    except _UNREADABLE as error:
        raise UserError(
            f"{os.fspath(path)} is damaged, or lacks vectors of its network ({error}). "
            "Write it again with reid-jax embed"
        ) from error


def _read_table(path: pathlib.Path, columns: list[str] | None = None) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns, page_checksum_verification=True)
    except _UNREADABLE as error:
        raise UserError(
            f"{path} is damaged ({error}); give the same command again"
        ) from error


def _arrays(rows: pa.Table | pa.RecordBatch, about: About) -> Embedding:
    """The arrays of an Embedding in their own shapes."""
    return {
        name: _flat(rows[name]).reshape(rows.num_rows, *shape)
        for name, shape in about.arrays.items()
    }


def _flat(column: Any) -> np.ndarray:
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks)
    if pa.types.is_fixed_size_list(column.type):
        column = column.flatten()
    return column.to_numpy(zero_copy_only=False)


def check_suffix(path: pathlib.Path) -> None:
    """Raises UserError for a name that says no kind of file."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"--to={path}: name a file ending in {' or '.join(SUFFIXES)}")
