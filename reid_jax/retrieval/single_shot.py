"""Ranking against one random gallery image per identity, averaged over many draws.

The older tables of the partial sets are made so (single-shot). The embeddings and
distances are those of the whole gallery, computed once; only ranks are counted anew
for every draw.
"""

import jax
import numpy as np

from reid_jax.errors import UserError
from reid_jax.retrieval.labels import Labels, MatchIndex, why_no_match
from reid_jax.retrieval.ranking import (
    QueryScores,
    RankingResult,
    check_ap,
    check_defined,
)


class SingleShotRanker:
    """Like `ranking.Ranker`, over galleries of one image per identity.

    Every draw orders the gallery at random; each identity is represented by its first
    image in that order which counts for the query (so that the camera filter never
    leaves a query without its match where there is one). Distractors (person 0) have
    no identity and all stay.

    Args:
      query, gallery: labels of the two sets.
      repeats: how many galleries are drawn.
      seed: of the draws; they depend on nothing else but the gallery's size.
      camera_filter, ap, max_rank: as for `ranking.Ranker`.

    Raises:
      UserError: no query has a match, with the reasons counted, or `ap` is unknown.
    """

    def __init__(
        self,
        query: Labels,
        gallery: Labels,
        *,
        repeats: int,
        seed: int,
        camera_filter: bool,
        ap: str = "rectangle",
        max_rank: int = 50,
    ) -> None:
        check_ap(ap)
        self._query, self._gallery = query, gallery
        self._ap, self._max_rank = ap, max_rank
        index = MatchIndex(query, gallery, camera_filter=camera_filter)
        self._matches = [index.matches(row) for row in range(len(query))]
        self._valid = np.array([len(match) > 0 for match in self._matches], bool)
        if not self._valid.any():
            raise UserError(why_no_match(query, gallery))
        rng = np.random.default_rng(seed)
        self._order = np.stack([rng.permutation(len(gallery)) for _ in range(repeats)])
        self._persons, self._drawn = _draw(gallery.person, self._order)
        self._ranks = np.full((len(query), repeats), -1, np.int32)

    def update(self, rows: np.ndarray, keys: np.ndarray | jax.Array) -> None:
        """Scores the queries `rows` [q] in every drawn gallery.

        Args:
          rows: int.
          keys: float [>= q, G], smaller is more alike, G the whole gallery. Rows beyond
            q are padding and ignored.

        Raises:
          UserError: a distance is NaN.
        """
        keys = np.asarray(keys)[: len(rows)]
        check_defined(rows, np.isnan(keys).any(axis=1))
        for values, row in zip(keys, rows, strict=True):
            if self._valid[row]:
                self._ranks[row] = self._ranks_of_match(values, row)

    def result(self) -> RankingResult:
        """Means over the draws and the valid queries, once every query was scored."""
        ranks = self._ranks[self._valid]
        if (ranks < 0).any():
            missing = np.flatnonzero(self._valid & (self._ranks[:, 0] < 0))
            raise ValueError(
                f"{len(missing)} of {len(self._query)} queries were never scored, "
                f"first query {missing[0]}"
            )
        found = np.bincount(ranks.ravel(), minlength=self._max_rank)
        return RankingResult(
            cmc=np.cumsum(found[: self._max_rank]) / ranks.size,
            mAP=float(self._precision(ranks).mean()),
            mINP=float((1 / (ranks + 1.0)).mean()),
            valid_queries=int(self._valid.sum()),
        )

    def scores(self, rows: np.ndarray) -> QueryScores:
        """What the queries `rows` [n] scored, means over the draws, once they were."""
        ranks = self._ranks[rows]
        return QueryScores(
            self._valid[rows],
            self._precision(ranks).mean(axis=1),
            ranks.mean(axis=1) + 1,
        )

    def _precision(self, ranks: np.ndarray) -> np.ndarray:
        """Average precision of one match, by its 0-based rank.

        It is one over its place, and so is the inverse penalty.
        """
        inverse = 1 / np.maximum(ranks + 1.0, 1)
        if self._ap == "rectangle":
            return inverse
        return (inverse + (ranks <= 0)) / 2

    def _ranks_of_match(self, values: np.ndarray, row: int) -> np.ndarray:
        """0-based ranks [R] of the query's match from its distances [G]."""
        matches = self._matches[row]
        own = matches[_first(self._order[:, matches])][:, None]
        rivals = self._drawn.copy()
        # What was drawn for the query's person may be dropped by its camera filter.
        rivals[:, np.searchsorted(self._persons, self._query.person[row])] = own[:, 0]
        key, others = values[own], values[rivals]
        ahead = (others < key) | ((others == key) & (rivals < own))
        return ahead.sum(axis=1)


def _first(order: np.ndarray) -> np.ndarray:
    """Column [R] of the smallest entry of each draw [R, n]."""
    return order.argmin(axis=1)


def _draw(person: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Identities [I], ascending, and the gallery images [R, I + D] of every draw.

    The D distractors come last and are the same in every draw.
    """
    persons = np.unique(person[person > 0])
    groups = [np.flatnonzero(person == p) for p in persons]
    chosen = [group[_first(order[:, group])] for group in groups]
    distractors = np.flatnonzero(person == 0)
    always = np.broadcast_to(distractors, (len(order), len(distractors)))
    return persons, np.concatenate([np.stack(chosen, axis=1), always], axis=1)
