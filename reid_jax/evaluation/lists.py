"""Ranking lists of some queries, kept while a protocol is scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from data_pipelines.records import Records
from reid_jax.errors import UserError
from reid_jax.retrieval.labels import Labels, MatchIndex
from reid_jax.retrieval.lists import top_matches

PICTURED_QUERIES = 10
PICTURED_RANKS = 10

Chosen = Sequence[str | int] | str | int
"""Queries by file name or index; () for some, evenly spread."""


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


class Lists:
    """Ranking lists of some queries over the whole gallery.

    Args:
      query, gallery: the splits.
      camera_filter: of the protocol.
      chosen: which queries.

    Attributes:
      rows: int [n], the queries.
      nearest: query -> int [k], its nearest gallery images, -1 where there is none.
      keys: query -> float [k], what they are ranked by.

    Raises:
      UserError: a query that is chosen is not there.
    """

    def __init__(
        self,
        query: Records,
        gallery: Records,
        *,
        camera_filter: bool,
        chosen: Chosen = (),
    ):
        self._query, self._gallery = query, gallery
        labels = (Labels(r.person, r.camera) for r in (query, gallery))
        self._index = MatchIndex(*labels, camera_filter=camera_filter)
        chosen = (chosen,) if isinstance(chosen, str | int) else tuple(chosen)
        self._chosen = bool(chosen)
        self.rows = (
            _chosen_rows(chosen, query)
            if chosen
            else spread(np.flatnonzero(query.person > 0), PICTURED_QUERIES)
        )
        self.nearest: dict[int, np.ndarray] = {}
        self.keys: dict[int, np.ndarray] = {}

    def update(self, rows: np.ndarray, keys: jax.Array | np.ndarray) -> None:
        """Takes keys [>= q, G] of the queries `rows` [q], which follow each other."""
        shown = np.intersect1d(rows, self.rows)
        if not len(shown):
            return
        keys = np.asarray(keys)[shown - rows[0]]
        nearest = top_matches(keys, shown, self._index, k=PICTURED_RANKS)
        for row, key, found in zip(shown.tolist(), keys, nearest, strict=True):
            self.nearest[row], self.keys[row] = found, key[found]

    def keep(self, rows: np.ndarray) -> None:
        """Makes these the queries whose lists are kept; forgets those of others."""
        self.rows = rows
        kept = set(rows.tolist())
        for known in (self.nearest, self.keys):
            for row in known.keys() - kept:
                del known[row]

    def some(self, count: int) -> np.ndarray:
        """The queries that were chosen; where none were, `count` of them."""
        return self.rows if self._chosen else spread(self.rows, count)

    def examples(self, queries: int, candidates: int) -> Examples:
        """Some queries, each with the first images of its list.

        Where these are all wrong, the last of them gives way to the first right one
        of the list, if there is one.
        """
        rows = self.some(queries)
        nearest = np.stack([self.nearest[row] for row in rows])
        persons = self._gallery.person[nearest]
        right = (nearest >= 0) & (persons == self._query.person[rows][:, None])
        places = np.tile(np.arange(candidates), (len(rows), 1))
        # The first right place, or 0 where there is none.
        places[:, -1] = np.maximum(places[:, -1], right.argmax(axis=1))
        chosen = np.take_along_axis(nearest, places, axis=1)
        ranks = np.where(chosen >= 0, places + 1, 0)
        return Examples(rows, np.maximum(chosen, 0), ranks)

    def by_name(self) -> list[dict[str, Any]]:
        """`query` and `gallery`, files of each list, and the `keys` of its order."""
        entries = []
        for row in self.rows.tolist():
            there = self.nearest[row] >= 0
            files = map(self._gallery.filename, self.nearest[row][there])
            entries.append(
                {
                    "query": self._query.filename(row),
                    "gallery": list(files),
                    "keys": self.keys[row][there].tolist(),
                }
            )
        return entries


def _chosen_rows(chosen: tuple[str | int, ...], query: Records) -> np.ndarray:
    """Rows of the queries that a config names, each once."""
    try:
        return np.array(list(dict.fromkeys(find(chosen, query).tolist())))
    except UserError as error:
        raise UserError(f"config.evaluation.pictured: {error}") from error


def find(chosen: Sequence[str | int], records: Records) -> np.ndarray:
    """Rows of records by file name or index, in this order.

    Raises:
      UserError: for those that are not there.
    """
    known = {records.filename(row): row for row in range(len(records))}
    rows = [one if isinstance(one, int) else known.get(one, -1) for one in chosen]
    pairs = zip(chosen, rows, strict=True)
    unknown = [repr(one) for one, row in pairs if not 0 <= row < len(records)]
    if unknown:
        raise UserError(
            f"there is no {', '.join(dict.fromkeys(unknown))}; name files such as "
            f"{records.filename(0)!r}, or indices from 0 to {len(records) - 1}"
        )
    return np.array(rows)


def spread(values: np.ndarray, count: int) -> np.ndarray:
    """`count` values from first to last, evenly; the same ones in every evaluation."""
    places = np.linspace(0, len(values) - 1, min(count, len(values)))
    return values[places.round().astype(int)]
