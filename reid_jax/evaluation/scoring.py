"""Scores and ranking lists of one protocol, and its entry in the results."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from data_pipelines import loader
from data_pipelines.protocols import Protocol
from data_pipelines.records import Records
from reid_jax import pictures
from reid_jax.models.method import Batch, PairPicture
from reid_jax.retrieval.labels import Labels
from reid_jax.retrieval.lists import top_matches
from reid_jax.retrieval.ranking import Ranker
from reid_jax.retrieval.single_shot import SingleShotRanker

PICTURED_QUERIES = 10
PICTURED_RANKS = 10
COMPARED_QUERIES = 5
"""Of so many, a picture has two lists: before and after pairs were scored."""


class Visibility(NamedTuple):
    """Which parts are visible: bool or float [Nq, K] and [Ng, K], and their names."""

    query: np.ndarray
    gallery: np.ndarray
    titles: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Examples:
    """Pairs to draw.

    Attributes:
      rows: int [Q], the queries.
      gallery: int [Q, K], the candidates; 0 where there is none.
      ranks: int [Q, K], their places in the lists, from 1 on; 0 where there is none.
    """

    rows: np.ndarray
    gallery: np.ndarray
    ranks: np.ndarray


class Ranking:
    """Metrics and ranking lists of one protocol, block by block.

    The lists show the whole gallery, whatever a single-shot protocol draws from it.
    """

    def __init__(self, protocol: Protocol, query: Records, gallery: Records):
        self._protocol = protocol
        self._query, self._gallery = query, gallery
        self._labels = [Labels(r.person, r.camera) for r in (query, gallery)]
        self._ranker = _ranker(protocol, *self._labels)
        valid = np.flatnonzero(query.person > 0)
        self._pictured = spread(valid, PICTURED_QUERIES)
        self._lists: dict[int, np.ndarray] = {}

    def update(self, rows: np.ndarray, keys: jax.Array | np.ndarray) -> None:
        """Takes keys [>= q, G] of the queries `rows` [q]."""
        self._ranker.update(int(rows[0]), keys)
        shown = np.intersect1d(rows, self._pictured)
        if len(shown):
            nearest = top_matches(
                np.asarray(keys)[shown - rows[0]],
                shown,
                *self._labels,
                k=PICTURED_RANKS,
                camera_filter=self._protocol.camera_filter,
            )
            self._lists |= dict(zip(shown.tolist(), nearest, strict=True))

    def figures(self) -> dict[str, Any]:
        """Metrics as fractions, and how many queries they are the mean of."""
        result = self._ranker.result()
        valid, published = result.valid_queries, self._protocol.valid_queries
        figures = {
            "metrics": result.metrics(self._protocol.ranks),
            "valid_queries": valid,
        }
        if published not in (None, valid):
            figures["note"] = (
                f"the published {self._protocol.dataset} has {published} valid "
                "queries: these figures are not comparable with published ones"
            )
        return figures

    def draw(
        self,
        path: epath.Path,
        entry: dict[str, Any],
        size: tuple[int, int],
        visibility: Visibility | None = None,
    ) -> None:
        """One row per pictured query: the query and its nearest gallery images."""
        rows = np.array(sorted(self._lists))
        title = f"{_heading(entry)}: {_figures(entry['metrics'])}"
        self._draw({"": self._lists}, rows, path, title, size, visibility)

    def draw_beside(
        self,
        before: Ranking,
        path: epath.Path,
        entry: dict[str, Any],
        size: tuple[int, int],
        visibility: Visibility | None = None,
    ) -> None:
        """Two rows per query: its list in the ranking `before`, and in this one."""
        rows = spread(np.array(sorted(self._lists)), COMPARED_QUERIES)
        title = (
            f"{_heading(entry)}: {_figures(entry['metrics'])}; before pairs were "
            f"scored: {_figures(entry['metrics_before_pairs'])}"
        )
        lists = {"; before": before._lists, "; after": self._lists}
        self._draw(lists, rows, path, title, size, visibility)

    def _draw(
        self,
        lists: dict[str, dict[int, np.ndarray]],
        rows: np.ndarray,
        path: epath.Path,
        title: str,
        size: tuple[int, int],
        visibility: Visibility | None,
    ) -> None:
        """The lists of each query under each other; their keys end the captions."""
        nearest = np.stack([one[row] for row in rows for one in lists.values()])
        rows = np.repeat(rows, len(lists))
        query, gallery = self._batches(rows, np.maximum(nearest, 0), size)
        seen = {}
        if visibility is not None:
            seen["query_visibility"] = visibility.query[rows]
            seen["gallery_visibility"] = visibility.gallery[nearest]
            seen["part_titles"] = visibility.titles
        notes = list(lists) * (len(rows) // len(lists))
        pictures.ranking_lists(
            path,
            query["image"],
            gallery["image"],
            correct=gallery["person"] == query["person"][:, None],
            present=nearest >= 0,
            captions=[f"{c}{n}" for c, n in zip(_captions(query), notes, strict=True)],
            title=title,
            row_group=len(lists),
            **seen,
        )

    def examples(self, queries: int, candidates: int) -> Examples:
        """Some pictured queries, each with the first images of its list.

        Where these are all wrong, the last of them gives way to the first right one
        of the list, if there is one.
        """
        rows = spread(np.array(sorted(self._lists)), queries)
        nearest = np.stack([self._lists[row] for row in rows])
        persons = self._gallery.person[nearest]
        right = (nearest >= 0) & (persons == self._query.person[rows][:, None])
        places = np.tile(np.arange(candidates), (len(rows), 1))
        # The first right place, or 0 where there is none.
        places[:, -1] = np.maximum(places[:, -1], right.argmax(axis=1))
        chosen = np.take_along_axis(nearest, places, axis=1)
        ranks = np.where(chosen >= 0, places + 1, 0)
        return Examples(rows, np.maximum(chosen, 0), ranks)

    def draw_pairs(
        self,
        path: epath.Path,
        examples: Examples,
        item: PairPicture,
        entry: dict[str, Any],
        size: tuple[int, int],
    ) -> None:
        """What a pair scorer has to show of some examples."""
        query, gallery = self._batches(examples.rows, examples.gallery, size)
        pictures.draw_pairs(
            path,
            query["image"],
            gallery["image"],
            item,
            correct=gallery["person"] == query["person"][:, None],
            ranks=examples.ranks,
            captions=_captions(query),
            title=_heading(entry),
        )

    def _batches(
        self, rows: np.ndarray, nearest: np.ndarray, size: tuple[int, int]
    ) -> tuple[Batch, Batch]:
        """Queries [n] and gallery images [n, k]."""
        query = loader.image_batch(self._query, rows, image_size=size)
        gallery = loader.image_batch(self._gallery, nearest.ravel(), image_size=size)
        shaped = {
            name: gallery[name].reshape(*nearest.shape, *gallery[name].shape[1:])
            for name in ("image", "person")
        }
        return query, shaped


def _captions(query: Batch) -> list[str]:
    pairs = zip(query["person"], query["camera"], strict=True)
    return [f"person {p}, camera {c + 1}" for p, c in pairs]  # as file names count


def _heading(entry: dict[str, Any]) -> str:
    return f"{entry['protocol']}, step {entry['step']}"


def _figures(metrics: dict[str, float]) -> str:
    return f"rank-1 {metrics['rank1']:.1%}, mAP {metrics['mAP']:.1%}"


def describe(
    protocol: Protocol, query: Records, gallery: Records, step: int
) -> dict[str, Any]:
    """What an entry of `results.json` says beside its figures.

    The camera filter is false as well where no camera took both queries and gallery
    images: it leaves nothing out.
    """
    shared = np.intersect1d(query.camera, gallery.camera).size > 0
    entry = {
        "dataset": protocol.dataset,
        "protocol": protocol.name,
        "step": step,
        "ap": protocol.ap,
        "camera_filter": protocol.camera_filter and shared,
        "shots": "single" if protocol.single_shot else "all",
        "query_images": len(query),
        "gallery_images": len(gallery),
    }
    if protocol.single_shot:
        entry |= {"repeats": protocol.repeats, "seed": protocol.seed}
    return entry


def _ranker(
    protocol: Protocol, query: Labels, gallery: Labels
) -> Ranker | SingleShotRanker:
    chosen = {"camera_filter": protocol.camera_filter, "ap": protocol.ap}
    if not protocol.single_shot:
        return Ranker(query, gallery, **chosen)
    # Pair models score pairs once, over the whole gallery; each draw ranks its share.
    return SingleShotRanker(
        query, gallery, repeats=protocol.repeats, seed=protocol.seed, **chosen
    )


def spread(values: np.ndarray, count: int) -> np.ndarray:
    """`count` values from first to last, evenly; the same ones in every evaluation."""
    places = np.linspace(0, len(values) - 1, min(count, len(values)))
    return values[places.round().astype(int)]
