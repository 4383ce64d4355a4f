"""Occluded-REID (Zhuo et al., "Occluded Person Re-identification", 2018).

200 persons, 5 occluded and 5 whole-body images of each, `<person>_<number>.tif` in
`occluded_body_images/<person>` and `whole_body_images/<person>`. Occluded images are
the queries. There is no training split: models are trained on Market-1501.

`occluded_reid_half` is the other protocol in use (DROP): half of the persons train, the
other half test. No list was published, so the split is drawn here, the same on every
machine; figures on it are not comparable with those on all 200 persons.
"""

import hashlib
import os

from data_pipelines.entries import Counts, Entry, Split
from data_pipelines.readers.bodies import (
    BEFORE_UNDERSCORE,
    OCCLUDED_CAMERA,
    WHOLE_CAMERA,
    missing,
    query_and_gallery,
    scan_folder,
    split,
)
from data_pipelines.readers.sources import DataSet, find_root

EXPECTED = (
    "Expected Occluded_REID, a folder (or a zip of it) with occluded_body_images and "
    "whole_body_images, in each one folder per person with files such as 001_01.tif; "
    "or the folder above it."
)
_FOLDERS = {
    "occluded_body_images": OCCLUDED_CAMERA,
    "whole_body_images": WHOLE_CAMERA,
}
_EACH = 5


def scan(source: str | os.PathLike) -> dict[str, Split]:
    """Lists Occluded-REID: occluded images as query, whole bodies as gallery.

    Raises:
      UserError: the folders are not there, or a file is not one of the data set.
    """
    occluded, whole = _scan_folders(source)
    return query_and_gallery(occluded, whole, each=_EACH)


def scan_half(source: str | os.PathLike) -> dict[str, Split]:
    """Lists DROP's half split: all images of half of the persons train.

    Raises:
      UserError: as for `scan`.
    """
    occluded, whole = _scan_folders(source)
    half = training_half({e.person for e in (*occluded, *whole)})

    def chosen(entries: tuple[Entry, ...], *, trains: bool) -> tuple[Entry, ...]:
        return tuple(e for e in entries if (e.person in half) == trains)

    train = chosen(occluded + whole, trains=True)
    tested = (chosen(entries, trains=False) for entries in (occluded, whole))
    return {
        "train": split(train, missing=missing(train, half, each=2 * _EACH)),
        **query_and_gallery(*tested, each=_EACH),
    }


def training_half(persons: set[int], *, seed: int = 0) -> frozenset[int]:
    """Half of the persons (of an odd number the smaller half), drawn by `seed`.

    By a hash rather than a random generator: the draw is the same for ever.
    """

    def place(person: int) -> bytes:
        return hashlib.sha256(f"occluded_reid {seed} {person}".encode()).digest()

    return frozenset(sorted(persons, key=place)[: len(persons) // 2])


def _scan_folders(source: str | os.PathLike) -> list[tuple[Entry, ...]]:
    root, _ = find_root(source, tuple(_FOLDERS), expected=EXPECTED)
    return [
        scan_folder(
            root / name, camera=camera, person=BEFORE_UNDERSCORE, expected=EXPECTED
        )
        for name, camera in _FOLDERS.items()
    ]


OCCLUDED_REID = DataSet(
    name="occluded_reid",
    title="Occluded-REID",
    scan=scan,
    expected=EXPECTED,
    published={
        "query": Counts(images=1000, identities=200),
        "gallery": Counts(images=1000, identities=200),
    },
    note="It has no training images: train on market1501.",
)

OCCLUDED_REID_HALF = DataSet(
    name="occluded_reid_half",
    title="Occluded-REID (half of the persons for training)",
    scan=scan_half,
    expected=EXPECTED,
    published={
        "train": Counts(images=1000, identities=100),
        "query": Counts(images=500, identities=100),
        "gallery": Counts(images=500, identities=100),
    },
    note=(
        "The halves are drawn by this library, since no list was published; figures "
        "are not comparable with those on all 200 persons."
    ),
)
