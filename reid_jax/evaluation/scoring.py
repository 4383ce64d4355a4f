"""Figures and ranking lists of one protocol."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from data_pipelines.protocols import Protocol
from data_pipelines.records import Records
from reid_jax.retrieval.labels import Labels
from reid_jax.retrieval.lists import top_matches
from reid_jax.retrieval.ranking import Ranker
from reid_jax.retrieval.single_shot import SingleShotRanker

PICTURED_QUERIES = 10
PICTURED_RANKS = 10


@dataclasses.dataclass(frozen=True)
class Examples:
    """Pairs to draw.

    Attributes:
      rows: int [Q], the queries.
      gallery: int [Q, K], the candidates; 0 where there is none.
      ranks: int [Q, K], their places in the lists, from 1 on; 0 where there is none.
    """

    rows: np.ndarray
    gallery: np.ndarray
    ranks: np.ndarray


class Ranking:
    """Metrics and ranking lists of one protocol, block by block.

    Attributes:
      lists: query -> int [k], its nearest gallery images, -1 where there is none; of
        some queries. They show the whole gallery, whatever a single-shot protocol draws
        from it.
    """

    def __init__(self, protocol: Protocol, query: Records, gallery: Records):
        self._protocol = protocol
        self._query, self._gallery = query, gallery
        self._labels = [Labels(r.person, r.camera) for r in (query, gallery)]
        self._ranker = _ranker(protocol, *self._labels)
        valid = np.flatnonzero(query.person > 0)
        self._pictured = spread(valid, PICTURED_QUERIES)
        self.lists: dict[int, np.ndarray] = {}

    def update(self, rows: np.ndarray, keys: jax.Array | np.ndarray) -> None:
        """Takes keys [>= q, G] of the queries `rows` [q]."""
        self._ranker.update(int(rows[0]), keys)
        shown = np.intersect1d(rows, self._pictured)
        if len(shown):
            nearest = top_matches(
                np.asarray(keys)[shown - rows[0]],
                shown,
                *self._labels,
                k=PICTURED_RANKS,
                camera_filter=self._protocol.camera_filter,
            )
            self.lists |= dict(zip(shown.tolist(), nearest, strict=True))

    def figures(self) -> dict[str, Any]:
        """Metrics as fractions, and how many queries they are the mean of."""
        result = self._ranker.result()
        valid, published = result.valid_queries, self._protocol.valid_queries
        figures = {
            "metrics": result.metrics(self._protocol.ranks),
            "valid_queries": valid,
        }
        if published not in (None, valid):
            figures["note"] = (
                f"the published {self._protocol.dataset} has {published} valid "
                "queries: these figures are not comparable with published ones"
            )
        return figures

    def examples(self, queries: int, candidates: int) -> Examples:
        """Some pictured queries, each with the first images of its list.

        Where these are all wrong, the last of them gives way to the first right one
        of the list, if there is one.
        """
        rows = spread(np.array(sorted(self.lists)), queries)
        nearest = np.stack([self.lists[row] for row in rows])
        persons = self._gallery.person[nearest]
        right = (nearest >= 0) & (persons == self._query.person[rows][:, None])
        places = np.tile(np.arange(candidates), (len(rows), 1))
        # The first right place, or 0 where there is none.
        places[:, -1] = np.maximum(places[:, -1], right.argmax(axis=1))
        chosen = np.take_along_axis(nearest, places, axis=1)
        ranks = np.where(chosen >= 0, places + 1, 0)
        return Examples(rows, np.maximum(chosen, 0), ranks)


def _ranker(
    protocol: Protocol, query: Labels, gallery: Labels
) -> Ranker | SingleShotRanker:
    chosen = {"camera_filter": protocol.camera_filter, "ap": protocol.ap}
    if not protocol.single_shot:
        return Ranker(query, gallery, **chosen)
    # Pair models score pairs once, over the whole gallery; each draw ranks its share.
    return SingleShotRanker(
        query, gallery, repeats=protocol.repeats, seed=protocol.seed, **chosen
    )


def spread(values: np.ndarray, count: int) -> np.ndarray:
    """`count` values from first to last, evenly; the same ones in every evaluation."""
    places = np.linspace(0, len(values) - 1, min(count, len(values)))
    return values[places.round().astype(int)]
