"""Re-scoring of query-gallery pairs for methods that compare two images together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.models.method import PairScorer, Variables
from reid_jax.retrieval.rescoring import MapStore, candidates
from reid_jax.runtime.ahead import one_ahead


class PairNetwork:
    """A scorer's functions, to be compiled once for all evaluations.

    Attributes:
      scorer: of the method.
      pair_maps: (variables, images, inputs by name) -> maps.
      score: (variables, maps of Q queries, n, maps of K images) -> float32 [Q, K],
        zeros but for the first n queries: `scores`, with n as an argument.
      fuse: as `PairScorer.fuse`.
    """

    def __init__(self, scorer: PairScorer):
        self.scorer = scorer
        self.pair_maps = jax.jit(self._pair_maps)
        self.score = jax.jit(self.scores)
        self.fuse = jax.jit(scorer.fuse)

    def _pair_maps(
        self, variables: Variables, images: jax.Array, rest: dict[str, jax.Array]
    ) -> Any:
        return self.scorer.pair_maps(variables, images, **rest)

    def scores(
        self, variables: Variables, query_maps: Any, count: jax.Array | int, maps: Any
    ) -> jax.Array:
        """What `score` compiles; a `count` that is known is a loop of known length."""
        # One query after the other: no more than K pairs are in memory.
        candidate_maps = jax.tree.map(lambda m: m[None], maps)

        def score(i: jax.Array, scores: jax.Array) -> jax.Array:
            query = jax.tree.map(
                lambda m: jax.lax.dynamic_slice_in_dim(m, i, 1), query_maps
            )
            row = self.scorer.score_pairs(variables, query, candidate_maps)
            return scores.at[i].set(row[0].astype(scores.dtype))

        size = tuple(len(jax.tree.leaves(tree)[0]) for tree in (query_maps, maps))
        return jax.lax.fori_loop(0, count, score, jnp.zeros(size, jnp.float32))


class PairRescorer:
    """Turns blocks of distances into ranking keys by scoring pairs of maps.

    Maps of a block of queries are computed as it comes. Of the gallery, a bounded
    store gives `pair_block` maps at a time: a query's candidates where the scorer has
    a `top_k`; otherwise the whole gallery in turn, each block of it once for all of
    the queries. Nothing of size gallery x map is held in memory, and the network is
    compiled for one shape.

    Args:
      network: of the method.
      variables: on one device.
      query_maps: maps of query rows, int [n] -> pytree with leading axis n.
      gallery_maps: bounded store of the gallery's maps.
      pair_block: candidates per call of the network, at most.
      progress: is told how many further pairs were scored.
    """

    def __init__(
        self,
        network: PairNetwork,
        variables: Variables,
        *,
        query_maps: Callable[[np.ndarray], Any],
        gallery_maps: MapStore,
        pair_block: int,
        progress: Callable[[int], object] = lambda count: None,
    ):
        self._network = network
        self._variables = variables
        self._query_maps = query_maps
        self._gallery_maps = gallery_maps
        # More than its candidates would only be filled up for every query.
        self._block = min(pair_block, network.scorer.top_k or pair_block)
        self._progress = progress
        self._backwards = False

    def keys(self, rows: np.ndarray, distances: jax.Array) -> jax.Array:
        """Ranking keys [block, G] of a block of queries.

        Args:
          rows: int [q], the queries.
          distances: [block, G]; rows beyond q repeat the first ones.

        Returns:
          the keys; rows beyond q repeat the first ones.
        """
        top_k = self._network.scorer.top_k
        if top_k is None:
            gallery = np.arange(distances.shape[1], dtype=np.int32)
            chosen = np.broadcast_to(gallery, distances.shape)
            scores = self._score_all(rows, gallery, block=len(distances))
        else:
            chosen = candidates(distances, top_k)
            scores = self._score_chosen(rows, chosen[: len(rows)])
        scores = _fill(scores, len(distances))
        return self._network.fuse(distances, chosen, scores)

    def _score_chosen(self, rows: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """Scores [q, K] of each query with its candidates [q, K]."""
        maps = self._query_maps(rows)
        scores = np.empty(chosen.shape, np.float32)

        def started() -> Iterator[tuple[int, slice, jax.Array]]:
            for i, indices in enumerate(chosen):
                query = jax.tree.map(lambda m, i=i: m[i : i + 1], maps)
                for part in self._parts(len(indices)):
                    fetched = self._fetch(indices[part])
                    yield i, part, self._score(query, 1, fetched)

        for i, part, block in one_ahead(started()):
            size = part.stop - part.start
            scores[i, part] = np.asarray(block)[0, :size]
            self._progress(size)
        return scores

    def _score_all(
        self, rows: np.ndarray, gallery: np.ndarray, *, block: int
    ) -> np.ndarray:
        """Scores [q, G] of the queries with the whole gallery."""
        maps = jax.tree.map(lambda m: _fill(m, block), self._query_maps(rows))
        maps = jax.device_put(maps)
        scores = np.empty((len(rows), len(gallery)), np.float32)
        # To and fro: what the store read last, it still has.
        order = -1 if self._backwards else 1
        self._backwards = not self._backwards
        started = (
            (part, self._score(maps, len(rows), self._fetch(gallery[part])))
            for part in list(self._parts(len(gallery)))[::order]
        )
        for part, block in one_ahead(started):
            size = part.stop - part.start
            scores[:, part] = np.asarray(block)[: len(rows), :size]
            self._progress(len(rows) * size)
        return scores

    def _score(self, query_maps: Any, count: int, maps: Any) -> jax.Array:
        """Starts to score; the device computes while the next maps are fetched."""
        return self._network.score(self._variables, query_maps, count, maps)

    def _parts(self, size: int) -> Iterator[slice]:
        """`pair_block` places at a time."""
        for start in range(0, size, self._block):
            yield slice(start, min(start + self._block, size))

    def _fetch(self, indices: np.ndarray) -> Any:
        """Maps of gallery images, filled up so that all blocks have one shape."""
        return jax.device_put(self._gallery_maps.fetch(_fill(indices, self._block)))


def _fill(rows: np.ndarray, size: int) -> np.ndarray:
    """`size` rows: those there are, again and again."""
    return rows if len(rows) == size else rows[np.arange(size) % len(rows)]
