"""Re-ranking by what images have in common: their k-reciprocal neighbours.

Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR
2017. Queries and gallery are one set of N images here, and numbers of equations are the
paper's. Where its text and the authors' code differ, the default is the code, which is
what the tables of other papers were made with:

- An image is its own first neighbour, so that sets have up to k + 1 members, and an
  image is among the k2 that its weights are averaged over. (The text ranks a gallery
  that does not hold the query.)
- Distances are squared, and divided by each image's greatest one.
- The weights of an image sum to 1.

Half of k1 is rounded up. Equal distances are in the order of the images, queries first.
Beside the embeddings, memory is that of some k1^2 numbers for an image at most, where
images' sets overlap little, and of one block of distances.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy import sparse

from reid_jax.retrieval.search import Nearest

_LOOKUPS = 2**18
"""Neighbours of neighbours that are looked at at once."""
_MARKED = 2**26
"""Pairs of images of which it is noted at once whether one is another's neighbour."""
_COMPARED = 2**23
"""Neighbours that members of sets are looked for among at once."""

PairDistances = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(images [P], images [P]) -> distances [P]."""


@dataclasses.dataclass(frozen=True)
class KReciprocal:
    """Options; the first three are the paper's.

    Attributes:
      k1: neighbours that may be reciprocal.
      k2: neighbours that an image's weights are averaged over; 1 leaves them.
      lambda_value: what the original distance weighs in the end; 1 is that alone.
      squared: squares the distances first, unless a method's are squares already.
      normalised: divides an image's distances by its greatest one.
      strict: a neighbour's set is taken in where *more* than 2/3 of it are reciprocal
        (the code); False for 2/3 or more (the condition of R*).
    """

    k1: int = 20
    k2: int = 6
    lambda_value: float = 0.3
    squared: bool = True
    normalised: bool = True
    strict: bool = True


def searched(options: KReciprocal) -> int:
    """How many neighbours to look for: itself, k1 others, and as many again.

    These are members of no own set, but often of their neighbours' sets, so that their
    distances are needed.
    """
    return 2 * (options.k1 + 1)


class Encoding:
    """All images as weights of their reciprocal neighbours (Eqs. 3 to 7 and 11).

    Args:
      options: of the paper.
      nearest: the `searched` nearest of all N images among all of them.
      pair_distances: for those few members of sets that are not among these.
      queries: how many of the images, the first ones, are queries.
    """

    def __init__(
        self,
        options: KReciprocal,
        nearest: Nearest,
        pair_distances: PairDistances,
        *,
        queries: int,
    ):
        self._options, self._farthest = options, nearest.farthest
        neighbours, distances = _itself_first(nearest)
        rows, columns = _members(neighbours[:, : options.k1 + 1], options)
        apart = _known(neighbours, distances, rows, columns)
        unknown = np.isnan(apart)
        apart[unknown] = pair_distances(rows[unknown], columns[unknown])
        weights = self._weights(rows, columns, apart, len(neighbours))
        weights = _averaged(weights, neighbours[:, : options.k2])
        self._queries = weights[:queries]
        self._gallery = weights[queries:].tocsc()

    def keys(self, rows: np.ndarray, distances: np.ndarray) -> np.ndarray:
        """Final distances float32 [q, G] (Eq. 12).

        Args:
          rows: int [q], the queries.
          distances: [q, G], the original ones.
        """
        weight = self._options.lambda_value
        original = self._measured(np.asarray(distances), rows[:, None])
        jaccard = np.empty(original.shape, np.float32)
        for found, row in zip(jaccard, rows, strict=True):
            found[:] = self._jaccard(row)
        return (1 - weight) * jaccard + weight * original.astype(np.float32)

    def _weights(
        self, rows: np.ndarray, columns: np.ndarray, apart: np.ndarray, size: int
    ) -> sparse.csr_matrix:
        """Eq. 7, in rows that sum to 1."""
        weights = np.exp(-self._measured(apart, rows))
        weights /= np.bincount(rows, weights, minlength=size)[rows]
        places = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=size))])
        return sparse.csr_matrix(
            (weights.astype(np.float32), columns, places), shape=(size, size)
        )

    def _measured(self, distances: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Original distances of images `rows`, squared and normalised as configured."""
        greatest = self._farthest[rows]
        if self._options.squared:
            distances, greatest = np.square(distances), np.square(greatest)
        if self._options.normalised:
            # All images in one place: their distances are 0, whatever they are of.
            distances = distances / np.where(greatest > 0, greatest, 1)
        return distances

    def _jaccard(self, query: int) -> np.ndarray:
        """Jaccard distances float32 [G] of a query (Eq. 10).

        Only images that share a neighbour with the query are visited, by the columns of
        the gallery's weights. Minima and maxima of two rows of sum 1 sum to 2.
        """
        own = slice(*self._queries.indptr[query : query + 2])
        members, weights = self._queries.indices[own], self._queries.data[own]
        first = self._gallery.indptr[members]
        counts = self._gallery.indptr[members + 1] - first
        starts = np.cumsum(counts) - counts
        places = np.arange(counts.sum()) + np.repeat(first - starts, counts)
        least = np.minimum(np.repeat(weights, counts), self._gallery.data[places])
        common = np.bincount(
            self._gallery.indices[places], least, minlength=self._gallery.shape[0]
        )
        return (1 - common / (2 - common)).astype(np.float32)


def _itself_first(nearest: Nearest) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours [N, k] and their distances, each image the first, 0 from itself.

    By rounding, or among more copies of it than there are neighbours, it may not be.
    """
    neighbours, distances = nearest.indices.copy(), nearest.distances.copy()
    itself = neighbours == np.arange(len(neighbours))[:, None]
    itself[~itself.any(1), -1] = True
    neighbours[itself] = np.arange(len(neighbours))
    distances[itself] = -np.inf
    order = np.argsort(distances, axis=1, kind="stable")
    distances[itself] = 0
    return (
        np.take_along_axis(neighbours, order, axis=1),
        np.take_along_axis(distances, order, axis=1),
    )


def _members(
    neighbours: np.ndarray, options: KReciprocal
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (image, member of its expanded set), ascending, each once."""
    size, count = neighbours.shape
    near = neighbours[:, : -(-options.k1 // 2) + 1]
    step = max(1, min(_LOOKUPS // count**2, _MARKED // size))
    blocks = [np.arange(x, min(x + step, size)) for x in range(0, size, step)]
    mutual = np.concatenate([_reciprocal(rows, near) for rows in blocks])
    pairs = []
    for rows in blocks:
        members, chosen = _expanded(rows, neighbours, near, mutual, options.strict)
        row, place = np.nonzero(chosen)
        pairs.append(np.unique(rows[row] * size + members[row, place]))
    return np.divmod(np.concatenate(pairs), size)


def _reciprocal(rows: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """Which neighbours [b, k] of images `rows` [b] have these as theirs (Eq. 3)."""
    return (neighbours[neighbours[rows]] == rows[:, None, None]).any(-1)


def _expanded(
    rows: np.ndarray,
    neighbours: np.ndarray,
    near: np.ndarray,
    mutual: np.ndarray,
    strict: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Candidates [b, C] for the sets of images `rows` [b], and which are in them.

    `near` [N, half] are the first `neighbours` [N, k], and `mutual` says which of these
    are reciprocal. Some candidates occur several times.
    """
    own, reciprocal = neighbours[rows], _reciprocal(rows, neighbours)
    # The sets of own neighbours, [b, k, half], and what they share with the row's.
    theirs, mutual = near[own], mutual[own]
    row = np.arange(len(rows))[:, None]
    within = np.zeros((len(rows), len(neighbours)), bool)
    within[row, own] = reciprocal
    shared = within[row[..., None], theirs] & mutual
    thrice, twice = 3 * shared.sum(-1), 2 * mutual.sum(-1)
    similar = thrice > twice if strict else thrice >= twice
    taken = mutual & (reciprocal & similar)[..., None]
    flat = (len(rows), -1)
    return (
        np.concatenate([own, theirs.reshape(flat)], axis=1),
        np.concatenate([reciprocal, taken.reshape(flat)], axis=1),
    )


def _known(
    neighbours: np.ndarray, distances: np.ndarray, rows: np.ndarray, members: np.ndarray
) -> np.ndarray:
    """Distances [P] of images `rows` to `members` among their neighbours, else NaN."""
    found = np.empty(len(rows), np.float32)
    step = max(1, _COMPARED // neighbours.shape[1])
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        here = neighbours[rows[part]] == members[part, None]
        apart = distances[rows[part], here.argmax(1)]
        found[part] = np.where(here.any(1), apart, np.nan)
    return found


def _averaged(weights: sparse.csr_matrix, neighbours: np.ndarray) -> sparse.csr_matrix:
    """The mean of the weights of each image's `neighbours` [N, k2] (Eq. 11)."""
    size, count = neighbours.shape
    mean = sparse.csr_matrix(
        (
            np.full(neighbours.size, 1 / count, np.float32),
            neighbours.ravel(),
            np.arange(0, neighbours.size + 1, count),
        ),
        shape=(size, size),
    )
    return mean @ weights
