"""What is added to a gallery: image files, read, hashed and embedded."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from data_pipelines.entries import is_text
from reid_jax.errors import UserError
from reid_jax.extractor import batches
from reid_jax.extractor import images as imaging
from reid_jax.extractor.images import BadImage
from reid_jax.extractor.load import SHIPPED
from reid_jax.search import layout
from reid_jax.search.gallery import Gallery
from reid_jax.search.layout import About, Embedding, Row
from reid_jax.search.query import Asked

if TYPE_CHECKING:
    from reid_jax.extractor.extractor import Extractor

BAR = {"unit": "img", "leave": False, "disable": None}
"""Progress, where it goes to a terminal."""

KNOWN = ("person", "camera", "time")
"""What may be known of an image beside its path."""

_BLOCK = 256


@dataclasses.dataclass(frozen=True)
class Entry:
    """An image that may be added.

    Attributes:
      path: absolute.
      content: digest of what lies there.
      facts: person, camera and time, as far as they are known, and further columns.
    """

    path: str
    content: str
    facts: Mapping[str, Any]

    @property
    def id(self) -> str:
        """Which entry of a gallery it is: that of its path."""
        return identity(self.path)

    def row(self, fields: Row, *, added: str) -> Row:
        """The entry with the fields of its embedding."""
        unknown = dict.fromkeys(KNOWN)
        own = {"id": self.id, "path": self.path, "content": self.content}
        return {**unknown, **self.facts, **own, "added": added, **fields}


def identity(path: str) -> str:
    """The id of what lies at an absolute path."""
    return hashlib.sha256(path.encode()).hexdigest()[:32]


def digest(data: bytes) -> str:
    """Tells one content from another."""
    return hashlib.sha256(data).hexdigest()


def now() -> str:
    """The time as galleries keep it."""
    return moment(datetime.datetime.now(datetime.UTC))


def moment(value: Any) -> str | None:
    """A time as galleries keep it: UTC, so that texts compare as times do.

    Args:
      value: a date and time (without a zone: UTC), its ISO 8601 text, seconds since
        1970, or nothing.

    Raises:
      ValueError: it is none of these.
    """
    if value in (None, ""):
        return None
    if isinstance(value, str):
        if value.isdecimal() and len(value) != len("20261129"):
            raise ValueError(f"{value} is neither a date nor a time")  # to Python it is
        value = datetime.datetime.fromisoformat(value)
    elif isinstance(value, int | float):
        value = datetime.datetime.fromtimestamp(value, datetime.UTC)
    if not isinstance(value, datetime.datetime):
        raise ValueError(f"{value!r} is no time")
    zoned = value if value.tzinfo else value.replace(tzinfo=datetime.UTC)
    try:
        utc = zoned.astimezone(datetime.UTC).replace(tzinfo=None)
    except OverflowError as error:
        raise ValueError(f"{value} is before the year 1 or after 9999") from error
    return f"{utc.isoformat(timespec='seconds')}Z"


def from_files(
    places: Sequence[str],
    *,
    pattern: str = "",
    camera: str | None = None,
    skipped: Callable[[Any, BadImage], None] | None = None,
) -> list[Entry]:
    """The image files, and those below folders, all read once.

    So a damaged image is found before anything is embedded or added.

    Args:
      places: files and folders.
      pattern: regular expression that is looked for in each path; its named groups
        person, camera and time are what is known of the image.
      camera: of all images whose path does not tell it.
      skipped: is told of each image that cannot be read, its path and why; it is then
        left out.

    Raises:
      UserError: a place that is not there, a folder without images, an image that
        cannot be read, unless there is `skipped`, or a wrong pattern.
    """
    facts = _facts(pattern, camera)
    files = [file for place in places for file in imaging.files(place)]
    paths = list(dict.fromkeys(os.path.abspath(file) for file in files))
    read = imaging.read_ahead(_digested, tqdm(paths, "reading", **BAR))
    return [
        Entry(path, content, facts(path))
        for path, content in batches.usable(read, skipped)
    ]


def _digested(path: str) -> str:
    if not is_text(path):
        raise BadImage(f"the name of {path!r} is no plain text: rename it")
    return digest(imaging.read_both(path)[0])


def _facts(pattern: str, camera: str | None) -> Callable[[str], dict[str, Any]]:
    """Gives what the name of a file tells."""
    try:
        found = re.compile(pattern)
    except re.error as error:
        raise UserError(
            f"--pattern={pattern} is no regular expression: {error}"
        ) from error
    if other := set(found.groupindex) - set(KNOWN):
        raise UserError(
            f"--pattern has the groups {sorted(other)}; it may have {', '.join(KNOWN)}"
        )

    def facts(path: str) -> dict[str, Any]:
        match = found.search(path) if pattern else None
        told = {k: v for k, v in match.groupdict().items() if v} if match else {}
        known = ({"camera": camera} if camera else {}) | told
        try:
            return known | {"time": moment(known.get("time"))}
        except ValueError as error:
            raise UserError(f"--pattern: the time of {path}: {error}") from error

    return facts


def lasting(place: str) -> str:
    """A network's place as it is found from any folder."""
    is_path = place and "://" not in place and not place.startswith(SHIPPED)
    return os.path.abspath(place) if is_path else place


def about(extractor: Extractor, place: str, embedding: Embedding) -> About:
    """What a gallery remembers of a network.

    Args:
      extractor: it.
      place: that it was loaded from.
      embedding: of any image.
    """
    network = extractor.network
    return About(
        fingerprint=network.fingerprint,
        method=network.method,
        model=lasting(place),
        image_size=tuple(network.image_size),
        arrays=layout.described(embedding),
    )


def embedded(
    extractor: Extractor, entries: Sequence[Entry], *, batch_size: int | None = None
) -> Iterator[tuple[list[Entry], Embedding]]:
    """Embeds entries, batch by batch.

    Raises:
      UserError: as `Extractor.stream`.
    """
    by_path = {entry.path: entry for entry in entries}
    sources = imaging.sources(list(by_path))
    with tqdm(total=len(by_path), desc="embedding", **BAR) as bar:
        for batch, embedding in extractor.stream(sources, batch_size=batch_size):
            yield [by_path[source.name] for source in batch], embedding
            bar.update(len(batch))


def remembering(gallery: Gallery, entries: Sequence[Entry]) -> list[Entry]:
    """Entries with what the gallery knows of them and they do not tell."""
    names = [*KNOWN, *gallery.about.columns]
    found = gallery.get([entry.id for entry in entries], fields=["id", *names])
    known = {row["id"]: {name: row.get(name) for name in names} for row in found}
    return [
        dataclasses.replace(entry, facts=known.get(entry.id, {}) | _told(entry))
        for entry in entries
    ]


def _told(entry: Entry) -> dict[str, Any]:
    return {name: value for name, value in entry.facts.items() if value is not None}


def put(gallery: Gallery, entries: Sequence[Entry], embedding: Embedding) -> None:
    """Adds entries and their Embedding; those whose id is there are replaced."""
    added = now()
    fields = layout.encoded(gallery.about, embedding)
    pairs = zip(entries, fields, strict=True)
    gallery.put([entry.row(row, added=added) for entry, row in pairs])


def retell(gallery: Gallery, entries: Sequence[Entry]) -> int:
    """Gives entries that are there, with this content, what is told of them now.

    What is not told stays as it was.

    Returns:
      how many had other facts.
    """
    there = {row["id"]: row for row in gallery.get([entry.id for entry in entries])}
    told = {}
    for entry in entries:
        row = there.get(entry.id, {"content": None})
        known = _told(entry)
        if row["content"] == entry.content and known != {k: row[k] for k in known}:
            told[entry.id] = known
    ids = list(told)
    for start in range(0, len(ids), _BLOCK):
        whole = gallery.get(ids[start : start + _BLOCK], fields=["*"])
        gallery.put([row | told[row["id"]] for row in whole])
    if told:
        gallery.flush()
    return len(told)


def asked(
    gallery: Gallery, extractor: Extractor, entries: Sequence[Entry]
) -> list[Asked]:
    """Queries of images; what the gallery knows of one that it holds is used."""
    ids = [entry.id for entry in entries]
    there = {row["id"]: row for row in gallery.get(ids)}
    return [
        Asked(
            name=entry.path,
            embedding={name: array[i : i + 1] for name, array in embedding.items()},
            id=entry.id,
            **{
                name: entry.facts.get(name) or there.get(entry.id, {}).get(name)
                for name in ("camera", "person")
            },
        )
        for batch, embedding in embedded(extractor, entries)
        for i, entry in enumerate(batch)
    ]
