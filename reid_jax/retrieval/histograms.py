"""Distances of right and of wrong pairs, counted in bins while blocks of them pass.

Every threshold on a distance is a question to these counts: how many of the right pairs
it finds, and how many of the wrong ones it lets through.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np

from reid_jax.retrieval.labels import Labels, MatchIndex

BINS = 2048
"""At most so many; at least half of them lie between the extremes."""


@dataclasses.dataclass(frozen=True)
class Histograms:
    """How many pairs have which distance.

    Attributes:
      edges: float64 [n + 1], of equally wide bins; the right one is outside.
      right: int64 [n], pairs that show one person.
      wrong: int64 [n], pairs that show two.
    """

    edges: np.ndarray
    right: np.ndarray
    wrong: np.ndarray

    def equal_error(self) -> tuple[float, float]:
        """The threshold that errs as often on right pairs as on wrong ones, and how.

        Returns:
          the edge below which pairs are called right, where the shares of right pairs
          that are missed and of wrong pairs that are let through are nearest to each
          other; and the mean of the two shares.
        """
        missed, let_through = (
            np.concatenate([[0], np.cumsum(counts)]) / max(counts.sum(), 1)
            for counts in (self.right, self.wrong)
        )
        missed = 1 - missed
        at = np.abs(missed - let_through).argmin()
        return float(self.edges[at]), float((missed[at] + let_through[at]) / 2)


class PairHistograms:
    """Counts the pairs of queries and gallery images by their distance.

    Pairs are those that a ranking counts: no junk, no image that the camera filter
    leaves out, no query without a person. The bins' width is the smallest power of two
    that covers all distances with at most `bins` of them; where a block brings more
    distant ones, pairs of bins are joined. So the counts are exact, and the same
    however the queries are cut into blocks.

    Args:
      query, gallery: labels of the two sets.
      camera_filter: as for `ranking.Ranker`.
      bins: the most that there may be.
    """

    def __init__(
        self,
        query: Labels,
        gallery: Labels,
        *,
        camera_filter: bool,
        bins: int = BINS,
    ) -> None:
        self._query, self._bins = query, bins
        self._index = MatchIndex(query, gallery, camera_filter=camera_filter)
        self._exponent = 0  # of the bins' width, a power of two
        self._first = 0  # the first bin begins at so many widths
        self._counts = np.zeros((2, 0), np.int64)

    def update(self, rows: np.ndarray, distances: np.ndarray | jax.Array) -> None:
        """Counts the pairs of the queries `rows` [q].

        Args:
          rows: int.
          distances: float [>= q, G], finite. Rows beyond q are padding and ignored.
        """
        labelled = self._query.person[rows] > 0
        distances = np.asarray(distances, np.float32)[: len(rows)][labelled]
        rows = rows[labelled]
        if not distances.size:
            return
        self._cover(float(distances.min()), float(distances.max()))
        for values, row in zip(distances, rows, strict=True):
            right = self._count(values[self._index.matches(row)])
            junk = self._count(values[self._index.junk(row)])
            self._counts += right, self._count(values) - right - junk

    def result(self) -> Histograms:
        """The counts so far, from the first bin that has any to the last."""
        there = np.flatnonzero(self._counts.any(axis=0))
        kept = slice(there[0], there[-1] + 1) if len(there) else slice(0)
        right, wrong = self._counts[:, kept]
        first = self._first + (kept.start or 0)
        edges = math.ldexp(1.0, self._exponent) * (first + np.arange(len(right) + 1))
        return Histograms(edges, right, wrong)

    def _count(self, values: np.ndarray) -> np.ndarray:
        bins = _bin(values, self._exponent) - self._first
        return np.bincount(bins, minlength=self._counts.shape[1])

    def _cover(self, low: float, high: float) -> None:
        """Widens bins, and adds some, until they hold values from `low` to `high`."""
        # No float32 is finer than this beside the largest of them.
        finest = math.frexp(max(abs(low), abs(high)))[1] - 25
        number = self._counts.shape[1]
        exponent = max(finest, self._exponent) if number else finest
        first, last = (int(_bin(value, exponent)) for value in (low, high))
        old = (self._first + np.arange(number)) >> (exponent - self._exponent)
        first, last = min([first, *old[:1]]), max([last, *old[-1:]])
        steps = 0
        while (last >> steps) - (first >> steps) >= self._bins:
            steps += 1
        counts = np.zeros((2, (last >> steps) - (first >> steps) + 1), np.int64)
        np.add.at(
            counts, (slice(None), (old >> steps) - (first >> steps)), self._counts
        )
        self._exponent, self._first = exponent + steps, int(first >> steps)
        self._counts = counts


def _bin(values: np.ndarray | float, exponent: int) -> np.ndarray:
    """Which bin values fall in, bins of width 2 ** exponent; exact."""
    return np.floor(np.ldexp(values, -exponent)).astype(np.int64)
