"""Files of `reid-jax embed`, added to a gallery as they are: no network is needed."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from reid_jax.errors import UserError
from reid_jax.search import gallery as galleries
from reid_jax.search import layout, rows
from reid_jax.search.gallery import Gallery
from reid_jax.search.layout import About

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

META = b"reid_jax"
"""Key of the file's metadata under which `embed` writes JSON: `fingerprint`, `method`,
`model`, `image_size` and `arrays`, as `layout.About` has them."""

_SUFFIX = ".parquet"
_ROWS = 1000


def holds(place: str) -> bool:
    """Whether a path is a Parquet file, or a folder of these."""
    path = pathlib.Path(place)
    if path.is_dir():
        return any(path.glob(f"*{_SUFFIX}"))
    return path.suffix == _SUFFIX


def add(
    uri: str, collection: str, places: Sequence[str], *, index: str
) -> tuple[int, int]:
    """Adds the rows of files that are not there yet, or have changed.

    All files are looked at before the first is added.

    Returns:
      how many were added or changed, and how many there are.

    Raises:
      UserError: a file that cannot be read, was not written by `embed`, or is of
        another network than the others or the gallery.
    """
    opened = [_open(file) for place in places for file in _files(place)]
    abouts = [_about(name, file) for name, file in opened]
    for (name, _), about in zip(opened, abouts, strict=True):
        _check_same(about, abouts[0], name, opened[0][0])
    new = total = 0
    with galleries.made(uri, abouts[0], collection, index=index) as gallery:
        _check_same(abouts[0], gallery.about, opened[0][0], uri)
        count = sum(file.metadata.num_rows for _, file in opened)
        with tqdm(total=count, desc="adding", **rows.BAR) as bar:
            for name, file in opened:
                for batch in file.iter_batches(batch_size=_ROWS):
                    new += _put(gallery, name, batch)
                    total += len(batch)
                    bar.update(len(batch))
        gallery.flush()
    return new, total


def _put(gallery: Gallery, name: str, batch: pyarrow.RecordBatch) -> int:
    """Adds what is new of a batch; gives its number."""
    embedding = {
        array: _numbers(batch.column(array), dtype, shape)
        for array, (dtype, shape) in gallery.about.arrays.items()
    }
    for array, values in embedding.items():
        if not np.isfinite(values).all():
            raise UserError(f"{name}: column {array} has values that are not finite")
    entries = list(_entries(name, batch, gallery.about, embedding))
    there = gallery.contents([entry.id for entry in entries])
    chosen = [i for i, e in enumerate(entries) if there.get(e.id) != e.content]
    picked = {array: values[chosen] for array, values in embedding.items()}
    rows.put(gallery, [entries[i] for i in chosen], picked)
    return len(chosen)


def _entries(
    name: str, batch: pyarrow.RecordBatch, about: About, embedding: layout.Embedding
) -> Iterator[rows.Entry]:
    facts = {k: batch.column(k).to_pylist() for k in _told(batch.schema, about)}
    anchors = layout.anchors(about, embedding)
    for i, path in enumerate(batch.column("path").to_pylist()):
        told = {k: values[i] for k, values in facts.items()}
        try:
            known = told | {k: _text(k, told.get(k)) for k in rows.KNOWN}
        except (ValueError, TypeError) as error:
            raise UserError(f"{name}: the time of {path}: {error}") from error
        content = rows.digest(
            json.dumps(known, default=str).encode() + bytes(anchors[i])
        )
        yield rows.Entry(os.path.abspath(path), content, known)


def _text(name: str, value: Any) -> str | None:
    """Person, camera or time as galleries have it; -1 stands for an unknown one."""
    if name == "time":
        return rows.moment(value)
    return None if value in (None, "", -1) else str(value)


def _told(schema: pyarrow.Schema, about: About) -> list[str]:
    return [name for name in schema.names if name not in (*about.arrays, "path")]


def _numbers(column: pyarrow.Array, dtype: str, shape: Sequence[int]) -> np.ndarray:
    """A column of fixed-size lists as [rows, *shape]."""
    values = column
    while hasattr(values.type, "value_type"):
        values = values.flatten()
    return np.asarray(values).astype(dtype).reshape(len(column), *shape)


def _files(place: str) -> list[pathlib.Path]:
    path = pathlib.Path(place)
    return sorted(path.glob(f"*{_SUFFIX}")) if path.is_dir() else [path]


def _open(path: pathlib.Path) -> tuple[str, pyarrow.parquet.ParquetFile]:
    import pyarrow
    import pyarrow.parquet

    try:
        return str(path), pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} cannot be read as Parquet: {reason}") from error


def _about(name: str, file: pyarrow.parquet.ParquetFile) -> About:
    schema = file.schema_arrow
    try:
        meta = json.loads((schema.metadata or {})[META])
        arrays = {k: (dtype, tuple(s)) for k, (dtype, s) in meta["arrays"].items()}
        about = About(
            fingerprint=meta["fingerprint"],
            method=meta["method"],
            model=meta.get("model", ""),
            image_size=tuple(meta["image_size"]),
            arrays=arrays,
        )
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{name} does not say which network its vectors are of: write it with "
            "reid-jax embed"
        ) from error
    if missing := {"path", *arrays} - set(schema.names):
        raise UserError(f"{name} has no column {', '.join(sorted(missing))}")
    further = [n for n in _told(schema, about) if n not in rows.KNOWN]
    kinds = {n: _kind(name, schema.field(n)) for n in further}
    return About(**{**vars(about), "columns": kinds})


def _kind(name: str, field: pyarrow.Field) -> str:
    import pyarrow.types

    tests = {
        "text": (pyarrow.types.is_string, pyarrow.types.is_large_string),
        "whole": (pyarrow.types.is_integer,),
        "number": (pyarrow.types.is_floating,),
        "truth": (pyarrow.types.is_boolean,),
    }
    for kind, those in tests.items():
        if any(test(field.type) for test in those):
            return kind
    raise UserError(
        f"{name}: column {field.name} is {field.type}; a gallery keeps text, numbers "
        "and truth values. Write the file without it"
    )


def _check_same(about: About, other: About, name: str, others: str) -> None:
    """Raises UserError for files of two networks, or with other columns."""
    for what in ("fingerprint", "arrays", "columns"):
        one, two = (_comparable(getattr(x, what)) for x in (about, other))
        if one != two:
            raise UserError(
                f"{name}: its {what}, {one}, are not those of {others}, {two}"
            )


def _comparable(value: Any) -> Any:
    return dict(sorted(value.items())) if isinstance(value, Mapping) else value
