"""Stores what a reader has listed: checks every image and writes TFDS records."""

import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data_pipelines import features
from data_pipelines.entries import Entry, Split
from data_pipelines.images import read_image
from data_pipelines.part_labels import label_files

VERSION = tfds.core.Version("1.0.0")
"""Version of the stored form; it is that of every data set read from a source."""

Track = Callable[[Sequence[Entry], str], Iterable[Entry]]


def builder(
    splits: Mapping[str, Split],
    *,
    name: str,
    title: str,
    data_dir: str | os.PathLike,
    track: Track,
) -> tfds.core.DatasetBuilder:
    """TFDS builder that stores scanned images under the data-set name `name`.

    Args:
      splits: from a reader.
      name: snake-case name, also that of its folder.
      title: what the data set is, for its description.
      data_dir: where TFDS writes.
      track: wraps the images of a split as they are read, to show progress.
    """

    class Named(_Builder, skip_registration=True):
        """The builder under the name that was asked for."""

    Named.name = name
    return Named(splits=splits, title=title, track=track, data_dir=os.fspath(data_dir))


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Stores the images as they are, in the order of the reader."""

    VERSION = VERSION

    def __init__(
        self, *, splits: Mapping[str, Split], title: str, track: Track, data_dir: str
    ):
        self._splits = splits
        self._title = title
        self._track = track
        self._with_parts = any(e.parts for s in splits.values() for e in s.entries)
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self._title}, for person re-identification.",
            features=features.features(with_parts=self._with_parts),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(**_metadata(self._splits)),
        )

    def _split_generators(self, _: Any) -> dict[str, Iterator]:
        return {name: self._generate_examples(name) for name in self._splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        entries = self._splits[split].entries
        for key, entry in enumerate(self._track(entries, split)):
            yield key, self._record(entry)

    def _record(self, entry: Entry) -> dict[str, Any]:
        data, size = read_image(entry.path)
        record = {
            "image": io.BytesIO(data),
            "person": np.int32(entry.person),
            "camera": np.int32(entry.camera),
            "filename": entry.path.name,
        }
        if self._with_parts:
            make = entry.parts or label_files.unlabelled
            record["parts"] = io.BytesIO(make(*size))
        return record


def _metadata(splits: Mapping[str, Split]) -> dict[str, Any]:
    """What is stored beside the records, as JSON."""
    remarks = [line for split in splits.values() for line in split.remarks]
    names = {k: v for split in splits.values() for k, v in split.person_names.items()}
    found = {
        "junk_dropped": {name: split.junk for name, split in splits.items()},
        "remarks": remarks + label_files.report(splits),
        **label_files.metadata(splits),
    }
    if names:
        found["person_names"] = {str(k): v for k, v in sorted(names.items())}
    return found
