"""What a reader lists: images with person and camera, by split.

Readers make these from file names, without opening an image; part labels are attached
to them, and the store writes them.
"""

import dataclasses
import hashlib
import json
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from reid_jax.errors import UserError

SPLITS = ("train", "query", "gallery")
"""The splits of a data set in their usual order; some sets have no `train`."""

INT32 = 2**31
"""Persons and cameras are stored as int32, so they are below this."""

_BAD_SHOWN = 20

Item = TypeVar("Item")
Result = TypeVar("Result")


class File(Protocol):
    """What an image is read from: a path, a member of a zip, or anything like them."""

    name: str

    def read_bytes(self) -> bytes:
        """The encoded image."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One image: where it is, and what its name says.

    Attributes:
      path: what the image is read from; its `name` is stored with it.
      person: positive for an identity, 0 for a distractor (gallery only).
      camera: counted from 0.
      parts: makes the part labels of the image when called with its height and width:
        a single-channel PNG of that size (classes of `part_labels.kinds`). None
        where the image has no labels.
    """

    path: File
    person: int
    camera: int
    parts: Callable[[int, int], bytes] | None = None


@dataclasses.dataclass(frozen=True)
class Split:
    """The images of a split.

    Attributes:
      entries: the images that are stored, in the order in which they are stored.
      junk: how many images the protocol leaves out (Market-1501's person -1).
      missing: files that a list lying with the data names but that are not there.
      remarks: what the user is told after preparing.
      person_names: person -> its name in the source, where the reader numbered them.
      camera_names: camera -> its name in the source, where that is not the number
        counted from 1.
    """

    entries: tuple[Entry, ...]
    junk: int = 0
    missing: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    person_names: Mapping[int, str] = dataclasses.field(default_factory=dict)
    camera_names: Mapping[int, str] = dataclasses.field(default_factory=dict)

    @property
    def counts(self) -> "Counts":
        """What is there, to compare with what was published."""
        persons = {e.person for e in self.entries if e.person > 0}
        return Counts(len(self.entries), len(persons), self.junk)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """As the stored split will have it; see `fingerprint`."""
        return fingerprint(
            [e.path.name for e in self.entries],
            [e.person for e in self.entries],
            [e.camera for e in self.entries],
        )


@dataclasses.dataclass(frozen=True)
class Counts:
    """Images stored, distinct persons above 0, junk images left out.

    As published counts, `identities` None is not compared.
    """

    images: int
    identities: int | None
    junk: int = 0


def make_entry(
    path: File, *, person: int, camera: int, distractors: bool = False
) -> Entry:
    """An image whose person and camera (from 0) can be stored.

    Args:
      path: what it is read from.
      person: identity; 0, a distractor, only where `distractors` says so.
      camera: counted from 0.
      distractors: whether person 0 may be there, as in a gallery.

    Raises:
      UserError: person, camera or name cannot be stored.
    """
    if not (0 if distractors else 1) <= person < INT32:
        raise bad_file(
            path,
            f"person {person} is out of range",
            "Identities count from 1; 0 is a distractor, in the gallery only; -1 is "
            "junk. Rename or remove it",
        )
    if not 0 <= camera < INT32:
        raise bad_file(
            path,
            f"camera {camera + 1} is out of range",
            "Cameras count from 1: rename it",
        )
    if not is_text(path.name):
        raise bad_file(path, "the name has unprintable characters", "Rename it")
    return Entry(path, person, camera)


class BadFile(UserError):
    """A mistake in one file; `problem` does not say what was done about it."""

    def __init__(self, problem: str):
        super().__init__(f"{problem} Nothing was stored.")
        self.problem = problem


def bad_file(path: object, problem: str, remedy: str) -> BadFile:
    """A mistake in one file, named so that any terminal can show it."""
    return BadFile(f"{printable(path)}: {problem}. {remedy}.")


def bad_files(found: Sequence[BadFile], hint: str = "") -> UserError:
    """One message of all the files that cannot be used, the first few by name.

    Args:
      found: one or more.
      hint: a sentence on what else can be done.
    """
    end = " ".join(filter(None, (hint, "Nothing was stored.")))
    if len(found) == 1:
        return UserError(f"{found[0].problem} {end}")
    head = f"{len(found)} files cannot be used:"
    return UserError("\n".join([head, *problems(found), end]))


def problems(found: Sequence[BadFile]) -> list[str]:
    """A line for each of the first few files, and how many more there are."""
    lines = [one.problem for one in found[:_BAD_SHOWN]]
    if len(found) > _BAD_SHOWN:
        lines.append(f"and {len(found) - _BAD_SHOWN} more.")
    return lines


def read_all(make: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """What `make` gives for each item.

    Raises:
      UserError: it names all files that cannot be used, not only the first.
    """
    made, bad = [], []
    for item in items:
        try:
            made.append(make(item))
        except BadFile as error:
            bad.append(error)
    if bad:
        raise bad_files(bad)
    return made


def fingerprint(
    names: Sequence[str], persons: Sequence[int], cameras: Sequence[int]
) -> dict[str, Any]:
    """What tells one list of images from another, without opening an image.

    Returns:
      `images` and `identities` (persons above 0), and `digest`, 16 hexadecimal digits
      of the SHA-256 of names, persons and cameras in their order. JSON can hold it.
    """
    rows = zip(names, map(int, persons), map(int, cameras), strict=True)
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row).encode() + b"\n")
    return {
        "images": len(names),
        "identities": len({int(p) for p in persons if p > 0}),
        "digest": digest.hexdigest()[:16],
    }


def is_text(name: str) -> bool:
    """Whether a name is of what a line can show, with spaces of any kind.

    Python has macOS' narrow space in the names of screenshots for unprintable.
    """
    return all(x.isprintable() or unicodedata.category(x) == "Zs" for x in name)


def printable(path: object) -> str:
    """A path or name as any terminal can show it."""
    return str(path).encode("unicode_escape").decode()


def shown(names: Sequence[str], *, most: int = 6) -> str:
    """The first few names and how many more there are; "nothing" for none."""
    if not names:
        return "nothing"
    some = ", ".join(map(printable, names[:most]))
    return some + (f" and {len(names) - most} more" if len(names) > most else "")
