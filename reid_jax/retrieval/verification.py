"""Same person or not, by a threshold: ROC from histograms, in bounded memory.

Distances of all pairs are counted by the first 20 bits of their float32 numbers, which
are in the numbers' order: a million bins, each at most a two-thousandth of its
distances wide, whatever their range. At the border of every bin the counts are exact.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from reid_jax.errors import UserError
from reid_jax.retrieval.labels import Labels, MatchIndex

RATES = (1e-3, 1e-4)
"""False positive rates that are reported."""

_DROPPED = 12
"""Bits of a float32 that no bin tells apart."""
_BINS = 1 << (32 - _DROPPED)


@dataclasses.dataclass(frozen=True)
class Curve:
    """A receiver operating characteristic at the bins that are not empty.

    Attributes:
      threshold: float32 [n], ascending; pairs that are at most so far are accepted.
      false_positives: int64 [n], accepted pairs of different persons.
      true_positives: int64 [n], accepted pairs of one person.
    """

    threshold: np.ndarray
    false_positives: np.ndarray
    true_positives: np.ndarray

    @property
    def fpr(self) -> np.ndarray:
        """Share of pairs of different persons that are accepted, float64 [n]."""
        return self.false_positives / self.false_positives[-1]

    @property
    def tpr(self) -> np.ndarray:
        """Share of pairs of one person that are accepted, float64 [n]."""
        return self.true_positives / self.true_positives[-1]

    def at(self, rate: float) -> tuple[float, float | None]:
        """The greatest TPR whose FPR is at most `rate`, and the threshold of it.

        0 and None where even the nearest pairs have a greater one.
        """
        allowed = int(np.searchsorted(self.fpr, rate, side="right"))
        if not allowed:
            return 0.0, None
        # The first of the thresholds that accept as many pairs of one person.
        best = int(
            np.searchsorted(self.true_positives, self.true_positives[allowed - 1])
        )
        return float(self.tpr[best]), float(self.threshold[best])

    def report(self) -> dict[str, object]:
        """What `results.json` has of it."""
        return {
            "positive_pairs": int(self.true_positives[-1]),
            "negative_pairs": int(self.false_positives[-1]),
            "at": [
                {"fpr": rate, "tpr": tpr, "threshold": threshold}
                for rate in RATES
                for tpr, threshold in (self.at(rate),)
            ],
        }


class Verification:
    """Counts pairs of query and gallery images as their distances come.

    The pairs that a ranking counts: without junk, nor the query's person through its
    own camera where that is filtered. Queries without a person label are left out.

    Args:
      query, gallery, camera_filter: as for `ranking.Ranker`.

    Raises:
      UserError: all images show one person.
    """

    def __init__(self, query: Labels, gallery: Labels, *, camera_filter: bool):
        shown = query.person[query.person > 0], gallery.person[gallery.person >= 0]
        if len(np.union1d(*shown)) < 2:
            raise UserError(_no_pair("different persons"))
        self._query = query
        self._index = MatchIndex(query, gallery, camera_filter=camera_filter)
        self._all = np.zeros(_BINS, np.int64)
        self._same = np.zeros(_BINS, np.int64)

    def update(self, rows: np.ndarray, distances: np.ndarray) -> None:
        """Takes distances float [>= q, G] of the queries `rows` [q]."""
        labelled = self._query.person[rows] > 0
        distances = np.asarray(distances, np.float32)[: len(rows)][labelled]
        bins = _bin(distances)
        self._all += np.bincount(bins.ravel(), minlength=_BINS)
        for row, found in zip(rows[labelled], bins, strict=True):
            np.subtract.at(self._all, found[self._index.junk(row)], 1)
            np.add.at(self._same, found[self._index.matches(row)], 1)

    def curve(self) -> Curve:
        """The counts so far.

        Raises:
          UserError: there is no pair of one person.
        """
        if not self._same.any():
            raise UserError(_no_pair("one person"))
        filled = np.flatnonzero(self._all)
        return Curve(
            threshold=_greatest(filled),
            false_positives=np.cumsum((self._all - self._same)[filled]),
            true_positives=np.cumsum(self._same[filled]),
        )


def _no_pair(shown: str) -> str:
    return (
        f"no pair of query and gallery image shows {shown}, so there is no ROC; "
        "evaluate without it (--config.evaluation.verification=False)"
    )


def _bin(values: np.ndarray) -> np.ndarray:
    """Ascending with float32 values: int64 of the same shape."""
    bits = (values + np.float32(0)).view(np.uint32)  # -0 becomes 0
    turned = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return (turned >> _DROPPED).astype(np.int64)


def _greatest(bins: np.ndarray) -> np.ndarray:
    """The greatest float32 value of each bin."""
    turned = (bins.astype(np.uint32) << _DROPPED) | np.uint32((1 << _DROPPED) - 1)
    bits = np.where(turned >> 31, turned & np.uint32((1 << 31) - 1), ~turned)
    return bits.astype(np.uint32).view(np.float32)
