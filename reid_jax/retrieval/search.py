"""Distances to a gallery of any size, and exact nearest neighbours in it.

A gallery lies on one device where it fits there; otherwise it is split over all
devices, whose nearest images are merged; and where it does not fit at all, shares of it
are sent from the host: once for the neighbours of all queries, and for every block of
queries where all distances are wanted. The neighbours are the same each time: of equal
distances the earlier gallery image is the nearer one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Embedding = dict[str, Any]
"""Arrays of leading axis N, as `models.method.Embedding`."""

Distance = Callable[[Embedding, Embedding], jax.Array]
"""(query, gallery) -> float32 [Q, G], pure."""

BY = ("top_k", "approx_max_k")
"""Functions of `jax.lax` that find neighbours."""

_AXIS = "gallery"


@dataclasses.dataclass(frozen=True)
class Search:
    """How neighbours are found, and what a device may hold.

    Attributes:
      by: "top_k" is exact. "approx_max_k" finds `recall` of the neighbours, on average,
        and is much faster on TPUs; on other devices it is exact, too. Those that are
        equally far come in any order.
      recall: of "approx_max_k".
      device_bytes: of a gallery's embeddings on each device.
    """

    by: str = "top_k"
    recall: float = 0.95
    device_bytes: int = 4 << 30


class Nearest(NamedTuple):
    """Neighbours of queries.

    Attributes:
      distances: float32 [Q, k], ascending.
      indices: int32 [Q, k], rows of the gallery; of equal distances the lower first.
      farthest: float32 [Q], the greatest distance to any gallery image.
    """

    distances: np.ndarray
    indices: np.ndarray
    farthest: np.ndarray


class Comparison:
    """Functions that compare queries with a gallery; compiled once for all galleries.

    Args:
      distance: of a method.
      search: how neighbours are found.
      devices: of this process, over which a gallery may be split; default all.
    """

    def __init__(
        self,
        distance: Distance,
        search: Search = Search(),
        devices: Sequence[jax.Device] | None = None,
    ):
        self.search = search
        self.devices = tuple(devices or jax.local_devices())
        self._distance = distance
        self.distances = jax.jit(self._distances)
        self.nearest = jax.jit(self._nearest, static_argnames=("k", "mesh"))
        self.pairs = jax.jit(self._pairs)

    def _distances(
        self, query: Embedding, gallery: Embedding
    ) -> tuple[jax.Array, jax.Array]:
        """Distances [Q, G], and which rows are finite."""
        distances = self._distance(query, gallery)
        return distances, jnp.isfinite(distances).all(axis=1)

    def _pairs(self, left: Embedding, right: Embedding) -> jax.Array:
        """Distances [P] of the images of one embedding to those of another."""

        def one(left: Embedding, right: Embedding) -> jax.Array:
            alone = (jax.tree.map(lambda x: x[None], side) for side in (left, right))
            return self._distance(*alone)[0, 0]

        return jax.vmap(one)(left, right)

    def _nearest(
        self, query: Embedding, part: Embedding, count: jax.Array, *, k: int, mesh: Mesh
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The k nearest of the first `count` rows of a part, split over a mesh."""

        def on_one_device(
            query: Embedding, rows: Embedding, count: jax.Array
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            distances = self._distance(query, rows)
            column = jnp.arange(distances.shape[1], dtype=jnp.int32)
            column += jax.lax.axis_index(_AXIS) * distances.shape[1]
            there = column < count
            farthest = jnp.where(there, distances, -jnp.inf).max(1, keepdims=True)
            distances = jnp.where(there, distances, jnp.inf)
            found, index = self._least(distances, min(k, distances.shape[1]))
            return found, column[index], farthest

        split = PartitionSpec(_AXIS)
        # Of each device so many columns, in the order of the gallery.
        columns = PartitionSpec(None, _AXIS)
        found, index, farthest = jax.shard_map(
            on_one_device,
            mesh=mesh,
            in_specs=(PartitionSpec(), split, PartitionSpec()),
            out_specs=(columns, columns, columns),
            check_vma=False,  # distances may scan from a carry that is not varying
        )(query, part, count)
        if mesh.size > 1:
            found, place = least(found, min(k, found.shape[1]))
            index = jnp.take_along_axis(index, place, axis=1)
        return found, index, farthest.max(1)

    def _least(self, values: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
        if self.search.by == "top_k":
            return least(values, k)
        return jax.lax.approx_min_k(values, k, recall_target=self.search.recall)


def least(values: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k smallest of each row by `lax.top_k`, exactly; equal ones by their index.

    They lie in the k stretches of the row with the smallest minima, the earlier of
    equal ones, so that most of a long row is only looked at for these.

    Args:
      values: float [Q, N], without NaN.
      k: at most N.

    Returns:
      values [Q, k], ascending, and their indices int32 [Q, k].
    """
    rows, size = values.shape
    # About as many minima as candidates; a power of two is quick to go over.
    length = 1 << round(math.log2(size / k) / 2)
    whole = size // length * length
    stretches = values[:, :whole].reshape(rows, -1, length)
    count = min(k, stretches.shape[1])
    chosen = jnp.sort(_smallest(stretches.min(-1), count)[1], axis=1)
    inside = jnp.take_along_axis(stretches, chosen[..., None], axis=1)
    inside = jnp.concatenate([inside.reshape(rows, -1), values[:, whole:]], axis=1)
    found, place = _smallest(inside, k)
    stretch = jnp.take_along_axis(
        chosen, jnp.minimum(place // length, count - 1), axis=1
    )
    behind = place - count * length + whole  # of what no stretch has
    index = stretch * length + place % length
    return found, jnp.where(place < count * length, index, behind)


def _smallest(values: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """`lax.top_k` of the smallest; it would take -0 before 0."""
    found, index = jax.lax.top_k(-jnp.where(values == 0, 0, values), k)
    return -found, index


class Gallery:
    """A gallery's embeddings, where queries can be compared with them.

    Args:
      comparison: of the method.
      embedding: of the gallery, arrays [G, ...] on the host.
    """

    def __init__(self, comparison: Comparison, embedding: Embedding):
        self._comparison, self._host = comparison, embedding
        self.size = len(jax.tree.leaves(embedding)[0])
        devices, self._rows = _layout(
            embedding, comparison.devices, comparison.search.device_bytes
        )
        self.mesh = Mesh(np.array(devices), (_AXIS,), axis_types=(AxisType.Auto,))
        self._resident = self._put(0) if self._rows >= self.size else None

    def distances(
        self, query: Embedding
    ) -> tuple[jax.Array | np.ndarray, jax.Array | np.ndarray]:
        """Distances [Q, G], and which rows [Q] are finite; of queries on the host."""
        if self.mesh.size == 1 and self._resident is not None:
            return self._comparison.distances(query, self._resident)
        parts = []
        for start, part in self._parts():
            distances, _ = self._comparison.distances(query, part)
            parts.append(np.asarray(distances)[:, : self.size - start])
        distances = np.concatenate(parts, axis=1)
        return distances, np.isfinite(distances).all(axis=1)

    def nearest(
        self,
        query: Embedding,
        k: int,
        *,
        block: int,
        progress: Callable[[int], object] = lambda pairs: None,
    ) -> Nearest:
        """The k nearest images of all queries, a block of them at a time.

        Args:
          query: arrays [Q, ...] on the host.
          k: how many; all where there are fewer.
          block: queries at once.
          progress: is told how many further pairs were compared.
        """
        k, joined = min(k, self.size), []
        for start, part in self._parts():
            count, found = min(self._rows, self.size - start), []
            for rows, some in blocks(query, block):
                near = self._comparison.nearest(
                    some, part, np.int32(count), k=min(k, self._rows), mesh=self.mesh
                )
                values, index, farthest = (np.asarray(x)[: len(rows)] for x in near)
                found.append(Nearest(values, index + np.int32(start), farthest))
                progress(len(rows) * count)
            pairs = zip(joined, found, strict=True)
            joined = [_joined(*pair, k) for pair in pairs] if joined else found
        return Nearest(*map(np.concatenate, zip(*joined, strict=True)))

    def _parts(self) -> Iterator[tuple[int, Embedding]]:
        """Where each part begins, and its rows on the devices."""
        if self._resident is not None:
            yield 0, self._resident
            return
        for start in range(0, self.size, self._rows):
            yield start, self._put(start)

    def _put(self, start: int) -> Embedding:
        """Rows from `start` on; a part that is shorter than others repeats its own."""
        stop = min(start + self._rows, self.size)
        sharding = NamedSharding(self.mesh, PartitionSpec(_AXIS))

        def put(array: np.ndarray) -> jax.Array:
            rows = array[start:stop]
            if len(rows) < self._rows:
                rows = rows[np.arange(self._rows) % len(rows)]
            if self.mesh.size == 1:
                return jax.device_put(rows, self.mesh.devices.flat[0])
            return jax.device_put(rows, sharding)

        return jax.tree.map(put, self._host)


def _layout(
    embedding: Embedding, devices: Sequence[jax.Device], device_bytes: int
) -> tuple[Sequence[jax.Device], int]:
    """Devices that a gallery lies on, and how many of its rows do so at once."""
    arrays = jax.tree.leaves(embedding)
    size = len(arrays[0])
    fitting = max(1, device_bytes // max(1, sum(x.nbytes // size for x in arrays)))
    if size <= fitting:
        return devices[:1], size
    return devices, len(devices) * min(fitting, -(-size // len(devices)))


def _joined(before: Nearest, after: Nearest, k: int) -> Nearest:
    """The nearest of two parts, of which the first stands before in the gallery."""
    both = [
        np.concatenate(pair, axis=1) for pair in zip(before[:2], after[:2], strict=True)
    ]
    order = np.argsort(both[0], axis=1, kind="stable")[:, :k]
    near = (np.take_along_axis(x, order, axis=1) for x in both)
    return Nearest(*near, np.maximum(before.farthest, after.farthest))


def blocks(embedding: Embedding, size: int) -> Iterator[tuple[np.ndarray, Embedding]]:
    """Rows [q] of queries, and their embedding [size, ...]; the last repeats its own.

    So that there is one shape, and one compilation.
    """
    total = len(jax.tree.leaves(embedding)[0])
    for start in range(0, total, size):
        rows = np.arange(start, min(start + size, total))
        yield rows, _rows(embedding, np.resize(rows, size))


def pair_distances(
    comparison: Comparison,
    embedding: Embedding,
    left: np.ndarray,
    right: np.ndarray,
    *,
    block: int = 4096,
) -> np.ndarray:
    """Distances float32 [P] of images `left` [P] to images `right` [P]."""
    found = [np.zeros(0, np.float32)]
    for start in range(0, len(left), block):
        count = min(block, len(left) - start)
        rows = np.resize(np.arange(start, start + count), block)
        sides = (_rows(embedding, side[rows]) for side in (left, right))
        found.append(np.asarray(comparison.pairs(*sides))[:count])
    return np.concatenate(found)


def _rows(embedding: Embedding, rows: np.ndarray) -> Embedding:
    return {name: array[rows] for name, array in embedding.items()}
