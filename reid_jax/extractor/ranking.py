"""The nearest images of each query."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The K nearest gallery images of each of Q queries, nearest first.

    Printed, it is a table.

    Attributes:
      index: int32 [Q, K], their places in the gallery; of equally near ones the
        earlier is first.
      distance: float32 [Q, K].
      query, gallery: names of the images: their paths, where they are files.
    """

    index: np.ndarray
    distance: np.ndarray
    query: tuple[str, ...]
    gallery: tuple[str, ...]

    @property
    def names(self) -> list[list[str]]:
        """[Q][K] names of the nearest."""
        return [[self.gallery[i] for i in row] for row in self.index]

    def __str__(self) -> str:
        lines = []
        for query, names, row in zip(
            self.query, self.names, self.distance, strict=True
        ):
            found = enumerate(zip(row, names, strict=True), start=1)
            lines.append(query)
            lines += [f"{rank:4}  {gap:.4f}  {name}" for rank, (gap, name) in found]
        return "\n".join(lines)
