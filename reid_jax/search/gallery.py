"""A collection of embedded images of one network, in a file or on a server."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from reid_jax.errors import UserError
from reid_jax.search import layout, milvus, schema
from reid_jax.search.layout import About, Row

if TYPE_CHECKING:
    from pymilvus import MilvusClient

COLLECTION = "reid"
MOST = 16_384
"""Entries that Milvus gives for one query at most."""

_PROPERTY = "reid_jax"
_KEPT, _COPY = "_kept", "_copy"
"""Ends of the names of collections beside one: what a deletion keeps, and `copy`."""

_NAME = re.compile(r"[A-Za-z_]\w{0,60}", re.ASCII)
_BLOCK_BYTES = 8 << 20


class Gallery:
    """An open collection; see `existing` and `made`.

    Attributes:
      uri, name: where it is.
      about: what it remembers of its network.
      index: its kind, one of `schema.INDEXES`; "" if it has none, see `mend`.
    """

    def __init__(self, client: MilvusClient, uri: str, name: str) -> None:
        self._client, self.uri, self.name = client, uri, name
        with milvus.answered(uri):
            properties = client.describe_collection(name).get("properties", {})
        if _PROPERTY not in properties:
            raise UserError(
                f"the collection {name} of --gallery={uri} was not made by reid-jax; "
                "choose another with --collection=NAME"
            )
        self.about = About.read(properties[_PROPERTY])
        with milvus.answered(uri):
            found = client.describe_index(name, self._anchor)
        self.index = found["index_type"] if found else ""

    def mend(self) -> None:
        """Finishes what a process that was killed left half done; a note says so."""
        if not self.index:
            _note(f"{self.uri} had lost its index, and gets FLAT; see search check")
            self.reindex("FLAT")
        if milvus.is_server(self.uri):
            return  # others may be at work there, and nothing is written anew
        with milvus.answered(self.uri):
            _drop(self._client, self.name + _COPY)
            if self._client.has_collection(self.name + _KEPT):
                _note(f"{self.uri}: finishing a deletion that was interrupted")
                self._client.load_collection(self.name)
                self._fill(self._kept())

    def load(self) -> None:
        """Makes the collection ready; in a file, a damaged index is built again."""
        from pymilvus import MilvusException

        try:
            self._client.load_collection(self.name)
        except MilvusException as error:
            if milvus.is_server(self.uri):
                raise
            _note(f"{self.uri}: building its index again ({error.message})")
            self.reindex(self.index)

    def check_index(self, index: str) -> None:
        """Raises UserError if another kind than the gallery's is asked for."""
        if index and index != self.index:
            raise UserError(
                f"--index={index} is for a new gallery, and {self.uri} has "
                f"{self.index}. Leave it out; for another index: reid-jax search check "
                f"--gallery={self.uri} --use={index}"
            )

    def check(self, fingerprint: str, what: str) -> None:
        """Raises UserError for vectors of another network."""
        if fingerprint != self.about.fingerprint:
            raise UserError(
                f"{what} is of another network (fingerprint {fingerprint}) than the "
                f"gallery {self.uri} ({self.about.method}, {self.about.fingerprint}, "
                f"{self.about.model or 'place unknown'}): vectors of two networks "
                "cannot be compared. Make another gallery, or --collection in it"
            )

    def get(
        self, ids: Sequence[str], fields: Sequence[str] = layout.FIELDS
    ) -> list[Row]:
        """Those entries that are there, in no certain order."""
        found: list[Row] = []
        for start in range(0, len(ids), 1000):
            block = list(ids[start : start + 1000])
            with milvus.answered(self.uri):
                # Not the client's `get`, which puts ids into a filter as they are.
                rows = self._client.query(
                    self.name,
                    f"id in [{', '.join(map(milvus.quoted, block))}]",
                    output_fields=list(fields),
                )
            found += [dict(row) for row in rows]
        return found

    def contents(self, ids: Sequence[str]) -> dict[str, str]:
        """Id -> digest of the content, of those that are there."""
        found = self.get(ids, fields=["id", "content"])
        return {row["id"]: row["content"] for row in found}

    def put(self, rows: Sequence[Row]) -> None:
        """Adds entries; one whose id is there is replaced."""
        size = max(1, min(1000, _BLOCK_BYTES // (4 * self.about.numbers)))
        for start in range(0, len(rows), size):
            with milvus.answered(self.uri):
                self._client.upsert(self.name, list(rows[start : start + size]))

    def flush(self) -> None:
        """Ends adding: what is flushed is indexed, and quicker to search."""
        with milvus.answered(self.uri):
            self._client.flush(self.name)

    def nearest(
        self,
        vectors: np.ndarray,
        count: int,
        *,
        where: str = "",
        fields: Sequence[str] = ("id",),
    ) -> list[list[Row]]:
        """The entries of largest cosine, for each of the vectors [Q, D]; best first."""
        count = min(count, MOST)
        params = {
            "HNSW": {"ef": schema.ef(count)},
            "IVF_FLAT": {"nprobe": schema.NPROBE},
        }
        with milvus.answered(self.uri):
            found = self._client.search(
                self.name,
                data=list(vectors),
                anns_field=self._anchor,
                limit=count,
                search_params={"params": params.get(self.index, {})},
                filter=where,
                output_fields=list(fields),
            )
        return [[dict(hit["entity"], id=hit["id"]) for hit in hits] for hits in found]

    def rows(
        self,
        where: str = "",
        *,
        fields: Sequence[str] = layout.FIELDS,
        limit: int = 100,
        offset: int = 0,
    ) -> list[Row]:
        """Entries that a filter lets through, in no certain order."""
        with milvus.answered(self.uri):
            found = self._client.query(
                self.name,
                where or _ALL,
                output_fields=list(fields),
                limit=limit,
                offset=offset,
            )
        return [dict(row) for row in found]

    def blocks(self, fields: Sequence[str]) -> Iterator[list[Row]]:
        """All entries, block by block."""
        with milvus.answered(self.uri):
            iterator = self._client.query_iterator(
                self.name, batch_size=1000, filter=_ALL, output_fields=list(fields)
            )
            while block := iterator.next():
                yield [dict(row) for row in block]
            iterator.close()

    def count(self, where: str = "") -> int:
        """Entries that a filter lets through."""
        with milvus.answered(self.uri):
            found = self._client.query(self.name, where, output_fields=["count(*)"])
        return int(found[0]["count(*)"])

    def delete(self, where: str) -> int:
        """Removes the entries that a filter lets through; gives their number.

        Milvus Lite only stops to find what is deleted, and keeps its bytes. So a file
        is written anew without them; a server does so by itself, in its own time.
        """
        count = self.count(where)
        if not count:
            return 0
        lite = not milvus.is_server(self.uri)
        with milvus.answered(self.uri):
            kept = self._kept() if lite else None  # from here on, `mend` goes on
            self._client.delete(self.name, filter=where)
            self._client.flush(self.name)
            if kept:
                self._fill(kept)
            else:
                self._client.compact(self.name)
        return count

    @contextlib.contextmanager
    def copy(self, blocks: Iterator[list[Row]]) -> Iterator[Gallery]:
        """Another collection with these entries, dropped in the end."""
        name = self.name + _COPY
        _drop(self._client, name)
        other = _create(self._client, self.uri, name, self.about, "FLAT")
        try:
            for rows in blocks:
                other.put(rows)
            other.flush()
            yield other
        finally:
            _drop(self._client, name)

    def reindex(self, index: str) -> None:
        """Replaces the index by one of another kind."""
        with milvus.answered(self.uri):
            rows = self._client.get_collection_stats(self.name)["row_count"]
            self._client.release_collection(self.name)
            if self.index:
                self._client.drop_index(self.name, self._anchor)
            params = self._client.prepare_index_params()
            schema.add_index(params, self._anchor, index, rows=int(rows))
            self._client.create_index(self.name, params)
            self._client.load_collection(self.name)
        self.index = index

    def _kept(self) -> Gallery:
        """The empty collection for what a deletion keeps."""
        name = self.name + _KEPT
        _drop(self._client, name)
        return _create(self._client, self.uri, name, self.about, self.index)

    def _fill(self, kept: Gallery) -> None:
        """Copies all entries, and puts the copy into this one's place."""
        for rows in self.blocks(["*"]):
            kept.put(rows)
        kept.flush()
        self._client.drop_collection(self.name)
        self._client.rename_collection(kept.name, self.name)

    @property
    def _anchor(self) -> str:
        return layout.field(self.about.anchor)


_ALL = 'id != ""'


@contextlib.contextmanager
def existing(uri: str, name: str = COLLECTION) -> Iterator[Gallery]:
    """Opens a gallery.

    Raises:
      UserError: there is none, or see `milvus.connect`.
    """
    with contextlib.closing(milvus.connect(uri)) as client:
        found = _found(client, uri, name)
        if found is None:
            raise milvus.NoGallery(
                f"--gallery={uri} has no collection {name}; there are: "
                f"{', '.join(client.list_collections()) or 'none'}"
            )
        yield found


@contextlib.contextmanager
def made(
    uri: str, about: About, name: str = COLLECTION, *, index: str = ""
) -> Iterator[Gallery]:
    """Opens a gallery, which is made if it is not there.

    Args:
      uri, about, name: of it.
      index: its kind; "" for the one it has, FLAT for a new one.

    Raises:
      UserError: it is of another network, or has another index; or see
        `milvus.connect`.
    """
    if not _NAME.fullmatch(name) or name.endswith((_KEPT, _COPY)):
        raise UserError(
            f"--collection={name}: use letters, digits and _ alone, and neither "
            f"{_KEPT} nor {_COPY} at the end"
        )
    with contextlib.closing(milvus.connect(uri, new=True)) as client:
        found = _found(client, uri, name)
        if found is None:
            found = _create(client, uri, name, about, index or "FLAT")
        found.check_index(index)
        found.check(about.fingerprint, "what is added")
        yield found


def _found(client: MilvusClient, uri: str, name: str) -> Gallery | None:
    with milvus.answered(uri):
        if not client.has_collection(name):
            if milvus.is_server(uri) or not client.has_collection(name + _KEPT):
                return None
            # A deletion was killed between its last two steps.
            client.rename_collection(name + _KEPT, name)
        found = Gallery(client, uri, name)
        found.mend()
        found.load()
    return found


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def _drop(client: MilvusClient, name: str) -> None:
    if client.has_collection(name):
        client.drop_collection(name)


def _create(
    client: MilvusClient, uri: str, name: str, about: About, index: str
) -> Gallery:
    with milvus.answered(uri):
        params = client.prepare_index_params()
        for array, (_, shape) in about.arrays.items():
            if array == about.anchor or layout.is_vector(shape):
                kind = index if array == about.anchor else "FLAT"
                schema.add_index(params, layout.field(array), kind)
        client.create_collection(
            name,
            schema=schema.schema(client, about),
            index_params=params,
            properties={_PROPERTY: about.text()},
            consistency_level="Strong",  # what was added or deleted is seen at once
        )
    return Gallery(client, uri, name)
