"""Speed and recall of each kind of index, measured on a gallery's own vectors."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np

from reid_jax.errors import UserError
from reid_jax.search import layout
from reid_jax.search.gallery import Gallery
from reid_jax.search.layout import Row


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one kind of index did.

    Attributes:
      index: its kind.
      build: seconds to copy the entries and to build it.
      median, slow: milliseconds of a single query, the middle one and that which 5 %
        are slower than.
      recall: share of the `top` nearest, by exact search, that it found.
    """

    index: str
    build: float
    median: float
    slow: float
    recall: float

    def __str__(self) -> str:
        return (
            f"{self.index:9} {self.build:8.1f} {self.median:10.1f} {self.slow:10.1f} "
            f"{100 * self.recall:9.1f} %"
        )


HEADER = f"{'index':9} {'build s':>8} {'median ms':>10} {'95 % ms':>10} {'recall':>11}"


def measure(
    gallery: Gallery, kinds: Sequence[str], *, top: int, queries: int, most: int
) -> Iterator[Measured]:
    """Builds each index over a copy of the entries and asks it.

    The copies stand beside the gallery while they are measured. Queries are vectors of
    entries; exact search is a product in NumPy.

    Args:
      gallery: at least one entry.
      kinds: of `gallery.INDEXES`.
      top: nearest ones that are asked for.
      queries: how many vectors.
      most: entries to copy at most.

    Raises:
      UserError: the gallery is empty.
    """
    name = layout.field(gallery.about.anchor)
    ids, vectors = _vectors(gallery, name, most)
    if not ids:
        raise UserError(f"the gallery {gallery.uri} is empty: nothing to measure")
    top = min(top, len(ids))
    chosen = np.random.default_rng(0).choice(len(ids), min(queries, len(ids)), False)
    truth = _exact(vectors, vectors[chosen], top)
    exact = [{ids[i] for i in row} for row in truth]
    for kind in kinds:
        print(f"building {kind} ...", file=sys.stderr, flush=True)
        begin = time.monotonic()
        blocks = _limited(gallery, most)
        with gallery.copy(kind, blocks) as copy:
            build = time.monotonic() - begin
            copy.nearest(vectors[chosen[:1]], top)  # reads the index
            seconds, found = zip(
                *(_ask(copy, vectors[i], top) for i in chosen), strict=True
            )
        hits = sum(len(a & b) for a, b in zip(exact, found, strict=True))
        yield Measured(
            index=kind,
            build=build,
            median=1e3 * float(np.median(seconds)),
            slow=1e3 * float(np.quantile(seconds, 0.95)),
            recall=hits / (top * len(chosen)),
        )


def _ask(gallery: Gallery, vector: np.ndarray, top: int) -> tuple[float, set[str]]:
    begin = time.monotonic()
    found = gallery.nearest(vector[None], top)[0]
    return time.monotonic() - begin, {row["id"] for row in found}


def _limited(gallery: Gallery, most: int) -> Iterator[list[Row]]:
    left = most
    for block in gallery.blocks(["*"]):
        yield block[:left]
        left -= len(block)
        if left <= 0:
            return


def _vectors(gallery: Gallery, name: str, most: int) -> tuple[list[str], np.ndarray]:
    blocks = gallery.blocks(["id", name])
    rows = ((r["id"], np.float32(r[name])) for block in blocks for r in block)
    ids, vectors = [], []
    for key, vector in itertools.islice(rows, most):
        ids.append(key)
        vectors.append(vector)
    return ids, np.stack(vectors) if ids else np.zeros((0, 1), np.float32)


def _exact(vectors: np.ndarray, queries: np.ndarray, top: int) -> np.ndarray:
    """Places [Q, top] of the vectors of largest cosine, in no certain order."""
    lengths = np.linalg.norm(vectors, axis=1)
    cosine = queries @ vectors.T / np.maximum(lengths, 1e-12)
    return np.argpartition(-cosine, top - 1, axis=1)[:, :top]
