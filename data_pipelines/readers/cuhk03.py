"""CUHK03 in the new protocol, with hand-labeled or with detected boxes.

Li et al., "DeepReID: Deep Filter Pairing Neural Network for Person Re-Identification",
2014; the protocol of 767 training and 700 test identities is that of Zhong et al.,
"Re-ranking Person Re-identification with k-reciprocal Encoding", 2017. Two sources:

- the release, one file `cuhk-03.mat` of all pixels, together with the protocol's
  `cuhk03_new_protocol_config_{labeled,detected}.mat`. Images are stored as PNG;
- the folders that the protocol's authors offer, `cuhk03-np/{labeled,detected}`, each
  in Market-1501's layout.
"""

import dataclasses
import functools
import importlib
import os
import pathlib
import re
import types
from typing import Any

import numpy as np

from data_pipelines import images
from data_pipelines.entries import SPLITS, Counts, Entry, Split, make_entry
from data_pipelines.readers import market1501, sources
from data_pipelines.readers.sources import DataSet
from reid_jax.errors import UserError

RELEASE = ("cuhk-03.mat", "cuhk03_release/cuhk-03.mat")
"""Where the release lies beside the protocol, or below it as it was packed."""

_OTHER = {"labeled": "detected", "detected": "labeled"}
_SUFFIXES = (".png", *sources.JPEG)
# Pair of cameras, person within it, view, image, all from 1.
_IMAGE = re.compile(r"(\d)_(\d{3,4})_([12])_(\d\d)\.png", re.ASCII)


def scan(source: str | os.PathLike, *, boxes: str) -> dict[str, Split]:
    """Lists CUHK03 in the new protocol.

    Args:
      source: folder with the release and the protocol, or `cuhk03-np` (or a zip of
        it), or the one of its two folders that is meant; or the parent of these.
      boxes: `labeled` or `detected`.

    Raises:
      UserError: it is not there, a package to read it is missing, or the release and
        the protocol do not fit together.
    """
    config = f"cuhk03_new_protocol_config_{boxes}.mat"
    folders = tuple(market1501.FOLDERS.values())
    layouts = (
        tuple(f"{boxes}/{folder}" for folder in folders),
        *((release, config) for release in RELEASE),
        folders,
    )
    text = _expected(boxes)
    root, layout = sources.find_root(source, *layouts, expected=text)
    if layout == folders and root.name != _OTHER[boxes]:
        return market1501.scan_root(root, expected=text, suffixes=_SUFFIXES)
    if layout == folders:
        raise UserError(f"{text} Found in {source}: {root.name}.")
    if config not in layout:
        return market1501.scan_root(root / boxes, expected=text, suffixes=_SUFFIXES)
    if not isinstance(root, pathlib.Path):
        raise UserError(f"Unpack {source} first: {layout[0]} cannot be read packed.")
    return _scan_release(root / layout[0], root / config, boxes)


@dataclasses.dataclass(frozen=True)
class _Image:
    """One image of the release; stands for a file."""

    release: "_Release"
    name: str

    def __str__(self) -> str:
        return f"{self.release.path}: {self.name}"

    def read_bytes(self) -> bytes:
        return images.png(self.release.pixels(self.name))


class _Release:
    """`cuhk-03.mat`: HDF5, an array of references to images for each camera pair."""

    def __init__(self, path: pathlib.Path, boxes: str):
        h5py = _package("h5py")
        self.path = path
        try:
            self._file = h5py.File(path, "r")
            pairs = self._file[boxes][()].ravel()
            # MATLAB's persons x 10 images lie transposed in HDF5.
            self._cells = [self._file[pair][()] for pair in pairs]
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{path} is not the whole CUHK03 release ({error}). Expected an HDF5 "
                f"file (MATLAB 7.3) with {boxes} images. Download it again."
            ) from error

    def holds(self, name: str) -> bool:
        """Whether there are pixels under a name of the protocol."""
        found = self._find(name)
        # MATLAB stores an empty cell as an array of two zeros.
        return found is not None and found.ndim == 3 and found.dtype == np.uint8

    def pixels(self, name: str) -> np.ndarray:
        """uint8 [H, W, 3], RGB."""
        return np.ascontiguousarray(self._find(name)[()].T)

    def _find(self, name: str) -> Any:
        pair, person, _, image = map(int, _IMAGE.fullmatch(name).groups())
        try:
            return self._file[self._cells[pair - 1][image - 1, person - 1]]
        except (IndexError, ValueError):
            return None


def _scan_release(
    path: pathlib.Path, config: pathlib.Path, boxes: str
) -> dict[str, Split]:
    protocol, release = _Protocol(config), _Release(path, boxes)
    return {split: _split(release, protocol, split) for split in SPLITS}


def _split(release: _Release, protocol: "_Protocol", split: str) -> Split:
    entries: list[Entry] = []
    missing = []
    for name, person in protocol.listed(split):
        if not release.holds(name):
            missing.append(name)
            continue
        camera = int(_IMAGE.fullmatch(name)[3]) - 1
        image = _Image(release, name)
        entries.append(make_entry(image, person=person, camera=camera))
    sources.require_identities(
        entries, where=release.path, expected=f"{split} needs some."
    )
    return Split(tuple(entries), missing=tuple(missing))


class _Protocol:
    """`cuhk03_new_protocol_config_*.mat`: names, persons from 1, and rows by split."""

    def __init__(self, path: pathlib.Path):
        loadmat = _package("scipy.io").loadmat
        try:
            found = loadmat(path)
            self._names = [str(cell[0]) for cell in found["filelist"].ravel()]
            self._persons = found["labels"].ravel().astype(int)
            self._rows = {
                split: found[f"{split}_idx"].ravel().astype(int) - 1 for split in SPLITS
            }
            for row in np.concatenate(list(self._rows.values())):
                if row < 0 or not _IMAGE.fullmatch(self._names[row]):
                    raise ValueError(f"row {row + 1} names no image")
        except Exception as error:  # SciPy raises many kinds on what is no such file.
            raise UserError(
                f"{path} is not the new protocol of CUHK03 ({error}). Download it "
                "again from zhunzhong07/person-re-ranking on GitHub."
            ) from error

    def listed(self, split: str) -> list[tuple[str, int]]:
        """Name and person of the images of a split."""
        return [(self._names[i], int(self._persons[i])) for i in self._rows[split]]


def _package(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise UserError(
            f"Reading the release of CUHK03 needs {package}: pip install {package}. "
            "The folders cuhk03-np can be read without it."
        ) from error


def _expected(boxes: str) -> str:
    return (
        f"Expected a folder with cuhk-03.mat and cuhk03_new_protocol_config_{boxes}.mat"
        f", or cuhk03-np, a folder (or a zip of it) in which {boxes} holds "
        "bounding_box_train, query and bounding_box_test full of .png files."
    )


LABELED = DataSet(
    name="cuhk03np_labeled",
    title="CUHK03 (new protocol, labeled)",
    scan=functools.partial(scan, boxes="labeled"),
    expected=_expected("labeled"),
    published={
        "train": Counts(images=7368, identities=767),
        "query": Counts(images=1400, identities=700),
        "gallery": Counts(images=5328, identities=700),
    },
)

DETECTED = DataSet(
    name="cuhk03np_detected",
    title="CUHK03 (new protocol, detected)",
    scan=functools.partial(scan, boxes="detected"),
    expected=_expected("detected"),
    published={
        "train": Counts(images=7365, identities=767),
        "query": Counts(images=1400, identities=700),
        "gallery": Counts(images=5332, identities=700),
    },
)
