"""Rank-1 between cameras: which of them see people too differently."""

from __future__ import annotations

import jax
import numpy as np

from reid_jax.retrieval.labels import Labels


class CameraPairs:
    """Counts right first answers by the camera of the query and that of the gallery.

    A query is asked of each camera of the gallery by itself: is the nearest of that
    camera's images one of the query's person? Only cameras that have such an image are
    asked, and with the camera filter not the query's own.

    Args:
      query, gallery: labels of the two sets.
      camera_filter: as for `ranking.Ranker`.

    Attributes:
      query_cameras: int [A], ascending.
      gallery_cameras: int [B], ascending.
      right: int64 [A, B], queries whose first answer is right.
      asked: int64 [A, B], queries that a right answer exists for.
    """

    def __init__(self, query: Labels, gallery: Labels, *, camera_filter: bool) -> None:
        self._query, self._gallery = query, gallery
        self._camera_filter = camera_filter
        self.query_cameras = np.unique(query.camera[query.person > 0])
        self.gallery_cameras = np.unique(gallery.camera[gallery.person >= 0])
        self._columns = [
            np.flatnonzero((gallery.camera == camera) & (gallery.person >= 0))
            for camera in self.gallery_cameras
        ]
        shape = len(self.query_cameras), len(self.gallery_cameras)
        self.right, self.asked = np.zeros(shape, np.int64), np.zeros(shape, np.int64)

    def update(self, rows: np.ndarray, keys: np.ndarray | jax.Array) -> None:
        """Counts the queries `rows` [q].

        Args:
          rows: int.
          keys: float [>= q, G], smaller is more alike; the earlier of equal ones is
            first. Rows beyond q are padding and ignored.
        """
        labelled = self._query.person[rows] > 0
        keys, rows = np.asarray(keys)[: len(rows)][labelled], rows[labelled]
        person, camera = self._query.person[rows], self._query.camera[rows]
        place = np.searchsorted(self.query_cameras, camera)
        for column, indices in enumerate(self._columns):
            same = person[:, None] == self._gallery.person[indices]
            own = self._camera_filter & (camera == self.gallery_cameras[column])
            asked = same.any(axis=1) & ~own
            first = keys[:, indices].argmin(axis=1)
            right = asked & same[np.arange(len(rows)), first]
            np.add.at(self.asked[:, column], place, asked)
            np.add.at(self.right[:, column], place, right)
