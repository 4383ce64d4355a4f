"""The pictures of one evaluation: ranking lists, and what the method has to show."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from data_pipelines import loader
from data_pipelines.records import Records
from reid_jax import pictures
from reid_jax.evaluation.scoring import Ranking, spread
from reid_jax.evaluation.second_look import SecondLook
from reid_jax.models.method import Batch, Embedding, Method, Variables

COMPARED_QUERIES = 5
"""Of so many, a picture has two lists: before and after pairs were scored."""
PICTURED_MAPS = 8
PICTURED_PAIRS = 4
"""Queries of a picture of pairs, and candidates of each."""


class Visibility(NamedTuple):
    """Which parts are visible: bool or float [Nq, K] and [Ng, K], and their names."""

    query: np.ndarray
    gallery: np.ndarray
    titles: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, query: Embedding, gallery: Embedding, titles: tuple[str, ...]
    ) -> Visibility | None:
        """Which parts are visible, on the host, where there are any to draw."""
        if "visibility" not in query or (titles and not any(titles)):
            return None
        drawn = np.flatnonzero(titles) if titles else slice(None)
        seen = (np.asarray(side["visibility"])[:, drawn] for side in (query, gallery))
        return cls(*seen, tuple(filter(None, titles)))


@dataclasses.dataclass(frozen=True)
class Drawing:
    """Draws one evaluation.

    Attributes:
      folder: where the pictures go.
      entry: of `results.json`.
      query, gallery: the two splits.
      image_size: height and width.
      visibility: of the parts of all images, if there are any to draw.
    """

    folder: epath.Path
    entry: dict[str, Any]
    query: Records
    gallery: Records
    image_size: tuple[int, int]
    visibility: Visibility | None = None

    def lists(self, ranking: Ranking) -> None:
        """`ranking.png`: a row for each query, with its nearest gallery images."""
        rows = np.array(sorted(ranking.lists))
        title = f"{self._heading}: {_figures(self.entry['metrics'])}"
        self._lists("ranking.png", {"": ranking.lists}, rows, title)

    def lists_beside(self, before: Ranking, after: Ranking) -> None:
        """`ranking_pairs.png`: two rows for each query, before and after the pairs."""
        rows = spread(np.array(sorted(after.lists)), COMPARED_QUERIES)
        title = (
            f"{self._heading}: {_figures(self.entry['metrics'])}; before pairs were "
            f"scored: {_figures(self.entry['metrics_before_pairs'])}"
        )
        lists = {"; before": before.lists, "; after": after.lists}
        self._lists("ranking_pairs.png", lists, rows, title)

    def method(self, method: Method, variables: Variables) -> None:
        """The pictures particular to the method, over some queries and gallery images.

        Of the two, one may be occluded or partial where the other is whole.
        """
        batches = [
            loader.image_batch(
                split,
                spread(np.arange(len(split)), PICTURED_MAPS // 2),
                image_size=self.image_size,
                with_parts=True,
            )
            for split in (self.query, self.gallery)
        ]
        batch = {
            name: np.concatenate([part[name] for part in batches])
            for name in set.intersection(*map(set, batches))
        }
        for name, item in method.pictures(variables, batch).items():
            title = f"{name.replace('_', ' ')}: {self._heading}"
            path = self.folder / f"{name}.png"
            pictures.draw(path, batch["image"], item, title=title)

    def pairs(self, ranking: Ranking, look: SecondLook) -> None:
        """The pair scorer's pictures, over the first candidates of some queries."""
        chosen = ranking.examples(PICTURED_PAIRS, PICTURED_PAIRS)
        query, gallery = self._batches(chosen.rows, chosen.gallery)
        for name, item in look.pictures(chosen.rows, chosen.gallery).items():
            pictures.draw_pairs(
                self.folder / f"{name}.png",
                query["image"],
                gallery["image"],
                item,
                correct=gallery["person"] == query["person"][:, None],
                ranks=chosen.ranks,
                captions=_captions(self.query, chosen.rows),
                title=self._heading,
            )

    @property
    def _heading(self) -> str:
        return f"{self.entry['protocol']}, step {self.entry['step']}"

    def _lists(
        self,
        name: str,
        lists: dict[str, dict[int, np.ndarray]],
        rows: np.ndarray,
        title: str,
    ) -> None:
        """The lists of each query under each other; their keys end the captions."""
        nearest = np.stack([one[row] for row in rows for one in lists.values()])
        rows = np.repeat(rows, len(lists))
        query, gallery = self._batches(rows, np.maximum(nearest, 0))
        seen = {}
        if self.visibility is not None:
            seen["query_visibility"] = self.visibility.query[rows]
            seen["gallery_visibility"] = self.visibility.gallery[nearest]
            seen["part_titles"] = self.visibility.titles
        captions = _captions(self.query, rows)
        notes = list(lists) * (len(rows) // len(lists))
        pictures.ranking_lists(
            self.folder / name,
            query["image"],
            gallery["image"],
            correct=gallery["person"] == query["person"][:, None],
            present=nearest >= 0,
            captions=[f"{c}{n}" for c, n in zip(captions, notes, strict=True)],
            title=title,
            row_group=len(lists),
            **seen,
        )

    def _batches(self, rows: np.ndarray, nearest: np.ndarray) -> tuple[Batch, Batch]:
        """Queries [n] and gallery images [n, k]."""
        size = self.image_size
        query = loader.image_batch(self.query, rows, image_size=size)
        gallery = loader.image_batch(self.gallery, nearest.ravel(), image_size=size)
        shaped = {
            name: gallery[name].reshape(*nearest.shape, *gallery[name].shape[1:])
            for name in ("image", "person")
        }
        return query, shaped


def _captions(queries: Records, rows: np.ndarray) -> list[str]:
    """Person and camera of some queries, as their source names them."""
    persons = map(queries.person_name, queries.person[rows])
    cameras = map(queries.camera_name, queries.camera[rows])
    pairs = zip(persons, cameras, strict=True)
    return [f"person {person}, camera {camera}" for person, camera in pairs]


def _figures(metrics: dict[str, float]) -> str:
    return f"rank-1 {metrics['rank1']:.1%}, mAP {metrics['mAP']:.1%}"
