"""Asking a gallery: candidates from the engine, distances by the method."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from reid_jax.errors import UserError
from reid_jax.retrieval.lists import smallest
from reid_jax.search import gallery as galleries
from reid_jax.search import layout, milvus
from reid_jax.search.gallery import Gallery
from reid_jax.search.layout import Embedding, Row

Distance = Callable[[Embedding, Embedding], np.ndarray]
"""Of the method: two Embeddings to float [Q, G]; smaller is more alike."""

CANDIDATES = 100
_BLOCK, _BLOCK_BYTES = 64, 32 << 20


@dataclasses.dataclass(frozen=True)
class Asked:
    """A query.

    Attributes:
      name: of its image, such as the path.
      embedding: of this image alone, leading axis 1.
      id: of its own entry, which is left out of the answer; "" if it has none.
      camera, person: where they are known.
    """

    name: str
    embedding: Embedding
    id: str = ""
    camera: str | None = None
    person: str | None = None


@dataclasses.dataclass(frozen=True)
class Options:
    """How to answer.

    Attributes:
      top: images of an answer.
      where: a filter in Milvus' own words, such as `camera == "3"`; "" for none.
      other_cameras: leaves out what the query's own camera took.
      candidates: so many, or `top` if that is more, are found by cosine and compared
        by the method.
    """

    top: int = 10
    where: str = ""
    other_cameras: bool = False
    candidates: int = CANDIDATES

    def __post_init__(self) -> None:
        if not 1 <= self.top < galleries.MOST:
            raise UserError(f"--top={self.top} is not in 1..{galleries.MOST - 1}")

    @property
    def found(self) -> int:
        """Entries to ask the engine for: one may be the query's own."""
        return min(max(self.top, self.candidates) + 1, galleries.MOST)


@dataclasses.dataclass(frozen=True)
class Hit:
    """One image of an answer, and how far it is from the query."""

    distance: float
    facts: Mapping[str, Any]


def answers(
    gallery: Gallery, distance: Distance, asked: Sequence[Asked], options: Options
) -> list[list[Hit]]:
    """The nearest entries of each query, nearest first.

    Raises:
      UserError: a query without a camera where that is needed, a filter that the engine
        does not understand, or no network's arrays.
    """
    lists: dict[int, list[Hit]] = {}
    for where, places in _groups(gallery, asked, options):
        vectors = np.concatenate(
            [layout.anchors(gallery.about, asked[i].embedding) for i in places]
        )
        found = gallery.nearest(vectors, options.found, where=where, fields=["*"])
        for i, rows in zip(places, found, strict=True):
            lists[i] = _compared(gallery, distance, asked[i], rows, options)
    return [lists[i] for i in range(len(asked))]


def _groups(
    gallery: Gallery, asked: Sequence[Asked], options: Options
) -> Iterator[tuple[str, list[int]]]:
    """Queries that share a filter, as many as one answer of the engine may hold."""
    by_filter = collections.defaultdict(list)
    for i, one in enumerate(asked):
        gallery.about.check(one.embedding, one.name)
        by_filter[_filter(one, options)].append(i)
    most = _BLOCK_BYTES // (4 * gallery.about.numbers * options.found)
    size = max(1, min(_BLOCK, most))
    for where, places in by_filter.items():
        for start in range(0, len(places), size):
            yield where, places[start : start + size]


def _filter(asked: Asked, options: Options) -> str:
    parts = [f"({options.where})"] if options.where.strip() else []
    if options.other_cameras:
        if not asked.camera:
            raise UserError(
                f"the camera of {asked.name} is not known, which --other_cameras "
                "leaves out; say it with --camera=NAME"
            )
        # Nothing compares with what is missing: such images would be lost.
        parts.append(f"(camera is null or camera != {milvus.quoted(asked.camera)})")
    return " and ".join(parts)


def _compared(
    gallery: Gallery,
    distance: Distance,
    asked: Asked,
    rows: Sequence[Row],
    options: Options,
) -> list[Hit]:
    rows = [row for row in rows if row["id"] != asked.id]
    if not rows:
        return []
    stored = layout.decoded(gallery.about, rows)
    # Repeated rows fill it up: one shape, one compilation.
    filled = np.resize(np.arange(len(rows)), options.found)
    candidates = {name: array[filled] for name, array in stored.items()}
    distances = np.asarray(distance(asked.embedding, candidates))[0, : len(rows)]
    hidden = {layout.field(name) for name in gallery.about.arrays}
    return [
        Hit(
            float(distances[i]),
            {k: layout.kept(v) for k, v in rows[i].items() if k not in hidden},
        )
        for i in smallest(distances, options.top)
    ]
