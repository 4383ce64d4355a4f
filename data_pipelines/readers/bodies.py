"""What the readers of occluded and partial data sets share.

These sets are folders of occluded (or partial) and of whole bodies, the images lying
there directly or in one folder per person. Cameras are unknown; the field writes 0 for
occluded images and 1 for whole ones, so that a model which uses cameras sees two.
"""

import collections
import re
import zipfile
from collections.abc import Iterable

from data_pipelines.entries import Entry, Split, bad_file, make_entry, read_all
from data_pipelines.readers.sources import (
    AnyPath,
    children,
    require_identities,
    visible,
)

OCCLUDED_CAMERA = 0
WHOLE_CAMERA = 1
CAMERA_NAMES = {OCCLUDED_CAMERA: "occluded", WHOLE_CAMERA: "whole"}
"""What is shown instead of a camera's name."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
"""Of images, in lower case; Occluded-REID comes as TIFF."""

BEFORE_UNDERSCORE = re.compile(r"(\d+)(?:_.*)?", re.ASCII)
"""`<person>` or `<person>_<anything>`."""


def scan_folder(
    folder: AnyPath, *, camera: int, person: re.Pattern, expected: str
) -> tuple[Entry, ...]:
    """Lists the images of a folder and of the person folders in it.

    Args:
      folder: with images, or with a folder of images for each person.
      camera: given to all of them.
      person: matches the whole of a file name without its suffix; its first group is
        the person.
      expected: what the source should be, for messages.

    Returns:
      The images by folder and name.

    Raises:
      UserError: no image, a file that is none, or a name without a person or with
        another one than its folder's.
    """

    def read(file: tuple[str | None, AnyPath]) -> Entry:
        above, path = file
        return make_entry(path, person=_person(path, above, person), camera=camera)

    entries = tuple(read_all(read, _files(folder)))
    require_identities(entries, where=folder, expected=expected)
    return entries


def query_and_gallery(
    query: tuple[Entry, ...], gallery: tuple[Entry, ...], *, each: int
) -> dict[str, Split]:
    """The two splits of a set that has `each` images of every person in both."""
    persons = {e.person for e in (*query, *gallery)}
    return {
        "query": split(query, missing=missing(query, persons, each=each)),
        "gallery": split(gallery, missing=missing(gallery, persons, each=each)),
    }


def split(entries: tuple[Entry, ...], *, missing: tuple[str, ...] = ()) -> Split:
    """A split of images that are occluded or whole."""
    return Split(entries, missing=missing, camera_names=CAMERA_NAMES)


def missing(
    entries: tuple[Entry, ...], persons: set[int], *, each: int
) -> tuple[str, ...]:
    """Says which of the persons have fewer than `each` images, and how many."""
    found = collections.Counter(e.person for e in entries)
    return tuple(
        f"{each - found[p]} of the {each} images of person {p}"
        for p in sorted(persons)
        if found[p] < each
    )


def _person(path: AnyPath, folder: str | None, pattern: re.Pattern) -> int:
    stem, dot, suffix = path.name.rpartition(".")
    match = pattern.fullmatch(stem)
    if (dot + suffix).lower() not in SUFFIXES or not match:
        raise bad_file(
            path,
            f"the name is not that of an image of a person ({pattern.pattern} and one "
            f"of {', '.join(SUFFIXES)})",
            "Rename or remove it",
        )
    person = int(match[1])
    if folder is not None and (not folder.isdecimal() or int(folder) != person):
        raise bad_file(
            path,
            f"by its name it shows person {person}, but it lies in folder {folder}",
            "Move or rename it",
        )
    return person


def _files(folder: AnyPath) -> Iterable[tuple[str | None, AnyPath]]:
    """(Name of the person's folder if any, file) by folder and name."""
    if isinstance(folder, zipfile.Path):
        yield from _files_of_zip(folder)
        return
    for child in children(folder):
        if child.is_dir():
            yield from ((child.name, path) for path in children(child))
        else:
            yield None, child


def _files_of_zip(folder: zipfile.Path) -> Iterable[tuple[str | None, AnyPath]]:
    # One pass: listing a folder of a zip walks all names in it, and here are thousands.
    below = collections.defaultdict(list)
    for name in folder.root.namelist():
        if name.startswith(folder.at) and not name.endswith("/"):
            *above, last = name[len(folder.at) :].split("/")
            if all(map(visible, (*above, last))):
                below["/".join(above)].append((last, name))
    for above in sorted(below):
        for _, name in sorted(below[above]):
            yield above or None, zipfile.Path(folder.root, name)
