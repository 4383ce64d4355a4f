"""Answers of a gallery drawn: each query with its nearest images."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from reid_jax.errors import UserError
from reid_jax.extractor import images as imaging
from reid_jax.pictures.rankings import ranking_lists
from reid_jax.search.query import Asked, Hit

MOST_QUERIES, MOST_IMAGES = 50, 20


def draw(
    path: str | os.PathLike[str],
    asked: Sequence[Asked],
    lists: Sequence[Sequence[Hit]],
    size: tuple[int, int],
    *,
    title: str = "",
) -> int:
    """Writes a PNG; images that are no longer there are left empty.

    Frames say who is the same person, where both persons are known.

    Args:
      path: of the PNG.
      asked: at least one; their names are paths. The first 50 are drawn.
      lists: the answers; the first 20 images of each are drawn.
      size: height and width that images are drawn at.
      title: a line above.

    Returns:
      how many images of the answers could not be read.
    """
    asked, lists = asked[:MOST_QUERIES], [x[:MOST_IMAGES] for x in lists[:MOST_QUERIES]]
    longest = max(1, *(len(hits) for hits in lists))
    images = np.zeros((len(asked), longest, *size, 3), np.uint8)
    present = np.zeros((len(asked), longest), bool)
    for i, hits in enumerate(lists):
        for j, hit in enumerate(hits):
            image = _read(hit.facts["path"], size)
            if image is not None:
                images[i, j], present[i, j] = image, True
    queries = [_read(one.name, size) for one in asked]
    correct, known = _correct(asked, lists, present.shape)
    blank = np.full((*size, 3), 255, np.uint8)
    ranking_lists(
        path,
        np.stack([blank if image is None else image for image in queries]),
        images,
        correct,
        present,
        [os.path.basename(one.name) for one in asked],
        known=known,
        notes=[
            [_note(hit) for hit in hits] + [""] * (longest - len(hits))
            for hits in lists
        ],
        title=title,
        about=f"under each image: {_noted(lists)}",
    )
    return sum(len(hits) for hits in lists) - int(present.sum())


def _noted(lists: Sequence[Sequence[Hit]]) -> str:
    known = any(hit.facts.get("camera") for hits in lists for hit in hits)
    return "file, camera and distance" if known else "file and distance"


def _note(hit: Hit) -> str:
    facts = hit.facts
    camera = f" camera {facts['camera']}" if facts.get("camera") else ""
    return f"{os.path.basename(facts['path'])}{camera} {hit.distance:.3f}"


def _correct(
    asked: Sequence[Asked], lists: Sequence[Sequence[Hit]], shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Whether images show the query's person, and if that is known, bool [n, k]."""
    correct, known = np.zeros(shape, bool), np.zeros(shape, bool)
    for i, (one, hits) in enumerate(zip(asked, lists, strict=True)):
        persons = [hit.facts.get("person") for hit in hits]
        correct[i, : len(hits)] = [person == one.person for person in persons]
        known[i, : len(hits)] = [bool(one.person and person) for person in persons]
    return correct, known


def _read(path: str, size: tuple[int, int]) -> np.ndarray | None:
    try:
        source = next(iter(imaging.sources([path])))
        return imaging.resized(source, size)["image"]
    except UserError:
        return None
