"""Maps of parts over queries and their answers, with the parts that are not visible.

A distance compares the parts that both images show: these pictures say which, and where
the network saw them.
"""

from __future__ import annotations

import numpy as np

from data_pipelines import loader
from reid_jax import pictures
from reid_jax.evaluation.drawing import Drawing, captions_of
from reid_jax.evaluation.lists import Examples
from reid_jax.models.method import Batch, Maps, Method, Picture, Variables

QUERIES = 2
ANSWERS = 3
"""Of each query. Together they are as many images as the other pictures have."""

NOT_VISIBLE = "not visible"


def draw(
    drawing: Drawing, method: Method, variables: Variables, chosen: Examples
) -> None:
    """`NAME_answers.png` for each picture of the method that has maps of parts.

    Every row is a query or one of its answers, below it; see `NOT_VISIBLE` under a map
    whose part does not count.

    Args:
      drawing: of the evaluation, with its visibility.
      method: whose pictures.
      variables: on this process's first device.
      chosen: the queries and their answers.
    """
    there = (chosen.ranks > 0).all(0)
    nearest, ranks = chosen.gallery[:, there], chosen.ranks[:, there]
    batch, visible = _join(drawing, chosen.rows, nearest)
    names = captions_of(drawing.query, chosen.rows)
    heading = f"{drawing.entry['protocol']}, step {drawing.entry['step']}"
    for name, item in method.pictures(variables, batch).items():
        notes = _notes(item, drawing.visibility.titles, visible)
        if not notes:
            continue
        pictures.draw(
            drawing.folder / f"{name}_answers.png",
            batch["image"],
            item,
            title=f"{name.replace('_', ' ')}: {heading}",
            frames=_frames(batch["person"].reshape(len(ranks), -1)),
            captions=[
                caption
                for query, places in zip(names, ranks, strict=True)
                for caption in (query, *(f"rank {place}" for place in places))
            ],
            notes=notes,
            row_group=1 + ranks.shape[1],
        )


def _join(
    drawing: Drawing, rows: np.ndarray, nearest: np.ndarray
) -> tuple[Batch, np.ndarray]:
    """Each of the queries `rows` [n], then its answers `nearest` [n, k]: one batch.

    And which parts are visible in its rows, bool [n * (1 + k), K].
    """
    query, gallery = (
        loader.image_batch(split, taken, image_size=drawing.image_size, with_parts=True)
        for split, taken in (
            (drawing.query, rows),
            (drawing.gallery, nearest.ravel()),
        )
    )

    def join(first: np.ndarray, rest: np.ndarray) -> np.ndarray:
        rest = rest.reshape(*nearest.shape, *first.shape[1:])
        both = np.concatenate([first[:, None], rest], axis=1)
        return both.reshape(-1, *first.shape[1:])

    batch = {name: join(query[name], gallery[name]) for name in query}
    seen = drawing.visibility
    visible = join(seen.query[rows], seen.gallery[nearest.ravel()])
    return batch, visible > pictures.VISIBLE


def _frames(person: np.ndarray) -> list[tuple[int, int, int]]:
    """Colours of rows of a query and its answers, by person [n, 1 + k]."""
    frames = []
    for query, *answers in person.tolist():
        right = [pictures.RIGHT if x == query else pictures.WRONG for x in answers]
        frames += [pictures.QUERY, *right]
    return frames


def _notes(
    item: Picture, titles: tuple[str, ...], visible: np.ndarray
) -> list[list[str]]:
    """What stands under each map; nothing if none of them is of a part."""
    if not isinstance(item, Maps) or not set(titles) & set(item.titles):
        return []
    return [
        [
            NOT_VISIBLE if title in titles and not row[titles.index(title)] else ""
            for title in item.titles
        ]
        for row in visible
    ]
