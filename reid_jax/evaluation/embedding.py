"""Embeddings of a whole split, over all devices and processes."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from tqdm import tqdm

from data_pipelines import loader
from data_pipelines.part_labels.kinds import flip_classes
from data_pipelines.records import Records
from reid_jax.models.method import Embedding, Method, Variables
from reid_jax.retrieval.expansion import mirror
from reid_jax.runtime import sharding


def embed_function(
    method: Method, mesh: jax.sharding.Mesh
) -> Callable[[Variables, jax.Array, dict[str, jax.Array]], Embedding]:
    """The jitted (variables, images, other inputs by name) -> Embedding, replicated."""

    def embed(
        variables: Variables, image: jax.Array, rest: dict[str, jax.Array]
    ) -> Embedding:
        return method.embed(variables, image, **rest)

    return jax.jit(embed, out_shardings=sharding.replicated(mesh))


class Embedder:
    """Embeds splits with one method, compiling once.

    Args:
      method: that embeds.
      mesh: to embed on.
      image_size: height and width.
      batch_size: images of a batch over all devices.

    Raises:
      UserError: if the devices do not divide `batch_size`.
    """

    def __init__(
        self,
        method: Method,
        mesh: jax.sharding.Mesh,
        *,
        image_size: tuple[int, int],
        batch_size: int,
    ):
        sharding.check_divides(batch_size, mesh, field="config.evaluation.batch_size")
        self._inputs, self._mesh = method.embed_inputs, mesh
        self._image_size, self._batch_size = image_size, batch_size
        self._embed = embed_function(method, mesh)

    def shapes(self, variables: Variables) -> Embedding:
        """Shapes and dtypes of a batch's embeddings; nothing is computed."""
        size, shape = self._batch_size, jax.ShapeDtypeStruct
        rows = {
            "image": shape((size, *self._image_size, 3), "uint8"),
            "camera": shape((size,), "int32"),
            "parts": shape((size, *self._image_size), "uint8"),
        }
        rest = {name: rows[name] for name in self._inputs}
        return jax.eval_shape(self._embed, variables, rows["image"], rest)

    def __call__(
        self,
        variables: Variables,
        records: Records,
        what: str,
        *,
        mirrored: bool = False,
    ) -> Embedding:
        """Embeddings [N, ...] of a split, on the host of every process.

        Args:
          variables: replicated on the mesh.
          records: the split.
          what: it is called by the progress bar.
          mirrored: whether the mirror images are embedded instead.
        """
        batches = loader.eval_batches(
            records,
            image_size=self._image_size,
            batch_size=self._batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            with_parts="parts" in self._inputs,
        )
        blocks = []
        with tqdm(
            total=len(records),
            desc=f"embedding {what}",
            unit="img",
            leave=False,
            disable=jax.process_index() != 0,
        ) as bar:
            bar.set_postfix_str("the first batch is compiled first")
            for batch in batches:
                if mirrored:
                    batch = _mirror(batch, records.parts_kind)
                rows = sharding.put_batch(batch, self._mesh)
                rest = {name: rows[name] for name in self._inputs}
                blocks.append(
                    sharding.fetch(self._embed(variables, rows["image"], rest))
                )
                bar.set_postfix_str("", refresh=False)
                bar.update(min(self._batch_size, len(records) - bar.n))
        # Only the last batch is padded, at its end.
        return jax.tree.map(lambda *x: np.concatenate(x)[: len(records)], *blocks)


def _mirror(batch: dict[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    """A batch of the mirror images, with the labels of the other side."""
    turned = {
        name: np.ascontiguousarray(mirror(array))
        for name, array in batch.items()
        if name in ("image", "parts")
    }
    if "parts" in turned:
        turned["parts"] = flip_classes(turned["parts"], kind)
    return batch | turned
