"""Candidates of a second look at pairs of images, and their maps at a bounded cost.

A pair model compares spatial maps, which are far larger than embeddings: those of a
whole gallery fit neither in memory nor, for the largest galleries, on every disk. So
only the maps of the nearest candidates of a block of queries are brought together;
they come from a file of limited size, or are computed again.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import math
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from reid_jax.retrieval.lists import smallest
from reid_jax.retrieval.ranking import on_accelerator
from reid_jax.retrieval.search import least

Maps = Any
"""A pytree of arrays whose leading axis counts images (`PairScorer.pair_maps`)."""


def candidates(distances: np.ndarray | jax.Array, k: int) -> np.ndarray:
    """The k nearest gallery images of each query.

    Args:
      distances: float [q, G].
      k: how many; all G if there are fewer.

    Returns:
      int32 [q, min(k, G)] gallery indices, nearest first, the earlier of equal ones
      first.
    """
    k = min(k, distances.shape[1])
    if on_accelerator(distances):
        return np.asarray(_least(distances, k)[1])
    rows = [smallest(row, k) for row in np.asarray(distances)]
    return np.array(rows, np.int32).reshape(len(rows), k)


class MapStore:
    """Fetches maps of gallery images, computing each as seldom as its disk allows.

    Maps lie in one nameless temporary file that the system removes when the store is
    closed or the process dies. It holds as many images as fit into `max_bytes`; the
    least recently fetched ones make room. In memory there is never more than the
    maps of one fetch and of one batch.

    Args:
      compute: gives the maps, arrays of leading axis n, of the images whose indices
        [n] it is called with; the layout of one image's maps is always the same.
      directory: an existing local folder for the file.
      max_bytes: bound of the file; too little for one image means nothing is kept.
      batch_size: the most images `compute` is asked for at once.
    """

    def __init__(
        self,
        compute: Callable[[np.ndarray], Maps],
        *,
        directory: str | pathlib.Path,
        max_bytes: int,
        batch_size: int = 64,
    ) -> None:
        self._compute, self._batch_size = compute, batch_size
        self._max_bytes = max_bytes
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115
        self._slots: collections.OrderedDict[int, int] = collections.OrderedDict()
        self._layout: _Layout | None = None

    def __enter__(self) -> MapStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes the file; the store is of no use afterwards."""
        self._file.close()
        self._slots.clear()

    @property
    def bytes_on_disk(self) -> int:
        """Present size of the file."""
        return self._file.seek(0, io.SEEK_END)

    def fetch(self, indices: np.ndarray) -> Maps:
        """Maps of gallery images.

        Args:
          indices: int, of any shape, such as candidates [q, K]; an image that occurs
            several times is read or computed once.

        Returns:
          the pytree that `compute` gives, with NumPy leaves [*indices.shape, ...].
        """
        indices = np.asarray(indices)
        if not indices.size:
            raise ValueError("there are no images to fetch")
        wanted, inverse = np.unique(indices.ravel(), return_inverse=True)
        ends = np.cumsum(np.bincount(inverse))
        places = np.split(np.argsort(inverse, kind="stable"), ends[:-1])
        buffer = None
        for i, record in self._records(wanted):
            if buffer is None:
                buffer = np.empty((indices.size, record.size), np.uint8)
            buffer[places[i]] = record
        maps = self._layout.unpack(buffer)
        return jax.tree.map(lambda x: x.reshape(indices.shape + x.shape[1:]), maps)

    def _records(self, wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Position in `wanted` and bytes of each image."""
        stored = [i for i, index in enumerate(wanted) if index in self._slots]
        missing = [i for i, index in enumerate(wanted) if index not in self._slots]
        for i in stored:  # first, because the images to compute may push them out
            yield i, self._read(int(wanted[i]))
        for start in range(0, len(missing), self._batch_size):
            batch = missing[start : start + self._batch_size]
            for i, record in zip(batch, self._pack(wanted[batch]), strict=True):
                self._write(int(wanted[i]), record)
                yield i, record

    def _pack(self, batch: np.ndarray) -> np.ndarray:
        """Computes the maps of a batch and lays them out as bytes [n, R]."""
        maps = jax.tree.map(np.asarray, self._compute(batch))
        layout = _Layout.of(maps)
        if self._layout not in (None, layout):
            raise ValueError(f"the maps changed from {self._layout} to {layout}")
        self._layout = layout
        return layout.pack(maps)

    def _read(self, index: int) -> np.ndarray:
        self._slots.move_to_end(index)
        record = np.empty(self._layout.size, np.uint8)
        self._file.seek(self._slots[index] * record.size)
        self._file.readinto(record)
        return record

    def _write(self, index: int, record: np.ndarray) -> None:
        capacity = self._max_bytes // record.size
        if not capacity:
            return
        slot = len(self._slots)
        if slot == capacity:
            _, slot = self._slots.popitem(last=False)
        self._file.seek(slot * record.size)
        self._file.write(record)
        self._slots[index] = slot


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How the maps of one image lie one after the other in a record of bytes."""

    structure: jax.tree_util.PyTreeDef
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[np.dtype, ...]

    @classmethod
    def of(cls, maps: Maps) -> _Layout:
        leaves, structure = jax.tree.flatten(maps)
        shapes = tuple(leaf.shape[1:] for leaf in leaves)
        return cls(structure, shapes, tuple(leaf.dtype for leaf in leaves))

    @property
    def sizes(self) -> list[int]:
        pairs = zip(self.shapes, self.dtypes, strict=True)
        return [math.prod(shape) * dtype.itemsize for shape, dtype in pairs]

    @property
    def size(self) -> int:
        return sum(self.sizes)

    def pack(self, maps: Maps) -> np.ndarray:
        """Bytes [n, R] of maps with leaves [n, ...]."""
        flat = [leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(maps)]
        return np.concatenate(
            [np.ascontiguousarray(leaf).view(np.uint8) for leaf in flat], axis=1
        )

    def unpack(self, records: np.ndarray) -> Maps:
        """Maps with leaves [n, ...], views into the bytes [n, R]."""
        parts = np.split(records, np.cumsum(self.sizes)[:-1], axis=1)
        leaves = [
            part.view(dtype).reshape(len(records), *shape)
            for part, shape, dtype in zip(parts, self.shapes, self.dtypes, strict=True)
        ]
        return jax.tree.unflatten(self.structure, leaves)


_least = jax.jit(least, static_argnums=1)
