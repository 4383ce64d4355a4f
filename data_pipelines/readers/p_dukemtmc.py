"""P-DukeMTMC-reID (Zhuo et al., "Occluded Person Re-identification", 2018).

`train` and `test`, each with `occluded_body_images` and `whole_body_images`, in each
one folder per person with files `<person>_<anything>.jpg`. Occluded test images are the
queries, whole ones the gallery. The counts are those usually quoted; their sum is that
of the release, 24,143 images of 1,299 persons.
"""

import os

from data_pipelines.entries import Counts, Split
from data_pipelines.readers.bodies import (
    BEFORE_UNDERSCORE,
    OCCLUDED_CAMERA,
    WHOLE_CAMERA,
    scan_folder,
    split,
)
from data_pipelines.readers.dukemtmc import WITHDRAWN
from data_pipelines.readers.sources import DataSet, find_root

EXPECTED = (
    "Expected P-DukeMTMC-reid, a folder (or a zip of it) with train and test, and in "
    "both occluded_body_images and whole_body_images, in each one folder per person; "
    "or the folder above it."
)
_FOLDERS = {
    "train/whole_body_images": ("train", WHOLE_CAMERA),
    "train/occluded_body_images": ("train", OCCLUDED_CAMERA),
    "test/occluded_body_images": ("query", OCCLUDED_CAMERA),
    "test/whole_body_images": ("gallery", WHOLE_CAMERA),
}


def scan(source: str | os.PathLike) -> dict[str, Split]:
    """Lists P-DukeMTMC; whole and occluded images train together.

    Raises:
      UserError: the folders are not there, or a file is not one of the data set.
    """
    root, _ = find_root(source, tuple(_FOLDERS), expected=EXPECTED)
    entries = {"train": (), "query": (), "gallery": ()}
    for name, (part, camera) in _FOLDERS.items():
        entries[part] += scan_folder(
            root / name, camera=camera, person=BEFORE_UNDERSCORE, expected=EXPECTED
        )
    return {part: split(found) for part, found in entries.items()}


P_DUKEMTMC = DataSet(
    name="p_dukemtmc",
    title="P-DukeMTMC-reID",
    scan=scan,
    expected=EXPECTED,
    published={
        "train": Counts(images=12927, identities=665),
        "query": Counts(images=2163, identities=634),
        "gallery": Counts(images=9053, identities=634),
    },
    note=WITHDRAWN,
)
