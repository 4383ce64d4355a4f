"""The prepared data sets of a folder: which there are, and opening one.

Reading needs no TensorFlow.
"""

import difflib
import os
import re
import shlex
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from data_pipelines import bucket
from data_pipelines.part_labels.kinds import check_kind
from data_pipelines.readers.datasets import DATASETS
from data_pipelines.records import JoinedRecords, Records
from reid_jax import storage
from reid_jax.errors import UserError

JOINT = "+"
"""Joins the names of data sets whose training splits are used together."""

_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")
_OWN = (
    "python -m data_pipelines.prepare --dataset=market1501 --source=FOLDER "
    "--allow_other_counts --name={name} --data_dir={data_dir}"
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


def check_there(dataset: str, data_dir: str | os.PathLike) -> None:
    """Raises UserError if a data set is not prepared; says how to prepare it."""
    _version_dir(dataset, data_dir)


def split_names(dataset: str, data_dir: str | os.PathLike) -> list[str]:
    """The splits of a prepared data set.

    Raises:
      UserError: the data set is not there or is damaged.
    """
    return list(_builder(dataset, data_dir)[0].info.splits)


def open_splits(dataset: str, data_dir: str | os.PathLike) -> dict[str, Records]:
    """Opens all splits of a prepared data set.

    Raises:
      UserError: the data set is not there or is damaged.
    """
    splits = split_names(dataset, data_dir)
    return {split: _open_one(dataset, split, data_dir) for split in splits}


def metadata(dataset: str, data_dir: str | os.PathLike) -> dict[str, Any]:
    """What is stored beside the records of a prepared data set, as JSON.

    Raises:
      UserError: the data set is not there or is damaged.
    """
    return _builder(dataset, data_dir)[0].info.metadata or {}


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
    metadata = builder.info.metadata or {}
    names = {
        kind: {int(number): name for number, name in metadata.get(kind, {}).items()}
        for kind in ("person_names", "camera_names")
    }
    kind = check_kind(metadata.get("parts_kind", "parts"))
    return Records(source, has_parts, kind, **names)


def _version_dir(dataset: str, data_dir: str | os.PathLike) -> epath.Path:
    """The newest `<data_dir>/<dataset>/<x.y.z>`."""
    storage.check_reachable(data_dir)
    folder = storage.absolute(data_dir) / dataset
    versions = _versions(folder)
    if not versions:
        raise _not_prepared(dataset, data_dir)
    return folder / max(versions, key=lambda v: tuple(map(int, v.split("."))))


def _versions(folder: epath.Path) -> list[str]:
    return [n for n in _folders(folder) if _VERSION.fullmatch(n)]


def _folders(folder: epath.Path) -> list[str]:
    """Names of the visible folders in `folder`; none where it cannot be read."""
    try:
        inside = list(folder.iterdir()) if folder.is_dir() else []
        return sorted(
            p.name for p in inside if not p.name.startswith(".") and p.is_dir()
        )
    except OSError:
        return []


def prepared_datasets(data_dir: str | os.PathLike) -> list[str]:
    """Names of the data sets in `data_dir`, in the form `open_records` takes."""
    top = storage.absolute(data_dir)
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
    data_dir, upload = shlex.quote(os.fspath(data_dir)), ""
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
