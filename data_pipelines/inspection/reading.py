"""Every image of a prepared data set, decoded once, and what is kept of it."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import os

import numpy as np
import tqdm

from data_pipelines import images, prepared
from data_pipelines.entries import SPLITS
from data_pipelines.part_labels.kinds import UNLABELLED
from data_pipelines.records import Records

_THREADS = min(4, os.cpu_count() or 1)


@dataclasses.dataclass(frozen=True)
class Image:
    """What is kept of one image: `size` is None where it cannot be decoded."""

    size: tuple[int, int] | None
    digest: bytes
    labelled: bool


@dataclasses.dataclass(frozen=True)
class Inspected:
    """A split and what is known of its images, in the order of the records."""

    stored: Records
    images: list[Image]

    @property
    def identities(self) -> np.ndarray:
        """Persons above 0, sorted."""
        return np.unique(self.stored.person[self.stored.person > 0])


def inspect(
    dataset: str, data_dir: str | os.PathLike, *, progress: bool = True
) -> dict[str, Inspected]:
    """Reads every image of a prepared data set.

    Returns:
      Split name -> its records and images.

    Raises:
      UserError: the data set is not there or is damaged.
    """
    found = {}
    for split in _splits(dataset, data_dir):
        stored = prepared.open_records(dataset, split, data_dir)
        found[split] = Inspected(stored, _read(stored, split, progress))
    return found


def _read(stored: Records, split: str, progress: bool) -> list[Image]:
    look = functools.partial(_look, stored)
    with (
        concurrent.futures.ThreadPoolExecutor(_THREADS) as pool,
        # Closed first, it calls off what was not begun: so Ctrl-C need not wait for it.
        contextlib.closing(pool.map(look, range(len(stored)))) as looked,
        tqdm.tqdm(
            looked,
            desc=split,
            total=len(stored),
            unit=" images",
            leave=False,
            disable=not progress,
        ) as bar,
    ):
        return list(bar)


def _splits(dataset: str, data_dir: str | os.PathLike) -> list[str]:
    present = prepared.split_names(dataset, data_dir)
    return sorted(
        present, key=lambda s: SPLITS.index(s) if s in SPLITS else len(SPLITS)
    )


def _look(stored: Records, index: int) -> Image:
    record = stored[index]
    digest = hashlib.sha256(record["image"]).digest()
    try:
        size = images.decode(record["image"]).shape[:2]
        labelled = "parts" in record and bool(
            (images.decode_parts(record["parts"]) != UNLABELLED).any()
        )
    except ValueError:
        return Image(None, digest, False)
    return Image(size, digest, labelled)
