"""Embedding one share of a list of images; a share that was killed goes on.

What is done lies in a hidden folder beside the file that it becomes: `.NAME.parts` with
a Parquet for every thousand images or so. Its lock ends with its process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import shutil
import time
from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from reid_jax import staging, storage
from reid_jax.embed import files
from reid_jax.embed.files import About
from reid_jax.embed.listing import Item, Listing
from reid_jax.errors import UserError
from reid_jax.extractor.extractor import Extractor
from reid_jax.extractor.images import BadImage, Source

ROWS = 1024
"""Images that are kept at once: a kill loses fewer than this and a batch."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A share to embed.

    Attributes:
      listing: the images.
      target: file to be written, `.parquet` or `.npz`.
      shard: which share, from 0, and of how many.
      flip, batch_size: as for `Extractor.embed`.
      skip_bad_images: leaves out images that cannot be read, and lists them.
      overwrite: replaces a file, or what was begun of one, of other images or of
        another network.
    """

    listing: Listing
    target: pathlib.Path
    shard: tuple[int, int] = (0, 1)
    flip: bool = False
    batch_size: int | None = None
    skip_bad_images: bool = False
    overwrite: bool = False


def run(job: Job, extractor: Extractor) -> str:
    """Embeds the share, unless it is done; says what was done.

    Raises:
      UserError: a file of another network or other images is there, another process is
        at it, an image cannot be read, or the disk is full. What was done is kept.
      KeyboardInterrupt: after Ctrl-C; says what is kept.
    """
    numbers = job.listing.share(*job.shard)
    about = _about(job, extractor, numbers)
    if job.target.exists() and not job.overwrite:
        _check_same(job.target, about)
        return f"{job.target} is already there; nothing was done"
    storage.check_writable(job.target.parent)
    folder = job.target.with_name(f".{job.target.name}.parts")
    with storage.written(job.target.parent), _held(folder):
        share = _Share(job, extractor, numbers, about, folder)
        try:
            share.embed()
            return share.finish()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted; {share.kept}") from None
        except BadImage as error:
            raise UserError(
                f"{error}. Repair it, or leave such images out with --skip_bad_images; "
                f"{share.kept}"
            ) from error


def _about(job: Job, extractor: Extractor, numbers: range) -> About:
    network = extractor.network
    return About(
        method=network.method,
        fingerprint=network.fingerprint,
        image_size=network.image_size,
        flip=job.flip,
        images=job.listing.digest(numbers),
        shard=job.shard,
        folder=os.getcwd(),
    )


def _check_same(path: pathlib.Path, about: About) -> None:
    """Raises UserError for a file of other work; says what differs."""
    there = files.read_about(path)
    if there.job == about.job:
        return
    names = ("fingerprint", "image_size", "flip", "images", "shard")
    differing = [
        f"{name} {was} there, {now} here"
        for name, was, now in zip(names, there.job, about.job, strict=True)
        if was != now
    ]
    raise UserError(
        f"{path} holds embeddings of another network or of other images "
        f"({'; '.join(differing)}); choose another --to, or --overwrite"
    )


@contextlib.contextmanager
def _held(folder: pathlib.Path) -> Iterator[None]:
    """Holds the folder of parts; it stays where there are any."""
    with staging.locked(folder, doing="embedding"):
        for leftover in folder.glob("*.writing"):
            leftover.unlink()
        try:
            yield
        finally:
            if not list(folder.glob("*.parquet")):
                shutil.rmtree(folder, ignore_errors=True)


class _Share:
    """The state of a job that runs."""

    def __init__(
        self,
        job: Job,
        extractor: Extractor,
        numbers: range,
        about: About,
        folder: pathlib.Path,
    ):
        self._job, self._extractor, self._numbers = job, extractor, numbers
        self._about, self._folder = about, folder
        self._parts = _parts(job, folder, about)
        self.done = _stop(self._parts[-1]) - numbers.start if self._parts else 0
        self._begun = self.done
        self._blocks: list[tuple[list[Item], files.Embedding]] = []
        self._bad: list[tuple[int, str]] = []
        self._first: tuple[float, int] | None = None

    @property
    def kept(self) -> str:
        """What stands when the job ends before its time."""
        return (
            f"{self.done} of {len(self._numbers)} images are kept, and the same "
            "command goes on from there"
        )

    def embed(self) -> None:
        """All images that no part has; what was done is kept, whatever happens."""
        try:
            self._embed()
        finally:
            if self._blocks:
                self._keep()
        self.done = len(self._numbers)

    def _embed(self) -> None:
        stream = self._extractor.stream(
            self._job.listing.items(self._numbers[self.done :]),
            flip=self._job.flip,
            batch_size=self._job.batch_size,
            skipped=self._skip if self._job.skip_bad_images else None,
        )
        with tqdm(
            *(None, "embedding", len(self._numbers)),
            unit="img",
            initial=self.done,
            leave=False,
        ) as bar:
            bar.set_postfix_str("the first batch is compiled first")
            for items, embedding in stream:
                self._blocks.append((items, embedding))
                self._first = self._first or (time.monotonic(), items[-1].place)
                bar.set_postfix_str("", refresh=False)
                bar.update(items[-1].place + 1 - self._numbers.start - bar.n)
                if sum(len(block) for block, _ in self._blocks) >= ROWS:
                    self._keep()

    def finish(self) -> str:
        """Makes one file of the parts; says what was done."""
        if not self._parts:
            raise UserError(
                f"none of {len(self._numbers)} images can be read: {self._bad[0][1]}"
            )
        whole = self._folder / "whole.writing"
        about = files.join(
            self._parts,
            whole,
            kind=self._job.target.suffix,
            skipped=[text for _, text in self._bad],
        )
        os.replace(whole, self._job.target)
        for part in self._parts:
            part.unlink()
        return "\n".join([*self._skipped(about), self._speed(about)])

    def _skip(self, source: Source, error: BadImage) -> None:
        self._bad.append((source.place, str(error)))

    def _keep(self) -> None:
        """Writes a part of what has been embedded."""
        items = [item for block, _ in self._blocks for item in block]
        stop = items[-1].place + 1
        embedding = {
            name: np.concatenate([block[name] for _, block in self._blocks])
            for name in self._blocks[0][1]
        }
        # Images are read ahead: some that were skipped belong to a later part.
        skipped = tuple(text for place, text in self._bad if place < stop)
        about = dataclasses.replace(self._about, skipped=skipped)
        part = (
            self._folder / f"{self._numbers.start + self.done:012}-{stop:012}.parquet"
        )
        files.write_part(part, files.table(items, embedding, about))
        self._parts.append(part)
        self._bad = [(place, text) for place, text in self._bad if place >= stop]
        self._blocks, self.done = [], stop - self._numbers.start

    def _skipped(self, about: About) -> list[str]:
        if not about.skipped:
            return []
        some = [f"  {line}" for line in about.skipped[:20]]
        more = len(about.skipped) - len(some)
        return [
            f"{len(about.skipped)} images were left out:",
            *some,
            *([f"  and {more} more, which the file names"] if more else []),
        ]

    def _speed(self, about: About) -> str:
        """What was written, and how fast, compilation aside."""
        total = len(self._numbers) - len(about.skipped)
        text = f"{total} images in {self._job.target}"
        if self._begun:
            text += f", {self._begun} of them from before"
        if self._first:
            since, place = self._first
            count = self._numbers.stop - 1 - place
            seconds = max(time.monotonic() - since, 1e-9)
            text += f"; {count / seconds:.1f} images/s" if count else ""
        return text


def _parts(job: Job, folder: pathlib.Path, about: About) -> list[pathlib.Path]:
    """What an earlier run has left of the same work.

    Raises:
      UserError: if it is of other work, unless the job is to overwrite that.
    """
    parts = sorted(folder.glob("*.parquet"))
    try:
        for part in parts[:1]:
            _check_same(part, about)
    except UserError:
        if not job.overwrite:
            raise
        for part in parts:
            part.unlink()
        return []
    return parts


def _stop(part: pathlib.Path) -> int:
    """The number of the first image behind a part."""
    return int(part.stem.partition("-")[2])
