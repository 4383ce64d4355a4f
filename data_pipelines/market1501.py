"""Market-1501, and any data set in its folder layout, from a folder or a zip file.

The layout (Zheng et al., "Scalable Person Re-identification: A Benchmark", 2015):
`bounding_box_train`, `query` and `bounding_box_test`, each full of JPEG files named
`<person>_c<camera>...jpg`. Person -1 is junk (dropped), person 0 a distractor (kept in
the gallery).
"""

import collections
import dataclasses
import io
import os
import pathlib
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds

from data_pipelines import records
from reid_jax.errors import UserError

FOLDERS = {
    "train": "bounding_box_train",
    "query": "query",
    "gallery": "bounding_box_test",
}
"""Split -> its folder in the published layout."""

PUBLISHED = {
    "train": (12936, 0, 751),
    "query": (3368, 0, 750),
    "gallery": (15913, 3819, 750),
}
"""Split -> images stored, junk images dropped, identities."""

MIN_SIDE = 16
"""Images with a shorter side than a ViT patch are refused."""

EXPECTED = (
    "Expected a folder (or a zip of it) with bounding_box_train, query and "
    "bounding_box_test full of .jpg files, such as Market-1501-v15.09.15, or the "
    "folder above it."
)
"""What `scan` reads, for messages."""

# The published expression is ([-\d]+)_c(\d); this one also reads camera 10 and above.
_NAME = re.compile(r"(-?\d+)_c(\d+)", re.ASCII)
_SUFFIXES = (".jpg", ".jpeg")
_IGNORED = {"thumbs.db", "desktop.ini", "__macosx"}
_FORMATS = {"JPEG", "MPO", "PNG"}
_INT32 = 2**31
_AGAIN = "Copy or download it again, or remove it"
# What Pillow and zipfile raise on damaged, encrypted and unsupported files.
_UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
    PIL.Image.DecompressionBombError,
)

AnyPath = pathlib.Path | zipfile.Path


@dataclasses.dataclass(frozen=True)
class Entry:
    """One image file: where it is, and what its name says."""

    path: AnyPath
    person: int
    camera: int


@dataclasses.dataclass(frozen=True)
class Split:
    """The images of a split that are stored, and how many junk images are not."""

    entries: tuple[Entry, ...]
    junk: int

    @property
    def identities(self) -> int:
        """Number of distinct persons above 0."""
        return len({e.person for e in self.entries if e.person > 0})

    @property
    def counts(self) -> tuple[int, int, int]:
        """Images stored, junk images dropped, identities."""
        return len(self.entries), self.junk, self.identities


def scan(source: str | os.PathLike) -> dict[str, Split]:
    """Lists a data set in Market-1501's layout by its file names.

    Args:
      source: the folder with the three image folders, its parent, or a zip of either.

    Returns:
      Split name -> images in the order of their names.

    Raises:
      UserError: the folders are not there, one of them has no images, or a file name
        does not say person and camera.
    """
    try:
        root = _find_root(pathlib.Path(source).expanduser())
        return {split: _scan(root / name, split) for split, name in FOLDERS.items()}
    except OSError as error:
        raise UserError(f"--source={source} cannot be read ({error}).") from error


def check_published(splits: dict[str, Split]) -> None:
    """Compares what was found with the published Market-1501.

    Raises:
      UserError: images, junk images or identities of a split differ.
    """
    what = ("images", "junk images", "identities")
    wrong = [
        f"{FOLDERS[split]}: {found} {kind} instead of {expected}"
        for split, published in PUBLISHED.items()
        for kind, found, expected in zip(
            what, splits[split].counts, published, strict=True
        )
        if found != expected
    ]
    if wrong:
        raise UserError(
            f"This is not the published Market-1501 ({'; '.join(wrong)}). If it should "
            "be, download and unpack it again. For a data set of your own in the same "
            "layout add --allow_other_counts --name=<its_name>."
        )


def builder(
    splits: dict[str, Split],
    *,
    name: str,
    data_dir: str | os.PathLike,
    track: Callable[[Sequence[Entry], str], Iterable[Entry]],
) -> tfds.core.DatasetBuilder:
    """TFDS builder that stores scanned images under the data-set name `name`.

    Args:
      splits: from `scan`.
      name: snake-case name, also that of its folder.
      data_dir: where TFDS writes.
      track: wraps the images of a split as they are read, to show progress.
    """

    class Named(MarketBuilder, skip_registration=True):
        """The builder under the name that was asked for."""

    Named.name = name
    return Named(splits=splits, track=track, data_dir=os.fspath(data_dir))


class MarketBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Stores the images as they are, in the order of their names."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        *,
        splits: dict[str, Split],
        track: Callable[[Sequence[Entry], str], Iterable[Entry]],
        data_dir: str,
    ):
        self._splits = splits
        self._track = track
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        junk = {name: split.junk for name, split in self._splits.items()}
        return tfds.core.DatasetInfo(
            builder=self,
            description="Person re-identification in Market-1501's layout.",
            features=records.features(with_parts=False),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(junk_dropped=junk),
        )

    def _split_generators(self, _: Any) -> dict[str, Iterator]:
        return {name: self._generate_examples(name) for name in self._splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        entries = self._splits[split].entries
        for key, entry in enumerate(self._track(entries, split)):
            yield (
                key,
                {
                    "image": io.BytesIO(_read_image(entry.path)),
                    "person": np.int32(entry.person),
                    "camera": np.int32(entry.camera),
                    "filename": entry.path.name,
                },
            )


def _find_root(source: pathlib.Path) -> AnyPath:
    """The folder that holds the three image folders, `source` or right below it."""
    if not source.exists():
        raise UserError(f"--source={source} does not exist. {EXPECTED}")
    top = source if source.is_dir() else _open_zip(source)
    below = [p for p in _children(top) if p.is_dir()]
    roots = [p for p in (top, *below) if _has_folders(p)]
    if len(roots) == 1 or (roots and roots[0] is top):
        return roots[0]
    if roots:
        names = ", ".join(p.name for p in roots)
        raise UserError(
            f"--source={source} holds several data sets: {names}. Name one of them."
        )
    raise UserError(f"{EXPECTED} Found in {source}: {_shown(_children(top))}.")


def _open_zip(source: pathlib.Path) -> zipfile.Path:
    try:
        archive = zipfile.ZipFile(source)
    except zipfile.BadZipFile as error:
        raise UserError(
            f"--source={source} is neither a folder nor a whole zip file ({error}). "
            "Download it again, or unpack it and name the folder."
        ) from error
    (name, count), *_ = collections.Counter(archive.namelist()).most_common(1) or [
        ("", 0)
    ]
    if count > 1:
        raise UserError(f"{source} holds {name} {count} times. Pack it again.")
    return zipfile.Path(archive)


def _children(folder: AnyPath) -> list[AnyPath]:
    """Entries of a folder by name, without hidden files and those of file managers."""
    visible = (
        p
        for p in folder.iterdir()
        if not p.name.startswith(".") and p.name.lower() not in _IGNORED
    )
    return sorted(visible, key=lambda p: p.name)


def _has_folders(folder: AnyPath) -> bool:
    return all((folder / name).is_dir() for name in FOLDERS.values())


def _shown(paths: Sequence[AnyPath]) -> str:
    if not paths:
        return "nothing"
    names = ", ".join(p.name for p in paths[:6])
    return names + (f" and {len(paths) - 6} more" if len(paths) > 6 else "")


def _scan(folder: AnyPath, split: str) -> Split:
    entries, junk = [], 0
    for path in _children(folder):
        person, camera = _parse(path, split)
        if person == -1:
            junk += 1
        else:
            entries.append(Entry(path, person, camera - 1))
    if not any(e.person > 0 for e in entries):
        raise UserError(f"{folder} has no image of an identity. {EXPECTED}")
    return Split(tuple(entries), junk)


def _parse(path: AnyPath, split: str) -> tuple[int, int]:
    """Person and camera (counted from 1) of a file name."""
    match = _NAME.match(path.name)
    if not path.name.lower().endswith(_SUFFIXES) or not match:
        raise _bad_file(
            path,
            "the name is not <person>_c<camera>...jpg",
            "Rename or remove it",
        )
    person, camera = int(match[1]), int(match[2])
    least = 0 if split == "gallery" else 1
    if person != -1 and not least <= person < _INT32:
        raise _bad_file(
            path,
            f"person {match[1]} is out of range",
            "Identities count from 1; 0 is a distractor, in bounding_box_test only; "
            "-1 is junk. Rename or remove it",
        )
    if not 1 <= camera < _INT32:
        raise _bad_file(
            path,
            f"camera {match[2]} is out of range",
            "Cameras count from c1: rename it",
        )
    if not path.name.isprintable():
        raise _bad_file(path, "the name has unprintable characters", "Rename it")
    return person, camera


def _read_image(path: AnyPath) -> bytes:
    """The bytes of an image that decodes in full to three channels."""
    try:
        data = path.read_bytes()
        if not data:
            raise ValueError("the file is empty")
        with PIL.Image.open(io.BytesIO(data)) as image:
            image.load()
    except _UNREADABLE as error:
        reason = _reason(error)
        raise _bad_file(path, f"it cannot be read ({reason})", _AGAIN) from error
    if image.format not in _FORMATS:
        raise _bad_file(path, f"it is a {image.format} file", "Save it as JPEG")
    if image.mode != "RGB":
        raise _bad_file(
            path,
            f"it is not an RGB image of 3 channels but has mode {image.mode}",
            "Save it as an RGB JPEG",
        )
    if min(image.size) < MIN_SIDE:
        raise _bad_file(
            path,
            f"{image.width} x {image.height} pixels are less than a patch "
            f"({MIN_SIDE} x {MIN_SIDE})",
            "Remove it",
        )
    return data


def _reason(error: Exception) -> str:
    # Pillow's own message would print the address of a buffer.
    unknown = isinstance(error, PIL.UnidentifiedImageError)
    return "it is no image" if unknown else str(error)


def _bad_file(path: AnyPath, problem: str, remedy: str) -> UserError:
    shown = str(path).encode("unicode_escape").decode()
    return UserError(f"{shown}: {problem}. {remedy}. Nothing was stored.")
