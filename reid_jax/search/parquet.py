"""Files of `reid-jax embed`, added to a gallery as they are: no network is needed."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from reid_jax.embed import files
from reid_jax.embed.listing import whole
from reid_jax.errors import UserError
from reid_jax.extractor import images as imaging
from reid_jax.search import gallery as galleries
from reid_jax.search import layout, rows, schema
from reid_jax.search.gallery import Gallery
from reid_jax.search.layout import About, Embedding

if TYPE_CHECKING:
    import pyarrow

_SUFFIX = ".parquet"
_ROWS = 1000
_TYPES = {
    "text": ("string", "large_string"),
    "whole": ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"),
    "number": ("float", "double"),
    "truth": ("bool",),
}
"""Kinds of further columns, and Arrow's types of them."""


def holds(place: str) -> bool:
    """Whether a path is a Parquet file, or a folder of these.

    Raises:
      UserError: a folder has images, too.
    """
    path = pathlib.Path(place)
    if not path.is_dir():
        return path.suffix == _SUFFIX
    if not any(path.glob(f"*{_SUFFIX}")):
        return False
    try:
        imaging.files(path)
    except UserError:
        return True
    raise UserError(
        f"{place} holds images and Parquet files, and one kind is added at a time. "
        f"Name the files, such as {path}/*{_SUFFIX}, or move them apart"
    )


def add(
    uri: str, collection: str, places: Sequence[str], *, model: str, index: str
) -> tuple[int, int]:
    """Adds the rows of files that are not there yet, or have changed.

    All files are read once before the first is added.

    Args:
      uri, collection: of the gallery, which is made if it is not there.
      places: files, and folders of files.
      model: where the network is, which a new gallery remembers; "" if nobody says.
      index: kind of a new gallery's.

    Returns:
      how many were added or changed, and how many there are.

    Raises:
      UserError: a file that cannot be read, was not written by `embed`, has a column
        that a gallery cannot keep, has an image that had a row before, or is of
        another network than the others or the gallery, or has other columns.
    """
    paths = [file for place in places for file in _files(place)]
    abouts = [_about(file, model) for file in paths]
    seen: set[str] = set()
    for path, about in zip(paths, abouts, strict=True):
        _check_same(about, abouts[0], str(path), str(paths[0]))
        _check_rows(path, seen)
    new = total = 0
    with galleries.made(uri, abouts[0], collection, index=index) as gallery:
        _check_same(abouts[0], gallery.about, str(paths[0]), uri)
        with tqdm(desc="adding", **rows.BAR) as bar:
            for path in paths:
                folder = files.read_about(path).folder
                for batch, embedding in files.read(path, rows=_ROWS):
                    new += _put(gallery, folder, batch, embedding)
                    total += len(batch)
                    bar.update(len(batch))
        gallery.flush()
    return new, total


def _put(
    gallery: Gallery,
    folder: str,
    batch: pyarrow.RecordBatch,
    embedding: Embedding,
) -> int:
    """Adds what is new of a batch; gives its number."""
    entries = list(_entries(batch, folder, gallery.about, embedding))
    there = gallery.contents([entry.id for entry in entries])
    chosen = [i for i, e in enumerate(entries) if there.get(e.id) != e.content]
    picked = {array: values[chosen] for array, values in embedding.items()}
    new = rows.remembering(gallery, [entries[i] for i in chosen])
    rows.put(gallery, new, picked)
    return len(chosen)


def _entries(
    batch: pyarrow.RecordBatch, folder: str, about: About, embedding: Embedding
) -> Iterator[rows.Entry]:
    names = [*rows.KNOWN, *about.columns]
    facts = {name: batch[name].to_pylist() for name in names}
    vectors = layout.anchors(about, embedding)
    for i, path in enumerate(batch["path"].to_pylist()):
        known = {name: layout.kept(values[i]) for name, values in facts.items()}
        known["time"] = rows.moment(known["time"])
        said = json.dumps(known).encode() + vectors[i].tobytes()
        yield rows.Entry(_whole(folder, path), rows.digest(said), known)


def _whole(folder: str, path: str) -> str:
    """As other ways of adding an image name it; in a bucket `//` has to stay."""
    return os.path.join(folder, path) if "://" in folder else whole(folder, path)


def _files(place: str) -> list[pathlib.Path]:
    path = pathlib.Path(place)
    return sorted(path.glob(f"*{_SUFFIX}")) if path.is_dir() else [path]


def _about(path: pathlib.Path, model: str) -> About:
    """What a gallery of these rows remembers."""
    said = files.read_about(path)
    first = next(files.read(path, rows=1), None)
    if first is None:
        raise UserError(f"{path} has no rows")
    batch, embedding = first
    _check_known(path, batch.schema)
    own = {"path", *rows.KNOWN, *embedding}
    further = [field for field in batch.schema if field.name not in own]
    return About(
        fingerprint=said.fingerprint,
        method=said.method,
        model=rows.lasting(model),
        image_size=said.image_size,
        arrays=layout.described(embedding),
        columns={field.name: _kind(path, field) for field in further},
    )


def _check_rows(path: pathlib.Path, seen: set[str]) -> None:
    """Raises UserError for values that cannot be kept, and images that were `seen`."""
    folder = files.read_about(path).folder
    for batch, embedding in files.read(path, rows=_ROWS):
        for name, values in embedding.items():
            if not np.isfinite(values).all():
                raise UserError(f"{path}: column {name} has values that are not finite")
        if batch["path"].null_count:
            raise UserError(f"{path}: a row has no path")
        for name in batch["path"].to_pylist():
            key = rows.identity(_whole(folder, name))
            if key in seen:
                raise UserError(
                    f"{path}: the image {name} has a row before, and a gallery keeps "
                    "one of each path. Write the files without the other"
                )
            seen.add(key)
        _check_texts(path, batch)
        for value in batch["time"].to_pylist():
            try:
                rows.moment(value)
            except ValueError as error:
                raise UserError(f"{path}: column time: {error}") from error


def _check_texts(path: pathlib.Path, batch: pyarrow.RecordBatch) -> None:
    """Raises UserError for texts that are too long to be kept."""
    import pyarrow.compute

    for field in batch.schema:
        if str(field.type) not in _TYPES["text"]:
            continue
        most = schema.LONGEST_PATH if field.name == "path" else schema.LONGEST
        lengths = pyarrow.compute.binary_length(batch[field.name])
        longest = pyarrow.compute.max(lengths).as_py() or 0
        if longest > most:
            row = lengths.to_pylist().index(longest)
            raise UserError(
                f"{path}: column {field.name} of {batch['path'][row]} has {longest} "
                f"bytes, and a gallery keeps {most}. Shorten it, or write the file "
                "without it"
            )


def _check_known(path: pathlib.Path, columns: pyarrow.Schema) -> None:
    """Raises UserError for a column of `embed` that was dropped, or is no text now."""
    for name in ("path", *rows.KNOWN):
        kind = str(columns.field(name).type) if name in columns.names else "not there"
        if kind not in _TYPES["text"] and not (
            name == "time" and kind.startswith("timestamp")
        ):
            raise UserError(
                f"{path}: column {name} is {kind}; it must be text, as reid-jax embed "
                "writes it. Write the file again"
            )


def _kind(path: pathlib.Path, field: pyarrow.Field) -> str:
    own = (*layout.FIELDS, *layout.ANSWERS)
    if field.name in own or field.name.startswith(layout.field("")):
        raise UserError(
            f"{path}: a gallery has a column {field.name} of its own; give this one "
            "another name"
        )
    for kind, names in _TYPES.items():
        if str(field.type) in names:
            return kind
    raise UserError(
        f"{path}: column {field.name} is {field.type}; a gallery keeps text, numbers "
        "and truth values. Write the file without it"
    )


def _check_same(about: About, other: About, name: str, others: str) -> None:
    """Raises UserError for files of two networks, or with other columns."""
    for what in ("fingerprint", "arrays", "columns"):
        one, two = getattr(about, what), getattr(other, what)
        if one != two:
            raise UserError(
                f"{name}: its {what}, {one}, are not those of {others}, {two}. Write "
                "the file with these, or make another gallery"
            )
