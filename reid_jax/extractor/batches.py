"""Batches of one size, from images of which some cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from reid_jax.extractor.images import BadImage, Source

Row = Mapping[str, np.ndarray]
"""`image` uint8 [H, W, 3], and what is read beside it."""

Batch = tuple[list[Source], Row]
"""The images, and their arrays with a leading axis that may be longer."""


def usable(
    rows: Iterable[tuple[Source, Row | BadImage]],
    skipped: Callable[[Source, BadImage], None] | None,
) -> Iterator[tuple[Source, Row]]:
    """The images that could be read.

    Raises:
      BadImage: for one that could not, unless there is `skipped`, which is told of it.
    """
    for source, row in rows:
        if not isinstance(row, BadImage):
            yield source, row
        elif skipped is None:
            raise row
        else:
            skipped(source, row)


def padded(rows: Iterable[tuple[Source, Row]], size: int) -> Iterator[Batch]:
    """Stacks rows to arrays [size, ...]; the last image fills up the last batch.

    A batch has what all of its rows have.
    """
    batch: list[tuple[Source, Row]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield _stacked(batch, size)
            batch = []
    if batch:
        yield _stacked(batch, size)


def _stacked(batch: list[tuple[Source, Row]], size: int) -> Batch:
    rows = [row for _, row in batch]
    rows += rows[-1:] * (size - len(rows))
    return [source for source, _ in batch], {
        name: np.stack([row[name] for row in rows])
        for name in rows[0]
        if all(name in row for row in rows)
    }
