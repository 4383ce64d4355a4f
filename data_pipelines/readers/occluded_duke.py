"""Occluded-Duke: its own folder, or a copy of DukeMTMC-reID and the published lists.

Miao et al., "Pose-Guided Feature Alignment for Occluded Person Re-Identification",
2019, divide the images of DukeMTMC-reID anew. They publish the names: `train.list`,
`query.list` and `gallery.list`, a file name per line.
"""

import functools
import os
import pathlib

from data_pipelines.entries import SPLITS, Counts, Entry, Split, bad_file, read_all
from data_pipelines.readers import market1501, sources
from data_pipelines.readers.dukemtmc import WITHDRAWN
from data_pipelines.readers.sources import AnyPath, DataSet
from reid_jax import storage
from reid_jax.errors import UserError

LISTS = {split: f"{split}.list" for split in SPLITS}
"""Split -> name of its list."""


def scan(
    source: str | os.PathLike, *, lists: str | os.PathLike | None = None
) -> dict[str, Split]:
    """Lists Occluded-Duke by file names.

    With lists, given or lying in the folder, images are taken by their names from
    whichever of the three folders they are in: so a copy of DukeMTMC-reID will do.

    Args:
      source: `Occluded_Duke`, or with lists also `DukeMTMC-reID`; their parent, or a
        zip of any of these.
      lists: folder with the three lists.

    Raises:
      UserError: folders or lists are not there, or a name does not fit.
    """
    text = OCCLUDED_DUKE.expected
    layout = tuple(market1501.FOLDERS.values())
    root, _ = sources.find_root(source, layout, expected=text)
    if lists is not None:
        return _listed(root, _lists_folder(lists))
    if all((root / name).is_file() for name in LISTS.values()):
        return _listed(root, root)
    return market1501.scan_root(root, expected=text)


def _lists_folder(lists: str | os.PathLike) -> pathlib.Path:
    folder = storage.expanded(lists)
    absent = [name for name in LISTS.values() if not (folder / name).is_file()]
    if absent:
        raise UserError(
            f"--lists={lists} has no {', '.join(absent)}. Expected the folder "
            "Occluded_Duke of lightas/Occluded-DukeMTMC-Dataset on GitHub."
        )
    return folder


def _listed(root: AnyPath, folder: AnyPath) -> dict[str, Split]:
    """The images that the lists in `folder` name."""
    folders = {
        split: {path.name: path for path in sources.children(root / name)}
        for split, name in market1501.FOLDERS.items()
    }
    # 1,870 images are query and gallery at once; a split's own folder comes first.
    anywhere = folders["train"] | folders["gallery"] | folders["query"]
    return {
        split: _split(folder / name, split, anywhere | folders[split])
        for split, name in LISTS.items()
    }


def _split(path: AnyPath, split: str, images: dict[str, AnyPath]) -> Split:
    names = sorted(set(sources.read_lines(path)))
    present = [images[name] for name in names if name in images]
    found = read_all(functools.partial(_entry, split=split), present)
    sources.require_identities(found, where=path, expected=OCCLUDED_DUKE.expected)
    return Split(tuple(found), missing=tuple(n for n in names if n not in images))


def _entry(image: AnyPath, split: str) -> Entry:
    entry = market1501.parse(image, split)
    if entry is None:
        raise bad_file(image, "a list names it as junk", "Correct the list")
    return entry


OCCLUDED_DUKE = DataSet(
    name="occluded_duke",
    title="Occluded-Duke",
    scan=scan,
    expected=(
        "Expected Occluded_Duke, a folder (or a zip of it) with bounding_box_train, "
        "query and bounding_box_test full of .jpg files, or a copy of DukeMTMC-reID "
        "together with --lists=<folder with train.list, query.list, gallery.list>."
    ),
    published={
        "train": Counts(images=15618, identities=702),
        "query": Counts(images=2210, identities=519),
        "gallery": Counts(images=17661, identities=1110),
    },
    options=("lists",),
    note=WITHDRAWN,
)
