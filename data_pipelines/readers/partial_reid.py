"""Partial-REID (Zheng et al., "Partial Person Re-identification", 2015).

60 persons, 5 images of each as whole bodies (the gallery), occluded, and cropped by
hand to the visible part. Papers disagree on which of the last two are the queries, so
there are two data sets: `partial_reid` has the crops (DSR, fast-reid, BPBreID),
`partial_reid_occluded` the occluded images (HPNet, PVPM). There is no training split:
models are trained on Market-1501.
"""

import functools
import os
import re

from data_pipelines.entries import Counts, Split
from data_pipelines.readers.bodies import (
    OCCLUDED_CAMERA,
    WHOLE_CAMERA,
    query_and_gallery,
    scan_folder,
)
from data_pipelines.readers.sources import DataSet, find_root

# The person is what stands before the underscore, or else the first three digits.
_PERSON = re.compile(r"(\d+(?=_)|\d{3}).*", re.ASCII)
_GALLERY = "whole_body_images"
_QUERIES = {
    "partial_reid": "partial_body_images",
    "partial_reid_occluded": "occluded_body_images",
}


def scan(source: str | os.PathLike, *, name: str) -> dict[str, Split]:
    """Lists Partial-REID with the queries of the data set `name`.

    Raises:
      UserError: the folders are not there, or a file is not one of the data set.
    """
    expected = _expected(name)
    root, _ = find_root(source, (_QUERIES[name], _GALLERY), expected=expected)
    read = functools.partial(scan_folder, person=_PERSON, expected=expected)
    return query_and_gallery(
        read(root / _QUERIES[name], camera=OCCLUDED_CAMERA),
        read(root / _GALLERY, camera=WHOLE_CAMERA),
        each=5,
    )


def _expected(name: str) -> str:
    (other,) = _QUERIES.keys() - {name}
    return (
        "Expected Partial_REID or Partial-REID_Dataset, a folder (or a zip of it) with "
        f"{_QUERIES[name]} (the queries) and {_GALLERY}, or the folder above it; the "
        f"data set with {_QUERIES[other]} as queries is --dataset={other}."
    )


def _data_set(name: str, title: str) -> DataSet:
    return DataSet(
        name=name,
        title=title,
        scan=functools.partial(scan, name=name),
        expected=_expected(name),
        published={
            "query": Counts(images=300, identities=60),
            "gallery": Counts(images=300, identities=60),
        },
        note="It has no training images: train on market1501.",
    )


PARTIAL_REID = _data_set("partial_reid", "Partial-REID")
PARTIAL_REID_OCCLUDED = _data_set(
    "partial_reid_occluded", "Partial-REID with occluded queries"
)
