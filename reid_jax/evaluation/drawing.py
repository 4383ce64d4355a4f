"""The pictures of one evaluation: ranking lists, and what the method has to show."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from data_pipelines import loader
from data_pipelines.records import Records
from reid_jax import pictures
from reid_jax.evaluation.details import Details
from reid_jax.evaluation.lists import Lists, spread
from reid_jax.evaluation.results import BEFORE_PAIRS, BEFORE_RERANKING
from reid_jax.evaluation.second_look import SecondLook
from reid_jax.models.method import Batch, Embedding, Method, Variables
from reid_jax.pictures.roc import draw_roc
from reid_jax.retrieval.verification import Curve
from reid_jax.runtime import workdir

BESIDE = {
    BEFORE_RERANKING: ("ranking_reranked.png", "before re-ranking"),
    BEFORE_PAIRS: ("ranking_pairs.png", "before pairs were scored"),
}
"""States before a change, by the name of their metrics: picture, and what it says."""
COMPARED_QUERIES = 5
"""Of so many, a picture has two lists: before and after such a change."""
PICTURED_MAPS = 4
"""Queries, and as many gallery images, of a method's own pictures."""
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
      plain: the same before images were flipped.
    """

    folder: epath.Path
    entry: dict[str, Any]
    query: Records
    gallery: Records
    image_size: tuple[int, int]
    visibility: Visibility | None = None
    plain: Visibility | None = None

    def clear(self) -> None:
        """Removes what an earlier evaluation left here: this one may draw less."""
        for drawn in ("*.png", Details.NAME):
            for path in self.folder.glob(drawn):
                path.unlink()

    def lists(self, lists: Lists) -> None:
        """`ranking.png`: a row for each query, with its nearest gallery images.

        `ranking.json` has the same by file name, for `side_by_side`.
        """
        about = ("dataset", "protocol", "step", "metrics")
        written = {name: self.entry[name] for name in about}
        written["queries"] = lists.by_name()
        workdir.write_json(self.folder / "ranking.json", written)
        title = f"{self._heading}: {figures(self.entry['metrics'])}"
        self._lists("ranking.png", {"": lists}, lists.rows, title)

    def ends(self, details: Details) -> None:
        """`hardest.png` and `easiest.png`, and all figures of single queries.

        These are in `details.json`, for a report.
        """
        about = ("dataset", *Details.OF)
        written = {name: self.entry.get(name) for name in about} | details.by_name()
        workdir.write_text(self.folder / details.NAME, json.dumps(written))
        for name, lists in details.ends.items():
            title = f"{self._heading}: the {name} queries"
            self._lists(f"{name}.png", {"": lists}, lists.rows, title)

    def lists_beside(self, before: Lists, after: Lists, name: str) -> None:
        """Two rows for each query, before and after a change of `BESIDE`."""
        file, what = BESIDE[name]
        title = (
            f"{self._heading}: {figures(self.entry['metrics'])}; {what}: "
            f"{figures(self.entry[f'metrics_{name}'])}"
        )
        both = {"; before": before, "; after": after}
        plain = self.plain if name == BEFORE_RERANKING else self.visibility
        rows, seen = after.some(COMPARED_QUERIES), (plain, self.visibility)
        self._lists(file, both, rows, title, seen)

    def roc(self, curve: Curve) -> None:
        """`roc.png`: how many pairs of one person each rate of false ones accepts."""
        draw_roc(self.folder / "roc.png", curve.fpr, curve.tpr, title=self._heading)

    def method(self, method: Method, variables: Variables, rows: np.ndarray) -> None:
        """The method's own pictures, over queries and as many gallery images.

        Of the two, one may be occluded or partial where the other is whole.
        """
        beside = spread(np.arange(len(self.gallery)), len(rows))
        chosen = (self.query, rows), (self.gallery, beside)
        captions = [
            f"{what}: {name}"
            for what, pair in zip(("query", "gallery"), chosen, strict=True)
            for name in captions_of(*pair)
        ]
        batches = [
            loader.image_batch(split, some, image_size=self.image_size, with_parts=True)
            for split, some in chosen
        ]
        batch = {
            name: np.concatenate([part[name] for part in batches])
            for name in set.intersection(*map(set, batches))
        }
        for name, item in method.pictures(variables, batch).items():
            title = f"{name.replace('_', ' ')}: {self._heading}"
            path = self.folder / f"{name}.png"
            pictures.draw(path, batch["image"], item, title=title, captions=captions)

    def pairs(self, lists: Lists, look: SecondLook) -> None:
        """The pair scorer's pictures, over the first candidates of some queries."""
        chosen = lists.examples(PICTURED_PAIRS, PICTURED_PAIRS)
        query, gallery = self._batches(chosen.rows, chosen.gallery)
        for name, item in look.pictures(chosen.rows, chosen.gallery).items():
            pictures.draw_pairs(
                self.folder / f"{name}.png",
                query["image"],
                gallery["image"],
                item,
                correct=gallery["person"] == query["person"][:, None],
                ranks=chosen.ranks,
                captions=captions_of(self.query, chosen.rows),
                title=self._heading,
            )

    @property
    def _heading(self) -> str:
        return f"{self.entry['protocol']}, step {self.entry['step']}"

    def _lists(
        self,
        name: str,
        lists: dict[str, Lists],
        rows: np.ndarray,
        title: str,
        seen_of: Sequence[Visibility | None] = (),
    ) -> None:
        """The lists of each query under each other; their keys end the captions.

        `seen_of` is the visibility of each list, where they are not all the same.
        """
        pairs = [(one, row) for row in rows for one in lists.values()]
        nearest = np.stack([one.nearest[row] for one, row in pairs])
        rows = np.repeat(rows, len(lists))
        query, gallery = self._batches(rows, np.maximum(nearest, 0))
        seen = {}
        if self.visibility is not None:
            of_row = list(seen_of or [self.visibility] * len(lists))
            of_row *= len(rows) // len(lists)
            queries = zip(of_row, rows, strict=True)
            found = zip(of_row, nearest, strict=True)
            seen["query_visibility"] = np.stack([s.query[row] for s, row in queries])
            seen["gallery_visibility"] = np.stack([s.gallery[row] for s, row in found])
            seen["part_titles"] = self.visibility.titles
        ends = list(lists) * (len(rows) // len(lists))
        captions = zip(captions_of(self.query, rows), ends, strict=True)
        pictures.ranking_lists(
            self.folder / name,
            query["image"],
            gallery["image"],
            correct=gallery["person"] == query["person"][:, None],
            present=nearest >= 0,
            captions=[f"{caption}{end}" for caption, end in captions],
            notes=[
                notes_of(map(self.gallery.filename, one.nearest[row]), one.keys[row])
                for one, row in pairs
            ],
            title=title,
            about=NOTES,
            row_group=len(lists),
            **seen,
        )

    def _batches(self, rows: np.ndarray, nearest: np.ndarray) -> tuple[Batch, Batch]:
        return batches(self.query, self.gallery, rows, nearest, self.image_size)


def batches(
    query: Records,
    gallery: Records,
    rows: np.ndarray,
    nearest: np.ndarray,
    image_size: tuple[int, int],
) -> tuple[Batch, Batch]:
    """Images and persons of queries `rows` [n] and gallery images `nearest` [n, k]."""
    queries = loader.image_batch(query, rows, image_size=image_size)
    found = loader.image_batch(gallery, nearest.ravel(), image_size=image_size)
    shaped = {
        name: found[name].reshape(*nearest.shape, *found[name].shape[1:])
        for name in ("image", "person")
    }
    return queries, shaped


def captions_of(queries: Records, rows: np.ndarray) -> list[str]:
    """File, person and camera of some queries, as their source names them."""
    names = zip(
        map(queries.filename, rows),
        map(queries.person_name, queries.person[rows]),
        map(queries.camera_name, queries.camera[rows]),
        strict=True,
    )
    return [f"{file}\nperson {one}, camera {camera}" for file, one, camera in names]


NOTES = "under an image: its file, and the distance that it is ranked by"


def notes_of(names: Iterable[str], keys: Iterable[float]) -> list[str]:
    """What stands under the images of a list, see `NOTES`."""
    return [f"{name}\n{key:.3f}" for name, key in zip(names, keys, strict=True)]


def figures(metrics: dict[str, float]) -> str:
    """Those of a picture's title."""
    return f"rank-1 {metrics['rank1']:.1%}, mAP {metrics['mAP']:.1%}"
