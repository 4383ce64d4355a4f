"""MSMT17, version 1 or 2 (faces blurred), from a folder or a zip file.

Wei et al., "Person Transfer GAN to Bridge Domain Gap for Person Re-Identification",
2018. Two image folders and four lists, `list_{train,val,query,gallery}.txt`, whose
lines are `<path in the folder> <person>`. The camera is the third field of the file
name. Persons count from 0, and in the training and the test folder alike: here those
of training are shifted by one, and those of test follow after them.
"""

import functools
import os
import re
from collections.abc import Sequence

from data_pipelines.entries import Counts, Entry, Split, bad_file, make_entry
from data_pipelines.readers import sources
from data_pipelines.readers.sources import AnyPath, DataSet
from reid_jax.errors import UserError

VERSIONS = (("mask_train_v2", "mask_test_v2"), ("train", "test"))
"""Folders of the training and the test images, version 2 and version 1."""

LISTS = tuple(f"list_{part}.txt" for part in ("train", "val", "query", "gallery"))

_LINE = re.compile(
    r"(\d+/\d+_\d+_(\d{1,9})_[^/]*\.jpe?g)\s+(\d{1,9})", re.ASCII | re.IGNORECASE
)

_Listed = Sequence[tuple[str, int, int]]


def scan(source: str | os.PathLike, *, val: bool) -> dict[str, Split]:
    """Lists MSMT17 by its list files.

    Args:
      source: `MSMT17_V1` or `MSMT17_V2`, its parent, or a zip of either.
      val: whether the images of `list_val.txt`, of the same persons as those of
        `list_train.txt`, belong to the training images.

    Raises:
      UserError: folders or lists are not there, or a line of a list does not fit.
    """
    layouts = [(*folders, *LISTS) for folders in VERSIONS]
    root, (train, test, *_) = sources.find_root(source, *layouts, expected=_EXPECTED)
    listed = {name: _read_list(root / name) for name in LISTS}
    learnt, checked, query, gallery = (listed[name] for name in LISTS)
    # Validation images count here even where they are left out, so that a person of
    # the test images has the same number either way.
    first = 2 + max(person for _, _, person in (*learnt, *checked))
    chosen = (*learnt, *checked) if val else learnt
    return {
        "train": _split(root / train, chosen, first=1),
        "query": _split(root / test, query, first=first),
        "gallery": _split(root / test, gallery, first=first),
    }


def _read_list(path: AnyPath) -> _Listed:
    """Path in the image folder, camera from 1, and person from 0 of each line."""
    listed = []
    for number, line in enumerate(sources.read_lines(path), start=1):
        match = _LINE.fullmatch(line)
        if not match:
            raise bad_file(
                path,
                f"line {number}, {line[:80]!r}, is not "
                "<folder>/<person>_<number>_<camera>_...jpg <person>",
                "Download the list again",
            )
        listed.append((match[1], int(match[2]), int(match[3])))
    if not listed:
        raise UserError(f"The list {path} is empty. {_EXPECTED}")
    return listed


def _split(folder: AnyPath, listed: _Listed, *, first: int) -> Split:
    """The listed images; persons are numbered from `first` on."""
    entries: list[Entry] = []
    missing = []
    for name, camera, person in sorted(set(listed)):
        path = folder / name
        if path.is_file():
            entry = make_entry(path, person=person + first, camera=camera - 1)
            entries.append(entry)
        else:
            missing.append(f"{folder.name}/{name}")
    sources.require_identities(entries, where=folder, expected=_EXPECTED)
    return Split(tuple(entries), missing=tuple(missing))


_EXPECTED = (
    "Expected MSMT17_V1 or MSMT17_V2, a folder (or a zip of it) with train and test "
    "or mask_train_v2 and mask_test_v2, and with list_train.txt, list_val.txt, "
    "list_query.txt and list_gallery.txt."
)
_TEST = {
    "query": Counts(images=11659, identities=3060),
    "gallery": Counts(images=82161, identities=3060),
}

MSMT17 = DataSet(
    name="msmt17",
    title="MSMT17",
    scan=functools.partial(scan, val=True),
    expected=_EXPECTED,
    published={"train": Counts(images=32621, identities=1041), **_TEST},
)

MSMT17_NOVAL = DataSet(
    name="msmt17_noval",
    title="MSMT17 without validation images",
    scan=functools.partial(scan, val=False),
    expected=_EXPECTED,
    published={"train": Counts(images=30248, identities=1041), **_TEST},
)
