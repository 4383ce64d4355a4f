"""Ranking lists: the nearest gallery images of a query, found without a full sort."""

from __future__ import annotations

import jax
import numpy as np

from reid_jax.retrieval.labels import MatchIndex


def top_matches(
    keys: np.ndarray | jax.Array,
    rows: np.ndarray,
    index: MatchIndex,
    *,
    k: int,
) -> np.ndarray:
    """The images that a ranking list shows: the nearest ones that count.

    Args:
      keys: float [q, G], smaller is more alike.
      rows: int [q], which query each row of `keys` belongs to.
      index: of all queries and the gallery.
      k: length of the lists.

    Returns:
      int32 [q, k] gallery indices, nearest first, the earlier of equal ones first; -1
      where fewer than k images count.
    """
    keys = np.asarray(keys)
    lists = np.full((len(rows), k), -1, np.int32)
    for found, values, row in zip(lists, keys, rows, strict=True):
        kept = np.delete(np.arange(keys.shape[1]), index.junk(row))
        nearest = kept[smallest(values[kept], k)]
        found[: len(nearest)] = nearest
    return lists


def smallest(values: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k smallest of `values` [G], ascending, stable; all if k > G.

    A partition instead of a sort; equal values at the border enter by index.
    """
    if k >= len(values):
        return np.argsort(values, kind="stable")
    border = np.partition(values, k - 1)[k - 1]
    below = np.flatnonzero(values < border)
    chosen = np.append(below, np.flatnonzero(values == border)[: k - len(below)])
    return chosen[np.lexsort((chosen, values[chosen]))]
