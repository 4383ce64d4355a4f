"""CMC, mAP and mINP by the protocol of Market-1501, counted without sorting indices.

Every measure needs only the ranks of a query's matches, and a rank is a count: the
number of gallery images that are nearer, plus those equally near that stand earlier
in the gallery. So a network that maps all images to one point does not score, and the
memory is that of one block of query rows, however large the gallery is.

Sources: Zheng et al., "Scalable Person Re-identification: A Benchmark", ICCV 2015 (the
protocol, CMC, mAP); Ye et al., "Deep Learning for Person Re-identification: A Survey
and Outlook", TPAMI 2021, section 4.1 (mINP).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.errors import UserError
from reid_jax.retrieval.labels import Labels, MatchIndex, why_no_match

_PADDING = np.iinfo(np.int32).max
"""Stands behind every rank in rows of unequal numbers of matches."""

APS = ("rectangle", "trapezoid")
"""Names of average precisions."""


@dataclasses.dataclass(frozen=True)
class RankingResult:
    """What a ranking scored; all figures are fractions, means over valid queries.

    Attributes:
      cmc: float64 [max_rank]; cmc[k - 1] is the share of queries that have a match
        among their k nearest. A gallery shorter than k repeats the last value.
      mAP: mean average precision.
      mINP: mean inverse negative penalty, number of matches / rank of the last one.
      valid_queries: queries with at least one match in the gallery.
    """

    cmc: np.ndarray
    mAP: float
    mINP: float
    valid_queries: int

    def metrics(self, ranks: Iterable[int] = (1, 5, 10)) -> dict[str, float]:
        """Returns `rank<k>` for each k of `ranks`, `mAP` and `mINP`."""
        ranks = tuple(ranks)
        unknown = [rank for rank in ranks if not 1 <= rank <= len(self.cmc)]
        if unknown:
            raise UserError(
                f"ranks {unknown} are outside 1..{len(self.cmc)}, the ranks that were "
                "counted; report other ranks or raise max_rank"
            )
        named = {f"rank{rank}": float(self.cmc[rank - 1]) for rank in ranks}
        return {**named, "mAP": self.mAP, "mINP": self.mINP}


@dataclasses.dataclass(frozen=True)
class QueryScores:
    """What single queries scored.

    Attributes:
      valid: bool [n], whether a query has a match in the gallery; figures of others
        mean nothing.
      average_precision: float64 [n], in [0, 1].
      first: float64 [n], rank of the first match, from 1 on; where galleries are drawn,
        its mean over the draws.
    """

    valid: np.ndarray
    average_precision: np.ndarray
    first: np.ndarray


class Ranker:
    """Scores blocks of query rows as they come and sums them up in the end.

    The result does not depend on how the queries are cut into blocks, nor on where the
    blocks were computed: a jax array on an accelerator is counted there, all else in
    NumPy, and both give the same integers.

    Args:
      query, gallery: labels of the two sets.
      camera_filter: drop the gallery images that show the query's person through the
        query's camera. False where cameras are unknown or all the same.
      ap: "rectangle" (mean of the precision at each match; every table since about
        2018) or "trapezoid" (precision averaged with that just before the match; the
        first evaluation code of Market-1501, usually 0.5 to 1 point lower).
      max_rank: length of the CMC.

    Raises:
      UserError: no query has a match, with the reasons counted, or `ap` is unknown.
    """

    def __init__(
        self,
        query: Labels,
        gallery: Labels,
        *,
        camera_filter: bool,
        ap: str = "rectangle",
        max_rank: int = 50,
    ) -> None:
        check_ap(ap)
        self._query, self._gallery = query, gallery
        self._camera_filter, self._ap, self._max_rank = camera_filter, ap, max_rank
        self._index = MatchIndex(query, gallery, camera_filter=camera_filter)
        self._matches = [self._index.matches(row) for row in range(len(query))]
        self._counts = np.array([len(match) for match in self._matches], np.int32)
        if not self._counts.any():
            raise UserError(why_no_match(query, gallery))
        self._seen = np.zeros(len(query), bool)
        self._first = np.zeros(len(query), np.int32)
        self._average_precision = np.zeros(len(query))
        self._inverse_penalty = np.zeros(len(query))

    def update(self, rows: np.ndarray, keys: np.ndarray | jax.Array) -> None:
        """Scores the queries `rows` [q]; scoring one again replaces its score.

        Args:
          rows: int.
          keys: float [>= q, G], smaller is more alike. Rows beyond q are padding and
            ignored.

        Raises:
          UserError: a distance is NaN.
        """
        if keys.ndim != 2 or keys.shape[1] != len(self._gallery):
            raise ValueError(
                f"keys of shape {keys.shape} do not fit {len(self._gallery)} gallery "
                "images; expected [q, G]"
            )
        count_ranks = self._ranks_device if on_accelerator(keys) else self._ranks_host
        ranks, undefined = count_ranks(rows, keys)
        check_defined(rows, undefined)
        self._score(rows, np.sort(ranks, axis=1))

    def result(self) -> RankingResult:
        """Sums up, once every query was scored."""
        if not self._seen.all():
            missing = np.flatnonzero(~self._seen)
            raise ValueError(
                f"{len(missing)} of {len(self._query)} queries were never scored, "
                f"first query {missing[0]}"
            )
        valid = self._counts > 0
        found = np.bincount(self._first[valid], minlength=self._max_rank)
        return RankingResult(
            cmc=np.cumsum(found[: self._max_rank]) / valid.sum(),
            mAP=float(self._average_precision[valid].mean()),
            mINP=float(self._inverse_penalty[valid].mean()),
            valid_queries=int(valid.sum()),
        )

    def scores(self, rows: np.ndarray) -> QueryScores:
        """What the queries `rows` [n] scored, once they were."""
        return QueryScores(
            self._counts[rows] > 0,
            self._average_precision[rows],
            self._first[rows] + 1.0,
        )

    def _ranks_host(
        self, rows: np.ndarray, keys: np.ndarray | jax.Array
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ranks [q, M] of the matches, padded with int32's maximum; NaN rows [q].

        One sort of the values of a row, without indices, then a binary search for each
        match: some ten times faster than an argsort of the row by XLA on a CPU.
        """
        keys = np.asarray(keys)
        if keys.dtype.itemsize < 4:  # NumPy sorts half precision slowly or not at all
            keys = keys.astype(np.float32)
        ranks = np.full((len(rows), self._counts.max()), _PADDING, np.int32)
        undefined = np.zeros(len(rows), bool)
        for i, row in enumerate(rows):
            ordered = np.sort(keys[i])
            undefined[i] = np.isnan(ordered[-1])  # NaN is sorted to the end
            ranks[i, : self._counts[row]] = _ranks_of_matches(
                keys[i], ordered, self._matches[row], self._index.junk(row)
            )
        return ranks, undefined

    def _ranks_device(
        self, rows: np.ndarray, keys: jax.Array
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same as `_ranks_host`, counted where `keys` are."""
        # Padding rows repeat the first ones: one shape, one compilation.
        padded = np.resize(rows, keys.shape[0])
        matches = np.full((len(padded), self._counts.max()), -1, np.int32)
        for i, row in enumerate(rows):
            matches[i, : self._counts[row]] = self._matches[row]
        ranks, undefined = _count_on_device(
            keys,
            matches,
            (self._query.person[padded], self._query.camera[padded]),
            self._gallery_on_device,
            camera_filter=self._camera_filter,
        )
        ranks = np.where(matches < 0, _PADDING, np.asarray(ranks))
        return ranks[: len(rows)], np.asarray(undefined)[: len(rows)]

    @functools.cached_property
    def _gallery_on_device(self) -> tuple[jax.Array, jax.Array]:
        """Persons and cameras, sent once."""
        return jax.device_put((self._gallery.person, self._gallery.camera))

    def _score(self, rows: np.ndarray, ranks: np.ndarray) -> None:
        """Scores queries by the ascending 0-based ranks [q, M] of their matches."""
        count = self._counts[rows]
        nth = np.arange(ranks.shape[1])
        real = nth < count[:, None]
        ranks = np.where(real, ranks, 0).astype(np.float64)
        precision = (nth + 1) / (ranks + 1)
        if self._ap == "trapezoid":
            before = np.where(ranks > 0, nth / np.maximum(ranks, 1), 1.0)
            precision = (precision + before) / 2
        total = np.sum(precision, axis=1, where=real)
        self._average_precision[rows] = total / np.maximum(count, 1)
        self._inverse_penalty[rows] = count / (ranks.max(axis=1) + 1)
        self._first[rows] = ranks[:, 0]
        self._seen[rows] = True


def _ranks_of_matches(
    values: np.ndarray, ordered: np.ndarray, matches: np.ndarray, junk: np.ndarray
) -> np.ndarray:
    """0-based ranks of `matches` in a row `values` [G], `junk` left out.

    `ordered` is `values` sorted; `matches` and `junk` are ascending indices.
    """
    found, dropped = values[matches], values[junk]
    left = np.searchsorted(ordered, found)
    ranks = left - np.searchsorted(np.sort(dropped), found)
    tied = np.searchsorted(ordered, found, side="right") - left > 1
    for value in np.unique(found[tied]):
        here = found == value
        equal, equal_junk = np.flatnonzero(values == value), junk[dropped == value]
        ranks[here] += np.searchsorted(equal, matches[here])
        ranks[here] -= np.searchsorted(equal_junk, matches[here])
    return ranks


@functools.partial(jax.jit, static_argnames="camera_filter")
def _count_on_device(
    keys: jax.Array,
    matches: jax.Array,
    query: tuple[jax.Array, jax.Array],
    gallery: tuple[jax.Array, jax.Array],
    *,
    camera_filter: bool,
) -> tuple[jax.Array, jax.Array]:
    """0-based ranks int32 [q, M] of `matches` [q, M], and NaN rows bool [q].

    Comparing every gallery image with one match per query after the other needs no
    more memory than the block itself, and no sort. Entries of `matches` below 0 are
    padding; their ranks mean nothing.
    """
    kept = gallery[0] >= 0
    if camera_filter:
        same = query[0][:, None] == gallery[0]
        kept = kept & ~(same & (query[1][:, None] == gallery[1]))
    column = jnp.arange(keys.shape[1])

    def count(match: jax.Array) -> jax.Array:
        match = match[:, None]
        key = jnp.take_along_axis(keys, jnp.maximum(match, 0), axis=1)
        ahead = (keys < key) | ((keys == key) & (column < match))
        return jnp.sum(ahead & kept, axis=1, dtype=jnp.int32)

    ranks = jax.lax.map(count, matches.T).T
    return ranks, jnp.isnan(keys).any(axis=1)


def check_ap(ap: str) -> None:
    """Raises UserError unless `ap` names an average precision."""
    if ap not in APS:
        raise UserError(f"ap={ap!r}: choose {' or '.join(map(repr, APS))}")


def check_defined(rows: np.ndarray, undefined: np.ndarray) -> None:
    """Raises UserError if distances of the queries `rows` [q] are NaN, bool [q]."""
    if undefined.any():
        raise UserError(
            f"the distances of {undefined.sum()} of the queries {rows[0]} to "
            f"{rows[-1]} contain NaN, first for query {rows[undefined.argmax()]}; "
            "the embeddings are not finite: check the checkpoint and the loss of "
            "the run"
        )


def on_accelerator(keys: np.ndarray | jax.Array) -> bool:
    """Whether the array lies on a GPU or TPU, where the device should count."""
    if not isinstance(keys, jax.Array):
        return False
    return any(device.platform != "cpu" for device in keys.devices())
