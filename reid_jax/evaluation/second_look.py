"""A pair model's second look at the images of one protocol."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from data_pipelines import loader
from data_pipelines.records import Records
from reid_jax import storage
from reid_jax.evaluation.pairs import PairNetwork, PairRescorer
from reid_jax.models.method import PairPicture, Variables
from reid_jax.retrieval.rescoring import MapStore


class SecondLook:
    """What pairs of a query and a gallery image are scored by.

    Args:
      network: of the stage.
      variables: on one device.
      query, gallery: the two splits.
      image_size: height and width.
      pair_block: images whose maps are computed at once, and candidates scored at once.
    """

    def __init__(
        self,
        network: PairNetwork,
        variables: Variables,
        query: Records,
        gallery: Records,
        *,
        image_size: tuple[int, int],
        pair_block: int,
    ):
        self._network, self._variables = network, variables
        self._query, self._gallery = query, gallery
        self._image_size, self._block = image_size, pair_block

    @contextlib.contextmanager
    def rescorer(self, *, cache_bytes: int) -> Iterator[PairRescorer]:
        """Scores of all pairs that there are to score, with a bar of progress.

        Args:
          cache_bytes: of disk that the gallery's maps may take meanwhile.
        """
        limit, images = self._network.scorer.top_k, len(self._gallery)
        with (
            tempfile.TemporaryDirectory() as folder,
            storage.written(folder),
            MapStore(
                lambda indices: self._maps(self._gallery, indices),
                directory=folder,
                max_bytes=cache_bytes,
                batch_size=self._block,
            ) as store,
            tqdm(
                total=len(self._query) * min(limit or images, images),
                desc="scoring pairs",
                unit="pair",
                leave=False,
            ) as bar,
        ):
            yield PairRescorer(
                self._network,
                self._variables,
                query_maps=lambda rows: self._maps(self._query, rows),
                gallery_maps=store,
                pair_block=self._block,
                progress=bar.update,
            )

    def pictures(self, rows: np.ndarray, gallery: np.ndarray) -> dict[str, PairPicture]:
        """The scorer's pictures of queries `rows` [Q] with gallery images [Q, K]."""
        query_maps = self._maps(self._query, rows)
        flat = self._maps(self._gallery, gallery.ravel())
        maps = jax.tree.map(lambda m: m.reshape(*gallery.shape, *m.shape[1:]), flat)
        return self._network.scorer.pictures(self._variables, query_maps, maps)

    def _maps(self, records: Records, indices: np.ndarray) -> Any:
        """Maps of some images, a pytree of NumPy arrays of leading axis n."""
        inputs = self._network.scorer.inputs
        blocks = []
        for start in range(0, len(indices), self._block):
            batch = loader.image_batch(
                records,
                # Repeating rows fills the last block: one shape, one compilation.
                np.resize(indices[start : start + self._block], self._block),
                image_size=self._image_size,
                with_parts="parts" in inputs,
            )
            rest = {name: batch[name] for name in inputs}
            maps = self._network.pair_maps(self._variables, batch["image"], rest)
            blocks.append(jax.tree.map(np.asarray, maps))
        return jax.tree.map(lambda *x: np.concatenate(x)[: len(indices)], *blocks)
