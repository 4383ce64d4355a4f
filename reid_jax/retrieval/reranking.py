"""The steps of re-ranking, in the order that a config or a caller lists.

Flip, database-side augmentation and query expansion make other embeddings, of which all
later distances are. k-reciprocal encoding turns these distances into others. Steps see
all queries and the whole gallery, and no label: what a protocol's ranking leaves out,
or a single-shot protocol does not draw, is a neighbour as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from reid_jax.retrieval import expansion, search
from reid_jax.retrieval.k_reciprocal import Encoding, KReciprocal, searched
from reid_jax.retrieval.search import Embedding

Pair = tuple[Embedding, Embedding]
"""Embeddings of the queries and of the gallery, on the host."""

EXPANDED = {"database_augmentation": "gallery", "query_expansion": "query"}
"""Steps that average neighbours in, and whose embeddings they change."""


class Reranking:
    """Applies steps to the embeddings of queries and of a gallery.

    Args:
      steps: by name, with their options, see `steps.STEPS`; "flip" is done before.
      comparison: of the method.
      squares: whether the method's distances are squares already.
      block: queries at once.
      progress: shows bars.
    """

    def __init__(
        self,
        steps: Mapping[str, Any],
        comparison: search.Comparison,
        *,
        squares: bool,
        block: int,
        progress: bool = True,
    ):
        self._steps, self._comparison = steps, comparison
        self._squares, self._block, self._progress = squares, block, progress

    def embeddings(self, plain: Pair) -> Pair:
        """What is compared in place of `plain` embeddings, behind the flip."""
        query, gallery = plain
        for step in [name for name in self._steps if name in EXPANDED]:
            if EXPANDED[step] == "query":
                query = self._expanded(step, query, gallery)
            else:
                gallery = self._expanded(step, gallery, gallery)
        return query, gallery

    def encoding(self, query: Embedding, gallery: Embedding) -> Encoding | None:
        """That of k-reciprocal neighbours, where it is a step."""
        options = self._steps.get("k_reciprocal")
        if options is None:
            return None
        everyone = {
            name: np.concatenate([query[name], gallery[name]]) for name in query
        }
        if self._squares:
            options = dataclasses.replace(options, squared=False)
        _say_if_few(options, everyone)
        return Encoding(
            options,
            self._nearest(everyone, everyone, searched(options)),
            lambda *pair: search.pair_distances(self._comparison, everyone, *pair),
            queries=len(jax.tree.leaves(query)[0]),
        )

    def _expanded(self, step: str, own: Embedding, gallery: Embedding) -> Embedding:
        options = self._steps[step]
        _say_if_all(step, options.k, gallery)
        if own is gallery:
            found = expansion.others(self._nearest(own, gallery, options.k + 1))
        else:
            found = self._nearest(own, gallery, options.k).indices
        return expansion.expanded(
            own, gallery, found, alpha=options.alpha, block=self._block
        )

    def _nearest(self, query: Embedding, gallery: Embedding, k: int) -> search.Nearest:
        placed = search.Gallery(self._comparison, gallery)
        with tqdm(
            total=len(jax.tree.leaves(query)[0]) * placed.size,
            desc="neighbours",
            unit="pair",
            unit_scale=True,
            leave=False,
            disable=not self._progress,
        ) as bar:
            return placed.nearest(query, k, block=self._block, progress=bar.update)


def check(steps: Iterable[str], embedding: Embedding, titles: tuple[str, ...]) -> None:
    """Raises UserError for steps that a method's embeddings are not made for.

    Args:
      steps: names.
      embedding: of any images; only its names matter.
      titles: of the parts.
    """
    for step in steps:
        if step == "flip" or step in EXPANDED:
            expansion.check_averaged(embedding, step)
        if step == "flip" and "visibility" in embedding:
            expansion.other_sides(titles)


def _say_if_few(options: KReciprocal, everyone: Embedding) -> None:
    size = len(jax.tree.leaves(everyone)[0])
    if options.k1 >= size:
        print(
            f"note: k_reciprocal.k1 is {options.k1}, and there are {size} images: all "
            "are neighbours of each other"
        )


def _say_if_all(step: str, k: int, gallery: Embedding) -> None:
    size = len(jax.tree.leaves(gallery)[0])
    if k >= size:
        print(
            f"note: {step}.k is {k}, and the gallery has {size} images: the whole of "
            "it is averaged in"
        )
