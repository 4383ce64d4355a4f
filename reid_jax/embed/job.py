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
from reid_jax.embed import files, parts, same
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
    if job.target.is_dir():
        raise UserError(f"--to={job.target} is a folder: name a file in it")
    work = same.Work(job.listing, job.shard, job.flip, extractor.network)
    if job.target.exists() and not job.overwrite:
        out = len(same.check(job.target, work).skipped)
        without = f", without {out} images that could not be read" if out else ""
        return f"{job.target} is already there{without}; nothing was done"
    storage.check_writable(job.target.parent)
    folder = job.target.with_name(f".{job.target.name}.parts")
    with storage.written(job.target.parent), _held(folder):
        share = _Share(job, extractor, work, folder)
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
        self, job: Job, extractor: Extractor, work: same.Work, folder: pathlib.Path
    ):
        self._job, self._extractor = job, extractor
        self._work, self._folder, self._numbers = work, folder, work.numbers
        self._parts, self._again = parts.left(folder, work, overwrite=job.overwrite)
        self._begun = self.done
        self._blocks: list[tuple[list[Item], files.Embedding]] = []
        self._bad: list[tuple[int, str]] = []
        self._first: tuple[float, int] | None = None
        self._read = 0

    @property
    def done(self) -> int:
        """Images that parts are of."""
        return sum(len(part.numbers) for part in self._parts)

    @property
    def kept(self) -> str:
        """What stands when the job ends before its time."""
        if not self.done:
            return "nothing is kept yet, and the same command begins anew"
        return (
            f"{self.done} of {len(self._numbers)} images are kept, and the same "
            "command goes on from there"
        )

    def embed(self) -> None:
        """All images that no part has; what was done is kept, whatever happens."""
        with tqdm(
            None,
            "embedding",
            len(self._numbers),
            unit="img",
            initial=self.done,
            leave=False,
        ) as bar:
            bar.set_postfix_str("the first batch is compiled first")
            for gap in parts.gaps(self._parts, self._numbers):
                self._start = gap.start
                try:
                    self._embed(gap, bar)
                finally:
                    if self._blocks:
                        self._keep()

    def _embed(self, gap: range, bar: tqdm) -> None:
        stream = self._extractor.stream(
            self._job.listing.items(gap),
            flip=self._job.flip,
            batch_size=self._job.batch_size,
            skipped=self._skip if self._job.skip_bad_images else None,
        )
        stop = gap.start
        for items, embedding in stream:
            self._blocks.append((items, embedding))
            read, stop = items[-1].place + 1 - stop, items[-1].place + 1
            self._read += read
            self._first = self._first or (time.monotonic(), self._read)
            bar.set_postfix_str("", refresh=False)
            bar.update(read)
            if sum(len(block) for block, _ in self._blocks) >= ROWS:
                self._keep()

    def finish(self) -> str:
        """Makes one file of the parts; says what was done."""
        if not self._parts:
            raise UserError(
                f"none of {len(self._numbers)} images can be read: {self._bad[0][1]}"
            )
        unread = tuple(text for _, text in self._bad)
        ordered = [part.path for part in sorted(self._parts, key=parts.place)]
        written = self._folder / "whole.writing"
        about = files.join(
            ordered,
            written,
            dataclasses.replace(self._work.about(), skipped=unread),
            kind=self._job.target.suffix,
            images=len(self._numbers),
        )
        os.replace(written, self._job.target)
        for part in ordered:
            part.unlink()
        return "\n".join([*self._skipped(about), *self._again, self._speed(about)])

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
        numbers = range(self._start, stop)
        # Images are read ahead: some that were skipped belong to a later part.
        skipped = tuple(text for place, text in self._bad if place in numbers)
        about = dataclasses.replace(self._work.about(numbers), skipped=skipped)
        part = parts.Part(parts.path(self._folder, numbers), numbers)
        files.write_part(part.path, files.table(items, embedding, about))
        self._parts.append(part)
        self._bad = [(place, text) for place, text in self._bad if place not in numbers]
        self._blocks, self._start = [], stop

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
            since, before = self._first
            count = self._read - before
            seconds = max(time.monotonic() - since, 1e-9)
            text += f"; {count / seconds:.1f} images/s" if count else ""
        return text
