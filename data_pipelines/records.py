"""Stored records: random access to one prepared split, or to several joined.

Every data set of the library is prepared once into ArrayRecord with the same
features, whatever its source.
"""

import bisect
import collections
import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from data_pipelines.entries import fingerprint
from reid_jax.errors import UserError


class _Resized:
    """What all records say of how their pictures are brought to a network's size.

    Attributes:
      resize: one of `images.RESIZES`.
    """

    resize = "bilinear"

    def resized_by(self, how: str) -> Self:
        """The same records with another `resize`."""
        records = copy.copy(self)
        records.resize = how
        return records


class Records(_Resized):
    """Random access to one prepared split; picklable, so that workers can hold it.

    Attributes:
      person: int32 [N], the identity of each record.
      camera: int32 [N], the camera of each record.
      has_parts: whether records carry a part-label map.
      parts_kind: numbering of the part labels, one of `part_labels.kinds.KINDS`.
    """

    def __init__(
        self,
        source: Any,
        has_parts: bool,
        parts_kind: str = "parts",
        *,
        person_names: Mapping[int, str] | None = None,
        camera_names: Mapping[int, str] | None = None,
    ):
        """Scans the labels of `source`, a TFDS data source without decoding.

        Args:
          source: gives a record by its number.
          has_parts: whether records carry a part-label map.
          parts_kind: its numbering.
          person_names: person -> name in the source, where that is not its number.
          camera_names: camera -> name in the source, where that is not its number
            counted from 1, as the file names of the published sets have it.
        """
        self._source = source
        self._person_names = dict(person_names or {})
        self._camera_names = dict(camera_names or {})
        self.has_parts = has_parts
        self.parts_kind = parts_kind
        size = len(source)
        self.person, self.camera = np.empty((2, size), np.int32)
        self._filenames = []
        for i in range(size):  # one at a time: a record has its image, too
            record = source[i]
            self.person[i], self.camera[i] = record["person"], record["camera"]
            self._filenames.append(_text(record["filename"]))

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

    def person_name(self, person: int) -> str:
        """What the source calls a person."""
        return self._person_names.get(int(person), str(person))

    def camera_name(self, camera: int) -> str:
        """What the source calls a camera."""
        return self._camera_names.get(int(camera), str(camera + 1))

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Tells this split from another: `images`, `identities` and `digest`.

        Of the names, persons and cameras in their order (`entries.fingerprint`); it
        can be stored as JSON.
        """
        return fingerprint(self._filenames, self.person, self.camera)


class JoinedRecords(_Resized):
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

    @property
    def fingerprint(self) -> dict[str, Any]:
        """As `Records` has it, of the joined names, persons and cameras."""
        names = [self.filename(i) for i in range(len(self))]
        return fingerprint(names, self.person, self.camera)

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


def cameras_by_person(stored: Records) -> dict[int, set[int]]:
    """The cameras that have seen each person above 0."""
    cameras = collections.defaultdict(set)
    for person, camera in zip(
        stored.person.tolist(), stored.camera.tolist(), strict=True
    ):
        if person > 0:
            cameras[person].add(camera)
    return dict(cameras)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
