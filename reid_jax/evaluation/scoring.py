"""Figures and ranking lists of one protocol."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from data_pipelines.protocols import Protocol
from data_pipelines.records import Records
from reid_jax.evaluation.lists import Chosen, Lists
from reid_jax.retrieval.labels import Labels
from reid_jax.retrieval.ranking import QueryScores, Ranker
from reid_jax.retrieval.single_shot import SingleShotRanker


class Ranking:
    """Metrics and ranking lists of one protocol, block by block.

    Args:
      protocol: what is reported.
      query, gallery: the splits.
      pictured: queries whose lists are kept; None keeps none.

    Attributes:
      lists: of some queries, if any are kept; they show the whole gallery, whatever a
        single-shot protocol draws from it.

    Raises:
      UserError: no query has a match, or a pictured one is not there.
    """

    def __init__(
        self,
        protocol: Protocol,
        query: Records,
        gallery: Records,
        pictured: Chosen | None = None,
    ):
        self._protocol = protocol
        labels = (Labels(r.person, r.camera) for r in (query, gallery))
        self._ranker = _ranker(protocol, *labels)
        self.lists = None
        if pictured is not None:
            self.lists = Lists(
                query, gallery, camera_filter=protocol.camera_filter, chosen=pictured
            )

    def update(self, rows: np.ndarray, keys: jax.Array | np.ndarray) -> None:
        """Takes keys [>= q, G] of the queries `rows` [q]."""
        self._ranker.update(rows, keys)
        if self.lists:
            self.lists.update(rows, keys)

    def scores(self, rows: np.ndarray) -> QueryScores:
        """What the queries `rows` [n] scored, once they were taken."""
        return self._ranker.scores(rows)

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
