"""Speed and recall of each kind of index, measured on a gallery's own vectors."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence

import numpy as np

from reid_jax.errors import UserError
from reid_jax.search import gallery as galleries
from reid_jax.search import layout
from reid_jax.search.gallery import Gallery
from reid_jax.search.layout import Row


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one kind of index did.

    Attributes:
      index: its kind.
      build: seconds to build it.
      seconds: of each query, asked alone.
      recall: share of the nearest, by exact search, that it found.
    """

    index: str
    build: float
    seconds: Sequence[float]
    recall: float

    def __str__(self) -> str:
        median, slow = (1e3 * np.quantile(self.seconds, q) for q in (0.5, 0.95))
        return (
            f"{self.index:9} {self.build:8.1f} {median:10.1f} {slow:10.1f} "
            f"{100 * self.recall:9.1f} %"
        )


HEADER = f"{'index':9} {'build s':>8} {'median ms':>10} {'95 % ms':>10} {'recall':>11}"


def measure(
    gallery: Gallery, kinds: Sequence[str], *, top: int, queries: int, most: int
) -> Iterator[Measured]:
    """Builds each index over a copy of the entries and asks it.

    The copy stands beside the gallery meanwhile. Queries are vectors of entries; exact
    search is a product in NumPy.

    Args:
      gallery: at least one entry.
      kinds: of `schema.INDEXES`.
      top: nearest ones that are asked for.
      queries: how many vectors.
      most: entries to copy at most.

    Raises:
      UserError: the gallery is empty, or a number is out of range.
    """
    for name, number in {"top": top, "queries": queries, "most": most}.items():
        if number < 1:
            raise UserError(f"--{name}={number}: give 1 or more")
    if top > galleries.MOST:
        raise UserError(f"--top={top}: Milvus gives {galleries.MOST} at most")
    ids, vectors = _vectors(gallery, most)
    if not ids:
        raise UserError(f"the gallery {gallery.uri} is empty: nothing to measure")
    chosen = np.random.default_rng(0).choice(len(ids), min(queries, len(ids)), False)
    with gallery.copy(_limited(gallery, most)) as copy:
        for kind in kinds:
            yield of_index(copy, kind, ids, vectors, chosen, top=min(top, len(ids)))


def of_index(
    gallery: Gallery,
    kind: str,
    ids: Sequence[str],
    vectors: np.ndarray,
    chosen: np.ndarray,
    *,
    top: int,
) -> Measured:
    """Gives a gallery another index and asks it.

    Args:
      gallery: it.
      kind: of `schema.INDEXES`.
      ids, vectors: of all its entries.
      chosen: places of those that are queries.
      top: nearest ones that are asked for.
    """
    begin = time.monotonic()
    gallery.reindex(kind)
    build = time.monotonic() - begin
    seconds, found = asked(gallery, vectors[chosen], top)
    truth = exact(vectors, vectors[chosen], top)
    hits = sum(len({ids[i] for i in a} & b) for a, b in zip(truth, found, strict=True))
    return Measured(kind, build, seconds, hits / truth.size)


def asked(
    gallery: Gallery,
    queries: np.ndarray,
    top: int,
    *,
    where: str = "",
    fields: Sequence[str] = ("id",),
) -> tuple[list[float], list[set[str]]]:
    """Seconds of each query, asked alone, and the ids that it found."""
    gallery.nearest(queries[:1], top, where=where)  # reads the index
    seconds, found = [], []
    for query in queries:
        begin = time.monotonic()
        rows = gallery.nearest(query[None], top, where=where, fields=fields)[0]
        seconds.append(time.monotonic() - begin)
        found.append({row["id"] for row in rows})
    return seconds, found


def exact(vectors: np.ndarray, queries: np.ndarray, top: int) -> np.ndarray:
    """Places [Q, top] of the vectors of largest cosine, in no certain order."""
    lengths = np.linalg.norm(vectors, axis=1)
    cosine = queries @ vectors.T / np.maximum(lengths, 1e-12)
    return np.argpartition(-cosine, top - 1, axis=1)[:, :top]


def _limited(gallery: Gallery, most: int) -> Iterator[list[Row]]:
    left = most
    for block in gallery.blocks(["*"]):
        yield block[:left]
        left -= len(block)
        if left <= 0:
            return


def _vectors(gallery: Gallery, most: int) -> tuple[list[str], np.ndarray]:
    name = layout.field(gallery.about.anchor)
    blocks = gallery.blocks(["id", name])
    rows = ((r["id"], np.float32(r[name])) for block in blocks for r in block)
    found = list(itertools.islice(rows, most))
    vectors = np.stack([v for _, v in found]) if found else np.zeros((0, 1), np.float32)
    return [key for key, _ in found], vectors
