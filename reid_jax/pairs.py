"""Re-scoring of query-gallery pairs for methods that compare two images together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.models.method import PairScorer, Variables
from reid_jax.retrieval.rescoring import MapStore, candidates


class PairRescorer:
    """Turns blocks of distances into ranking keys by scoring pairs of maps.

    Candidates' maps come from a bounded store, query maps are computed as their block
    comes, and one query is scored against `pair_block` candidates at a time: nothing
    of size gallery x map is held in memory.

    Args:
      scorer: of the method.
      variables: on one device.
      query_maps: maps of query rows, int [n] -> pytree with leading axis n.
      gallery_maps: bounded store of the gallery's maps.
      pair_block: candidates per call of the network.
    """

    def __init__(
        self,
        scorer: PairScorer,
        variables: Variables,
        *,
        query_maps: Callable[[np.ndarray], Any],
        gallery_maps: MapStore,
        pair_block: int,
    ):
        self._scorer = scorer
        self._variables = variables
        self._query_maps = query_maps
        self._gallery_maps = gallery_maps
        self._block = pair_block
        self._score = jax.jit(scorer.score_pairs)
        self._fuse = jax.jit(scorer.fuse)

    def keys(self, rows: np.ndarray, distances: jax.Array) -> np.ndarray:
        """Ranking keys [q, G] of the queries `rows` [q] from distances [q, G]."""
        gallery_size = distances.shape[1]
        k = min(self._scorer.top_k or gallery_size, gallery_size)
        chosen = candidates(distances, k)
        maps = self._query_maps(rows)
        scores = np.stack(
            [
                self._score_query(jax.tree.map(lambda m, i=i: m[i : i + 1], maps), row)
                for i, row in enumerate(chosen)
            ]
        )
        return np.asarray(self._fuse(jnp.asarray(distances), chosen, scores))

    def _score_query(self, query_map: Any, chosen: np.ndarray) -> np.ndarray:
        """Scores [K] of one query's maps [1, ...] with its candidates [K]."""
        scores = []
        for start in range(0, len(chosen), self._block):
            indices = chosen[start : start + self._block]
            # The last block is filled up, so that every call has one shape.
            filled = np.resize(indices, self._block)
            maps = jax.tree.map(lambda m: m[None], self._gallery_maps.fetch(filled))
            block = self._score(self._variables, query_map, maps)
            scores.append(np.asarray(block)[0, : len(indices)])
        return np.concatenate(scores)
