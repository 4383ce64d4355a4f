"""Stored records: their features, and random access to one prepared split.

Every data set of the library is prepared once into ArrayRecord with the same
features, whatever its source. Reading needs no TensorFlow.
"""

import bisect
import difflib
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from data_pipelines import bucket
from data_pipelines.part_labels.kinds import check_kind
from reid_jax import storage
from reid_jax.errors import UserError

JOINT = "+"
"""Joins the names of data sets whose training splits are used together."""

_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")
_OWN = (
    "python -m data_pipelines.prepare --dataset=market1501 --source=FOLDER "
    "--allow_other_counts --name={name} --data_dir={data_dir}"
)


def features(with_parts: bool) -> tfds.features.FeaturesDict:
    """Features of a stored record.

    `image` holds the encoded bytes of an RGB picture as the source has them.
    `person` is positive for an identity and 0 for a distractor (gallery only);
    junk (-1) is never stored. `camera` counts from 0. `filename` is the name in the
    source. With `with_parts`, `parts` holds a single-channel PNG of the size of the
    picture with the classes of `part_labels.kinds`, 255 throughout for a picture
    without labels; the metadata's `parts_kind` says which numbering it is.
    """
    entries: dict[str, Any] = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "person": np.int32,
        "camera": np.int32,
        "filename": tfds.features.Text(),
    }
    if with_parts:
        entries["parts"] = tfds.features.Image(
            shape=(None, None, 1), encoding_format="png"
        )
    return tfds.features.FeaturesDict(entries)


class Records:
    """Random access to one prepared split; picklable, so that workers can hold it.

    Attributes:
      person: int32 [N], the identity of each record.
      camera: int32 [N], the camera of each record.
      has_parts: whether records carry a part-label map.
      parts_kind: numbering of the part labels, one of `parts.KINDS`.
    """

    def __init__(self, source: Any, has_parts: bool, parts_kind: str = "parts"):
        """Scans the labels of `source`, a TFDS data source without decoding."""
        self._source = source
        self.has_parts = has_parts
        self.parts_kind = parts_kind
        records = [source[i] for i in range(len(source))]
        self.person = np.array([r["person"] for r in records], np.int32)
        self.camera = np.array([r["camera"] for r in records], np.int32)
        self._filenames = [_text(r["filename"]) for r in records]

    def __len__(self) -> int:
        return len(self._filenames)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns `image` (bytes), `filename`, and `parts` (PNG bytes) if there."""
        stored = self._source[int(index)]
        record = {"image": stored["image"], "filename": self.filename(index)}
        if self.has_parts:
            record["parts"] = stored["parts"]
        return record

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))

    def filename(self, index: int) -> str:
        """Name of the picture in its source."""
        return self._filenames[int(index)]


class JoinedRecords:
    """Several training splits in one; takes the place of `Records`.

    Identities are taken to be other people in every data set. Persons are numbered
    anew, from 1, data set by data set; the cameras of a data set follow those of the
    ones before it, so that the first one's keep their numbers. Records of a data set
    without part labels have no `parts`.
    """

    def __init__(self, members: Sequence[tuple[str, Records]]):
        """Joins data sets, given as name and records, in this order."""
        self._names = [name for name, _ in members]
        self._members = [stored for _, stored in members]
        self._starts = [0, *itertools.accumulate(map(len, self._members))]
        self.person, self.camera = _disjoint(self._members)
        self.has_parts = any(stored.has_parts for stored in self._members)

    @property
    def parts_kind(self) -> str:
        """Numbering of the part labels.

        Raises:
          UserError: the data sets have labels in several numberings.
        """
        pairs = zip(self._names, self._members, strict=True)
        kinds = {name: m.parts_kind for name, m in pairs if m.has_parts}
        if len(set(kinds.values())) > 1:
            shown = ", ".join(f"{name}: {kind}" for name, kind in kinds.items())
            raise UserError(
                f"The part labels of the joined data sets differ in kind ({shown}). "
                "Join data sets with labels of one kind."
            )
        return next(iter(kinds.values()), "parts")

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """As `Records` has it."""
        member, row = self._locate(index)
        return self._members[member][row] | {"filename": self.filename(index)}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))

    def filename(self, index: int) -> str:
        """Data set and name of the picture in its source."""
        member, row = self._locate(index)
        return f"{self._names[member]}/{self._members[member].filename(row)}"

    def _locate(self, index: int) -> tuple[int, int]:
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(index)
        member = bisect.bisect_right(self._starts, index) - 1
        return member, index - self._starts[member]


def _disjoint(members: Sequence[Records]) -> tuple[np.ndarray, np.ndarray]:
    """Persons and cameras, int32 [N], that no two data sets share."""
    persons, cameras = [], []
    persons_before = cameras_before = 0
    for stored in members:
        known = np.unique(stored.person[stored.person > 0])
        rank = persons_before + 1 + np.searchsorted(known, stored.person)
        persons.append(np.where(stored.person > 0, rank, stored.person))
        cameras.append(stored.camera.astype(np.int64) + cameras_before)
        persons_before += len(known)
        cameras_before = int(cameras[-1].max(initial=cameras_before - 1)) + 1
    if cameras_before > np.iinfo(np.int32).max:
        raise UserError(
            "The camera numbers of the joined data sets exceed 32 bits. Number the "
            "cameras of each from 0 on."
        )
    return (
        np.concatenate(persons).astype(np.int32),
        np.concatenate(cameras).astype(np.int32),
    )


def open_records(
    dataset: str, split: str, data_dir: str | os.PathLike
) -> Records | JoinedRecords:
    """Opens a split that `data_pipelines.prepare` has written.

    Args:
      dataset: `name` or `name/config`, as in `synthetic/holistic_demo`; several for
        training together are joined by `+`, as in `market1501+mine`.
      split: `train`, `query` or `gallery`; joined data sets have `train` only.
      data_dir: folder with the prepared data sets. The newest version is taken. One
        in a bucket is copied to this machine first (`data_pipelines.bucket`).

    Raises:
      UserError: the data set is not there, is damaged, or has no such split.
    """
    names = joined_names(dataset)
    if len(names) == 1:
        return _open_one(dataset, split, data_dir)
    if split != "train":
        raise UserError(
            f"{dataset} joins training sets; it has no split {split!r}. Evaluate on "
            f"one of {', '.join(names)} with config.evaluate_on."
        )
    return JoinedRecords([(n, _open_one(n, split, data_dir)) for n in names])


def joined_names(dataset: str) -> list[str]:
    """The data sets that `dataset` joins; itself alone where it joins none.

    Raises:
      UserError: a name is missing or stands there twice.
    """
    names = dataset.split(JOINT)
    if "" in names:
        raise UserError(f"config.data.dataset={dataset!r} lacks a name.")
    if len(set(names)) < len(names):
        raise UserError(f"config.data.dataset={dataset!r} names a data set twice.")
    return names


def split_names(dataset: str, data_dir: str | os.PathLike) -> list[str]:
    """The splits of a prepared data set.

    Raises:
      UserError: the data set is not there or is damaged.
    """
    return list(_builder(dataset, data_dir)[0].info.splits)


def _builder(
    dataset: str, data_dir: str | os.PathLike
) -> tuple[tfds.core.DatasetBuilder, epath.Path]:
    directory = _version_dir(dataset, data_dir)
    if storage.in_bucket(directory):
        directory = bucket.local_copy(directory)
    try:
        return tfds.builder_from_directory(directory), directory
    except Exception as error:  # TFDS raises many kinds on unreadable metadata.
        raise _damaged(dataset, data_dir, directory, error) from error


def _open_one(dataset: str, split: str, data_dir: str | os.PathLike) -> Records:
    builder, directory = _builder(dataset, data_dir)
    if split not in builder.info.splits:
        known = ", ".join(builder.info.splits) or "none"
        raise UserError(
            f"{dataset} in {directory} has no split {split!r}; its splits: {known}."
        )
    try:
        return _open(builder, split)
    except Exception as error:  # ArrayRecord raises RuntimeError, ValueError, ...
        raise _damaged(dataset, data_dir, directory, error) from error


def _open(builder: tfds.core.DatasetBuilder, split: str) -> Records:
    has_parts = "parts" in builder.info.features
    pictures = ("image", "parts") if has_parts else ("image",)
    info = builder.info.splits[split]
    for path in info.filepaths:
        if not path.exists():
            raise FileNotFoundError(f"{path.name} is missing")
    source = builder.as_data_source(
        split=split,
        decoders={name: tfds.decode.SkipDecoding() for name in pictures},
    )
    if len(source) != info.num_examples:
        raise ValueError(f"{split} holds {len(source)} of {info.num_examples} records")
    # The synthetic data set, which has no such entry, has the library's own classes.
    kind = (builder.info.metadata or {}).get("parts_kind", "parts")
    return Records(source, has_parts, check_kind(kind))


def _version_dir(dataset: str, data_dir: str | os.PathLike) -> epath.Path:
    """The newest `<data_dir>/<dataset>/<x.y.z>`."""
    storage.check_reachable(data_dir)
    folder = epath.Path(data_dir).expanduser() / dataset
    versions = _versions(folder)
    if not versions:
        raise _not_prepared(dataset, data_dir)
    return folder / max(versions, key=lambda v: tuple(map(int, v.split("."))))


def _versions(folder: epath.Path) -> list[str]:
    return [n for n in _folders(folder) if _VERSION.fullmatch(n)]


def _folders(folder: epath.Path) -> list[str]:
    """Names of the visible folders in `folder`; none where it is not there."""
    if not folder.is_dir():
        return []
    return sorted(
        p.name for p in folder.iterdir() if not p.name.startswith(".") and p.is_dir()
    )


def prepared_datasets(data_dir: str | os.PathLike) -> list[str]:
    """Names of the data sets in `data_dir`, in the form `open_records` takes."""
    top = epath.Path(data_dir).expanduser()
    found = []
    for name in _folders(top):
        if _versions(top / name):
            found.append(name)
        found += [
            f"{name}/{config}"
            for config in _folders(top / name)
            if _versions(top / name / config)
        ]
    return found


def _not_prepared(dataset: str, data_dir: str | os.PathLike) -> UserError:
    prepared = prepared_datasets(data_dir)
    near = difflib.get_close_matches(dataset, prepared, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return UserError(
        f"{dataset} is not prepared in {os.fspath(data_dir)}.{hint} Prepared there: "
        f"{', '.join(prepared) or 'nothing'}. Prepare it with: "
        f"{_command(dataset, data_dir)}"
    )


def _damaged(
    dataset: str,
    data_dir: str | os.PathLike,
    directory: epath.Path,
    error: Exception,
) -> UserError:
    return UserError(
        f"{dataset} in {directory} is damaged or incomplete ({error}). Remove that "
        f"folder and prepare it again with: {_command(dataset, data_dir)}"
    )


def _command(dataset: str, data_dir: str | os.PathLike) -> str:
    """What prepares a data set, as far as its name tells."""
    # Readers import the store, which imports this module.
    from data_pipelines.readers.datasets import DATASETS

    data_dir, upload = os.fspath(data_dir), ""
    if storage.in_bucket(data_dir):
        name = dataset.split("/")[0]
        upload = f" && gcloud storage cp --recursive data/{name} {data_dir}"
        data_dir = "data"
    if dataset in DATASETS and DATASETS[dataset].published is not None:
        source = " --source=FOLDER"
    elif dataset.startswith("synthetic/"):
        source = ""
    else:
        return _OWN.format(name=dataset, data_dir=data_dir) + upload
    return (
        f"python -m data_pipelines.prepare --dataset={dataset}{source} "
        f"--data_dir={data_dir}{upload}"
    )


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
