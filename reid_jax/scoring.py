"""Scores and ranking lists of one protocol, and its entry in the results."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import numpy as np

from data_pipelines import loader
from data_pipelines.protocols import Protocol
from data_pipelines.records import Records
from reid_jax import pictures
from reid_jax.retrieval.ranking import Labels, Ranker, top_matches
from reid_jax.retrieval.single_shot import SingleShotRanker

PICTURED_QUERIES = 10
PICTURED_RANKS = 10


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
        self, path: pathlib.Path, entry: dict[str, Any], size: tuple[int, int]
    ) -> None:
        """One row per pictured query: the query and its nearest gallery images."""
        rows = sorted(self._lists)
        nearest = np.stack([self._lists[row] for row in rows])
        query = loader.image_batch(self._query, np.array(rows), image_size=size)
        gallery = loader.image_batch(
            self._gallery, np.maximum(nearest, 0).ravel(), image_size=size
        )
        shape = nearest.shape
        metrics = entry["metrics"]
        pictures.ranking_lists(
            path,
            query["image"],
            gallery["image"].reshape(*shape, *size, 3),
            correct=gallery["person"].reshape(shape) == query["person"][:, None],
            present=nearest >= 0,
            captions=[
                f"person {p}, camera {c + 1}"  # as file names count
                for p, c in zip(query["person"], query["camera"], strict=True)
            ],
            title=f"{entry['protocol']}, step {entry['step']}: "
            f"rank-1 {metrics['rank1']:.1%}, mAP {metrics['mAP']:.1%}",
        )


def describe(
    protocol: Protocol, query: Records, gallery: Records, step: int
) -> dict[str, Any]:
    """What an entry of `results.json` says beside its figures."""
    entry = {
        "dataset": protocol.dataset,
        "protocol": protocol.name,
        "step": step,
        "ap": protocol.ap,
        "camera_filter": protocol.camera_filter,
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
