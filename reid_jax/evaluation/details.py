"""What a report shows of a protocol beside its metrics, collected block by block."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from data_pipelines.protocols import Protocol
from data_pipelines.records import Records
from reid_jax.evaluation.lists import Lists
from reid_jax.retrieval.camera_pairs import CameraPairs
from reid_jax.retrieval.histograms import PairHistograms
from reid_jax.retrieval.labels import Labels
from reid_jax.retrieval.ranking import QueryScores

END_QUERIES = 5
"""So many of the hardest queries are drawn, and as many of the easiest."""


class Details:
    """Scores of single queries, rank-1 between cameras, distances of pairs.

    Memory is a few numbers for each query, and a block of copied distances.

    Args:
      protocol: what is evaluated.
      query, gallery: the splits.

    Attributes:
      ends: ranking lists of the queries with the lowest average precision, `hardest`,
        and with the highest, `easiest`; of equal ones, the earlier.
    """

    NAME = "details.json"
    """File beside the pictures of the evaluation."""
    OF = ("protocol", "step", "ap", "camera_filter", "rerank", "metrics")
    """What it has of the entry of `results.json` that it belongs to."""

    def __init__(self, protocol: Protocol, query: Records, gallery: Records):
        self._query, self._gallery = query, gallery
        labels = [Labels(r.person, r.camera) for r in (query, gallery)]
        chosen = {"camera_filter": protocol.camera_filter}
        self._cameras = CameraPairs(*labels, **chosen)
        self._pairs = PairHistograms(*labels, **chosen)
        self.ends = {
            end: Lists(query, gallery, **chosen) for end in ("hardest", "easiest")
        }
        for lists in self.ends.values():
            lists.keep(np.zeros(0, np.int64))
        self._valid = np.zeros(len(query), bool)
        self._precision = np.zeros(len(query))
        self._first = np.zeros(len(query))

    def update(
        self,
        rows: np.ndarray,
        keys: jax.Array | np.ndarray,
        distances: jax.Array | np.ndarray,
        scores: QueryScores,
    ) -> None:
        """Takes the queries `rows` [q], which follow each other.

        Args:
          rows: int.
          keys: float [>= q, G], what they are ranked by.
          distances: float [>= q, G], the method's own, before pairs were scored.
          scores: theirs.
        """
        keys, distances = np.asarray(keys), np.asarray(distances)
        self._valid[rows] = scores.valid
        self._precision[rows] = scores.average_precision
        self._first[rows] = scores.first
        self._cameras.update(rows, keys)
        self._pairs.update(rows, distances)
        for end, lists in self.ends.items():
            sign = 1 if end == "hardest" else -1
            known = np.concatenate([lists.rows, rows[scores.valid]])
            order = np.lexsort((known, sign * self._precision[known]))
            lists.keep(known[order[:END_QUERIES]])
            lists.update(rows, keys)

    def by_name(self) -> dict[str, Any]:
        """All of it, in JSON's types, with the names that files and cameras have."""
        found = self._pairs.result()
        return {
            "queries": [self._scored(row) for row in np.flatnonzero(self._valid)],
            "cameras": {
                "query": _names(self._query, self._cameras.query_cameras),
                "gallery": _names(self._gallery, self._cameras.gallery_cameras),
                "right": self._cameras.right.tolist(),
                "asked": self._cameras.asked.tolist(),
            },
            "distances": {
                "edges": found.edges.tolist(),
                "right": found.right.tolist(),
                "wrong": found.wrong.tolist(),
            },
        }

    def _scored(self, row: int) -> dict[str, Any]:
        return {
            "file": self._query.filename(row),
            "person": self._query.person_name(int(self._query.person[row])),
            "camera": self._query.camera_name(int(self._query.camera[row])),
            "average_precision": round(float(self._precision[row]), 6),
            "first_rank": round(float(self._first[row]), 2),
        }


def _names(records: Records, cameras: np.ndarray) -> list[str]:
    return [records.camera_name(int(camera)) for camera in cameras]
