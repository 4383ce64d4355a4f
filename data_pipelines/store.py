"""Stores what a reader has listed: checks every image and writes TFDS records."""

import dataclasses
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data_pipelines import features
from data_pipelines.entries import BadFile, Entry, Split, bad_files, problems
from data_pipelines.images import Encoded, read_image
from data_pipelines.part_labels import label_files

VERSION = tfds.core.Version("1.0.0")
"""Version of the stored form; it is that of every data set read from a source."""

Track = Callable[[Sequence[Entry], str], Iterable[Entry]]

_SKIP = (
    "Or add --skip_bad_images, with a --name of your own, to leave such images and "
    "label files out."
)


def builder(
    splits: Mapping[str, Split],
    *,
    name: str,
    title: str,
    data_dir: str | os.PathLike,
    track: Track,
    skip_bad: bool = False,
    made_from: Mapping[str, Any] | None = None,
) -> tfds.core.DatasetBuilder:
    """TFDS builder that stores scanned images under the data-set name `name`.

    Args:
      splits: from a reader.
      name: snake-case name, also that of its folder.
      title: what the data set is, for its description.
      data_dir: where TFDS writes.
      track: wraps the images of a split as they are read, to show progress.
      skip_bad: leaves out images that cannot be used, and label files, whose images
        stay unlabelled; otherwise building raises a UserError that names them all.
      made_from: what was asked for, as JSON; stored with the data set.
    """

    class Named(_Builder, skip_registration=True):
        """The builder under the name that was asked for."""

    Named.name = name
    return Named(
        splits=splits,
        title=title,
        track=track,
        skip_bad=skip_bad,
        made_from=made_from,
        data_dir=os.fspath(data_dir),
    )


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Stores the images as they are, in the order of the reader."""

    VERSION = VERSION

    def __init__(
        self,
        *,
        splits: Mapping[str, Split],
        title: str,
        track: Track,
        skip_bad: bool,
        made_from: Mapping[str, Any] | None,
        data_dir: str,
    ):
        self._splits = dict(splits)
        self._title = title
        self._track = track
        self._skip_bad = skip_bad
        self._made_from = made_from
        self._bad: list[BadFile] = []
        self._bad_labels: list[BadFile] = []
        self._with_parts = any(e.parts for s in splits.values() for e in s.entries)
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self._title}, for person re-identification.",
            features=features.features(with_parts=self._with_parts),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(**self._metadata()),
        )

    def _metadata(self) -> dict[str, Any]:
        found = _metadata(self._splits)
        if self._made_from is not None:
            found["made_from"] = self._made_from
        if self._bad:
            head = f"{len(self._bad)} images that cannot be used were left out:"
            found["remarks"] += [head, *problems(self._bad)]
        if self._bad_labels:
            count = len(self._bad_labels)
            head = f"Label files that were left out, their images unlabelled: {count}."
            found["remarks"] += [head, *problems(self._bad_labels)]
        return found

    def _split_generators(self, _: Any) -> dict[str, Iterator]:
        return {name: self._generate_examples(name) for name in self._splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        entries = self._splits[split].entries
        kept = []
        for entry in self._track(entries, split):
            try:
                image = read_image(entry.path)
            except BadFile as error:
                self._bad.append(error)
                continue
            entry, labels = self._labelled(entry, image)
            yield len(kept), _record(entry, image, labels)
            kept.append(entry)
        self._finish(split, tuple(kept))

    def _finish(self, split: str, kept: tuple[Entry, ...]) -> None:
        """Refuses bad files once all were seen, or leaves them out of the account."""
        last = split == list(self._splits)[-1]
        if self._bad and not kept:
            raise bad_files(self._bad, f"No image of {split} is left.")
        self._splits[split] = dataclasses.replace(self._splits[split], entries=kept)
        if not last:
            return
        bad = [*self._bad, *self._bad_labels]
        if bad and not self._skip_bad:
            raise bad_files(bad, _SKIP)
        if self._bad_labels and not label_files.metadata(self._splits):
            raise bad_files(self._bad_labels, "No label file is left.")
        self.info.metadata.update(self._metadata())

    def _labelled(self, entry: Entry, image: Encoded) -> tuple[Entry, bytes | None]:
        """The entry, without labels that cannot be used, and what is stored of them."""
        if not self._with_parts:
            return entry, None
        if entry.parts is not None:
            try:
                return entry, image.labels(entry.parts)
            except BadFile as error:
                self._bad_labels.append(error)
                entry = dataclasses.replace(entry, parts=None)
        return entry, image.labels(label_files.unlabelled)


def _record(entry: Entry, image: Encoded, labels: bytes | None) -> dict[str, Any]:
    record = {
        "image": io.BytesIO(image.data),
        "person": np.int32(entry.person),
        "camera": np.int32(entry.camera),
        "filename": entry.path.name,
    }
    return record if labels is None else record | {"parts": io.BytesIO(labels)}


def _metadata(splits: Mapping[str, Split]) -> dict[str, Any]:
    """What is stored beside the records, as JSON."""
    remarks = [line for split in splits.values() for line in split.remarks]
    found = {
        "junk_dropped": {name: split.junk for name, split in splits.items()},
        "remarks": remarks + label_files.report(splits),
        **label_files.metadata(splits),
    }
    for kind in ("person_names", "camera_names"):
        joined = [item for s in splits.values() for item in getattr(s, kind).items()]
        if joined:
            found[kind] = {str(number): name for number, name in sorted(joined)}
    return found
