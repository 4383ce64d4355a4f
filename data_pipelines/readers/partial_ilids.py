"""Partial-iLIDS (He et al., "Deep Spatial Feature Reconstruction for Partial Person
Re-identification", 2018; from i-LIDS, Zheng et al., 2011).

One query and one gallery image of each of 119 persons, in one of three layouts with the
same images. Two forms of the queries are in use, occluded (O) and cropped to the part
(P), and nothing in the files tells which one a folder holds. So the one who prepares it
says so by the name: `partial_ilids_o`, `partial_ilids_p`, or `partial_ilids_119` where
it is not known.

`partial_ilids_218` is another set of the same name: that of FPR (He et al.,
"Foreground-aware Pyramid Reconstruction", 2019), 218 queries, the person being the
first four digits of a name. Its figures are not comparable with those of the others.

There is no training split: models are trained on Market-1501.
"""

import functools
import os
import re

from data_pipelines.entries import Counts, Entry, Split
from data_pipelines.readers.bodies import (
    BEFORE_UNDERSCORE,
    OCCLUDED_CAMERA,
    WHOLE_CAMERA,
    query_and_gallery,
    scan_folder,
    split,
)
from data_pipelines.readers.sources import DataSet, find_root

LAYOUTS = (
    ("partial_body_images", "whole_body_images"),
    ("Probe", "Gallery"),
    ("query", "gallery"),
)
"""Folders of queries and gallery: BPBreID's, the release's, fast-reid's."""

EXPECTED = (
    "Expected Partial_iLIDS, PartialILIDS or PartialiLIDS, a folder (or a zip of it) "
    "with " + ", or ".join(" and ".join(layout) for layout in LAYOUTS) + ", full of "
    "images named by the person; or the folder above it."
)
_FOUR_DIGITS = re.compile(r"(\d{4}).*", re.ASCII)


def scan(source: str | os.PathLike) -> dict[str, Split]:
    """Lists a form of Partial-iLIDS with one query of every person.

    Raises:
      UserError: the folders are not there, or a file is not one of the data set.
    """
    query, gallery = _scan_folders(source, BEFORE_UNDERSCORE)
    return query_and_gallery(query, gallery, each=1)


def scan_218(source: str | os.PathLike) -> dict[str, Split]:
    """Lists the form with 218 queries.

    Raises:
      UserError: as for `scan`.
    """
    query, gallery = _scan_folders(source, _FOUR_DIGITS)
    return {"query": split(query), "gallery": split(gallery)}


def _scan_folders(
    source: str | os.PathLike, person: re.Pattern
) -> tuple[tuple[Entry, ...], tuple[Entry, ...]]:
    root, (query, gallery) = find_root(source, *LAYOUTS, expected=EXPECTED)
    read = functools.partial(scan_folder, person=person, expected=EXPECTED)
    return (
        read(root / query, camera=OCCLUDED_CAMERA),
        read(root / gallery, camera=WHOLE_CAMERA),
    )


_NOTE = "It has no training images: train on market1501."


def _one_of_each(name: str, form: str) -> DataSet:
    return DataSet(
        name=name,
        title=f"Partial-iLIDS{form}",
        scan=scan,
        expected=EXPECTED,
        published={
            "query": Counts(images=119, identities=119),
            "gallery": Counts(images=119, identities=119),
        },
        note=_NOTE,
    )


PARTIAL_ILIDS_119 = _one_of_each("partial_ilids_119", "")
PARTIAL_ILIDS_O = _one_of_each("partial_ilids_o", " with occluded queries (O)")
PARTIAL_ILIDS_P = _one_of_each("partial_ilids_p", " with cropped queries (P)")
PARTIAL_ILIDS_218 = DataSet(
    name="partial_ilids_218",
    title="Partial-iLIDS with 218 queries",
    scan=scan_218,
    expected=EXPECTED,
    # How many identities and gallery images belong to them was not published.
    published={"query": Counts(images=218, identities=None)},
    note=_NOTE,
)
