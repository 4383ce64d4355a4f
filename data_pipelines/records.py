"""Stored records: their features, and random access to one prepared split.

Every data set of the library is prepared once into ArrayRecord with the same
features, whatever its source. Reading needs no TensorFlow.
"""

import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from reid_jax.errors import UserError

_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")


def features(with_parts: bool) -> tfds.features.FeaturesDict:
    """Features of a stored record.

    `image` holds the encoded bytes of an RGB picture as the source has them.
    `person` is positive for an identity and 0 for a distractor (gallery only);
    junk (-1) is never stored. `camera` counts from 0. `filename` is the name in the
    source. With `with_parts`, `parts` holds a single-channel PNG of the size of the
    picture with the classes of `data_pipelines.parts`.
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
    """

    def __init__(self, source: Any, has_parts: bool):
        """Scans the labels of `source`, a TFDS data source without decoding."""
        self._source = source
        self.has_parts = has_parts
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


def open_records(dataset: str, split: str, data_dir: str | os.PathLike) -> Records:
    """Opens a split that `data_pipelines.prepare` has written.

    Args:
      dataset: `name` or `name/config`, as in `synthetic/holistic_demo`.
      split: `train`, `query` or `gallery`.
      data_dir: folder with the prepared data sets. The newest version is taken.

    Raises:
      UserError: the data set is not there, is damaged, or has no such split.
    """
    directory = _version_dir(dataset, data_dir)
    try:
        builder = tfds.builder_from_directory(directory)
    except Exception as error:  # TFDS raises many kinds on unreadable metadata.
        raise _damaged(dataset, data_dir, directory, error) from error
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
    return Records(source, has_parts)


def _version_dir(dataset: str, data_dir: str | os.PathLike) -> epath.Path:
    """The newest `<data_dir>/<dataset>/<x.y.z>`."""
    folder = epath.Path(data_dir).expanduser() / dataset
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    versions = [m for m in map(_VERSION.fullmatch, names) if m]
    if not versions:
        raise UserError(
            f"{dataset} is not prepared in {os.fspath(data_dir)}. "
            f"Prepare it with: {_command(dataset, data_dir)}"
        )
    newest = max(versions, key=lambda m: tuple(map(int, m.groups())))
    return folder / newest.group()


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
    return (
        f"python -m data_pipelines.prepare --dataset={dataset} "
        f"--data_dir={os.fspath(data_dir)}"
    )


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
