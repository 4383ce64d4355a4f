"""Who is seen by which camera, and which gallery images count for a query.

Source: Zheng et al., "Scalable Person Re-identification: A Benchmark", ICCV 2015.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Labels:
    """Who is seen by which camera, for each image of a query or gallery set.

    Attributes:
      person: int32 [N]; > 0 an identity, 0 a distractor (in the gallery: always a wrong
        answer), negative junk (in the gallery: ignored).
      camera: int32 [N].
    """

    person: np.ndarray
    camera: np.ndarray

    def __post_init__(self) -> None:
        for name in ("person", "camera"):
            object.__setattr__(self, name, _int32(getattr(self, name), name))
        if self.person.ndim != 1 or self.person.shape != self.camera.shape:
            raise ValueError(
                "person and camera are vectors of one length; got shapes "
                f"{self.person.shape} and {self.camera.shape}"
            )

    def __len__(self) -> int:
        return len(self.person)


def _int32(values: np.ndarray, name: str) -> np.ndarray:
    """The same numbers, or ValueError: a cast would wrap around without a word."""
    values = np.asarray(values)
    cast = values.astype(np.int32)
    if not np.array_equal(cast, values):
        raise ValueError(f"{name} holds numbers that are no 32-bit integers")
    return cast


class MatchIndex:
    """Finds the gallery images of a query's person without a pass over the gallery."""

    def __init__(self, query: Labels, gallery: Labels, *, camera_filter: bool) -> None:
        self._query, self._gallery = query, gallery
        self._camera_filter = camera_filter
        self._order = np.argsort(gallery.person, kind="stable")
        ordered = gallery.person[self._order]
        self._start = np.searchsorted(ordered, query.person, side="left")
        self._stop = np.searchsorted(ordered, query.person, side="right")
        self._never_shown = self._order[: np.searchsorted(ordered, 0)]

    def matches(self, row: int) -> np.ndarray:
        """Ascending gallery indices of the right answers to query `row`."""
        same, dropped = self._same_person(row)
        return same[~dropped]

    def junk(self, row: int) -> np.ndarray:
        """Ascending gallery indices that do not count for query `row`."""
        same, dropped = self._same_person(row)
        return np.sort(np.append(self._never_shown, same[dropped]))

    def _same_person(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        same = self._order[self._start[row] : self._stop[row]]
        if self._query.person[row] <= 0:
            same = same[:0]
        dropped = self._gallery.camera[same] == self._query.camera[row]
        return same, dropped & self._camera_filter


def why_no_match(query: Labels, gallery: Labels) -> str:
    """Says why no query can be scored, each reason with its number of queries."""
    labelled = query.person > 0
    present = labelled & np.isin(query.person, gallery.person)
    absent, one_camera = (labelled & ~present).sum(), present.sum()
    return (
        f"none of the {len(query)} queries has a match among the {len(gallery)} "
        "gallery images:\n"
        f"  {absent} show a person who is not in the "
        "gallery: check that query and gallery come from one data set and number "
        "their persons in the same way\n"
        f"  {one_camera} show a person whom only the query's own camera saw: if the "
        "cameras are unknown or all the same, evaluate with camera_filter=False "
        "(--config.evaluation.camera_filter=False)\n"
        f"  {(~labelled).sum()} have no person label (0 or less): label them"
    )
