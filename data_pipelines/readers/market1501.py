"""Market-1501, and any data set in its folder layout, from a folder or a zip file.

The layout (Zheng et al., "Scalable Person Re-identification: A Benchmark", 2015):
`bounding_box_train`, `query` and `bounding_box_test`, each full of JPEG files named
`<person>_c<camera>...jpg`. Person -1 is junk (dropped), person 0 a distractor (kept in
the gallery).
"""

import functools
import os
import re
from collections.abc import Sequence

from data_pipelines.entries import (
    Counts,
    Entry,
    File,
    Split,
    bad_file,
    make_entry,
    read_all,
)
from data_pipelines.readers import sources
from data_pipelines.readers.sources import JPEG, AnyPath, DataSet

FOLDERS = {
    "train": "bounding_box_train",
    "query": "query",
    "gallery": "bounding_box_test",
}
"""Split -> its folder in the published layout."""

JUNK = -1
"""Person of the images that the protocol ignores."""

# The published expression is ([-\d]+)_c(\d); this one also reads camera 10 and above.
_NAME = re.compile(r"(-?\d+)_c(\d+)", re.ASCII)


def expected(example: str) -> str:
    """What a `--source` in this layout is, for messages; `example` is its folder."""
    return (
        "Expected a folder (or a zip of it) with bounding_box_train, query and "
        f"bounding_box_test full of .jpg files, such as {example}, or the folder "
        "above it."
    )


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
    text = MARKET1501.expected
    root, _ = sources.find_root(source, tuple(FOLDERS.values()), expected=text)
    return scan_root(root, expected=text)


def scan_root(
    root: AnyPath, *, expected: str, suffixes: Sequence[str] = JPEG
) -> dict[str, Split]:
    """Lists the three image folders in `root`; see `scan`.

    Args:
      root: the folder that holds them.
      expected: what the source should be, for messages.
      suffixes: of the image files, in lower case.

    Raises:
      UserError: a folder has no images, or a file name does not fit.
    """
    return {
        split: _scan_folder(root / name, split, expected, suffixes)
        for split, name in FOLDERS.items()
    }


def parse(path: File, split: str, *, suffixes: Sequence[str] = JPEG) -> Entry | None:
    """What a file name says; None for junk.

    Raises:
      UserError: the name does not fit, or says what cannot be stored.
    """
    match = _NAME.match(path.name)
    if not path.name.lower().endswith(tuple(suffixes)) or not match:
        raise bad_file(
            path,
            f"the name is not <person>_c<camera>...{suffixes[0]}",
            "Rename or remove it",
        )
    person, camera = int(match[1]), int(match[2]) - 1
    entry = make_entry(
        path,
        person=0 if person == JUNK else person,
        camera=camera,
        distractors=person == JUNK or split == "gallery",
    )
    return None if person == JUNK else entry


def _scan_folder(
    folder: AnyPath, split: str, expected: str, suffixes: Sequence[str]
) -> Split:
    read = functools.partial(parse, split=split, suffixes=suffixes)
    parsed = read_all(read, sources.children(folder))
    kept = tuple(e for e in parsed if e is not None)
    sources.require_identities(kept, where=folder, expected=expected)
    return Split(kept, junk=len(parsed) - len(kept))


MARKET1501 = DataSet(
    name="market1501",
    title="Market-1501",
    scan=scan,
    expected=expected("Market-1501-v15.09.15"),
    published={
        "train": Counts(images=12936, identities=751),
        "query": Counts(images=3368, identities=750),
        "gallery": Counts(images=15913, identities=750, junk=3819),
    },
)
