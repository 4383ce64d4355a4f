"""Parts of a share that an earlier run has left: which still hold, and what they lack.

A part's name says which images it is of, and each is checked on its own: what is
damaged, was removed, or is of images that have changed since is computed again.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Sequence

from reid_jax.embed import files
from reid_jax.embed.files import About
from reid_jax.embed.same import Work
from reid_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Part:
    """A file, and the numbers of the images that it is of."""

    path: pathlib.Path
    numbers: range


def path(folder: pathlib.Path, numbers: range) -> pathlib.Path:
    """Of a part of these images."""
    return folder / f"{numbers.start:012}-{numbers.stop:012}.parquet"


def place(part: Part) -> int:
    """What parts are sorted by."""
    return part.numbers.start


def left(
    folder: pathlib.Path, work: Work, *, overwrite: bool
) -> tuple[list[Part], list[str]]:
    """What an earlier run has left of the same work; the rest is removed.

    Returns:
      parts in their order, and what to say of those that were removed.

    Raises:
      UserError: if it is of other work, unless that is to be overwritten.
    """
    kept: list[Part] = []
    removed: list[pathlib.Path] = []
    for file in sorted(folder.glob("*.parquet")):
        try:
            rows = sum(len(batch) for batch, _ in files.read(file))
            about = files.read_about(file)
        except UserError:
            removed.append(file)
            continue
        other = work.differing(about)
        if other or work.other_images(about):
            if not overwrite:
                raise UserError(
                    f"{folder} holds what was begun of "
                    f"{'; '.join(other) or 'other images'}; choose another --to, or "
                    "--overwrite"
                )
            file.unlink()
            continue
        part = Part(file, _numbers(file))
        start = kept[-1].numbers.stop if kept else work.numbers.start
        whole = rows + len(about.skipped) == len(part.numbers)
        holds = whole and start <= part.numbers.start and _unchanged(part, about, work)
        if holds:
            kept.append(part)
        else:
            removed.append(file)
    for file in removed:
        file.unlink()
    return kept, _note(removed)


def _unchanged(part: Part, about: About, work: Work) -> bool:
    """Whether a part is of images of the share, as they are now."""
    inside = part.numbers.stop <= work.numbers.stop
    return inside and not work.changed(about, part.numbers)


def gaps(parts: Sequence[Part], numbers: range) -> list[range]:
    """Images that no part is of."""
    starts = [numbers.start, *(part.numbers.stop for part in parts)]
    stops = [*(part.numbers.start for part in parts), numbers.stop]
    pairs = zip(starts, stops, strict=True)
    return [range(start, stop) for start, stop in pairs if start < stop]


def _numbers(file: pathlib.Path) -> range:
    match = re.fullmatch(r"(\d+)-(\d+)", file.stem)
    return range(*map(int, match.groups())) if match else range(0)


def _note(removed: Sequence[pathlib.Path]) -> list[str]:
    if not removed:
        return []
    return [
        f"{len(removed)} parts from before were damaged, or their images have changed "
        f"since; they were computed again: {', '.join(f.stem for f in removed[:5])}"
        + (", ..." if len(removed) > 5 else "")
    ]
