"""Embeddings of a whole split, over all devices and processes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from data_pipelines import loader
from data_pipelines.part_labels.kinds import flip_classes
from data_pipelines.records import Records
from reid_jax.models.method import Embedding, Method, Variables
from reid_jax.retrieval import expansion
from reid_jax.runtime import sharding
from reid_jax.runtime.ahead import one_ahead

Inputs = dict[str, jax.Array]
"""What a method embeds by beside the image, by name."""


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
        self._titles = method.visibility_titles
        self._mirrored = jax.jit(
            _mirrored,
            static_argnames="kind",
            out_shardings=sharding.batch_sharding(mesh),
        )
        self._averaged = jax.jit(
            expansion.with_mirrored,
            static_argnames="sides",
            out_shardings=sharding.replicated(mesh),
        )

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

    def __call__(self, variables: Variables, records: Records, what: str) -> Embedding:
        """Embeddings [N, ...] of a split, on the host of every process.

        Args:
          variables: replicated on the mesh.
          records: the split.
          what: it is called by the progress bar.
        """
        return self._embedded(functools.partial(self._embed, variables), records, what)

    def with_flip(
        self, variables: Variables, records: Records, what: str
    ) -> tuple[Embedding, Embedding]:
        """The same, and averaged with those of the mirror images; all are read once.

        Raises:
          UserError: if a part has no other side.
        """

        def both(image: jax.Array, rest: Inputs) -> tuple[Embedding, Embedding]:
            plain = self._embed(variables, image, rest)
            turned = self._mirrored(image, rest, kind=records.parts_kind)
            other = self._embed(variables, *turned)
            titles = self._titles if "visibility" in plain else ()
            sides = expansion.other_sides(titles)
            return plain, self._averaged(plain, other, sides=sides)

        return self._embedded(both, records, what)

    def _embedded(
        self, start: Callable[[jax.Array, Inputs], Any], records: Records, what: str
    ) -> Any:
        """What `start` gives for all batches, joined, on the host of every process."""
        batches = loader.eval_batches(
            records,
            image_size=self._image_size,
            batch_size=self._batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            with_parts="parts" in self._inputs,
        )
        placed = (sharding.put_batch(batch, self._mesh) for batch in batches)
        started = (
            start(rows["image"], {name: rows[name] for name in self._inputs})
            for rows in placed
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
            for running in one_ahead(started):
                blocks.append(sharding.fetch(running))
                bar.set_postfix_str("", refresh=False)
                bar.update(min(self._batch_size, len(records) - bar.n))
        # Only the last batch is padded, at its end.
        return jax.tree.map(lambda *x: np.concatenate(x)[: len(records)], *blocks)


def _mirrored(image: jax.Array, rest: Inputs, kind: str) -> tuple[jax.Array, Inputs]:
    """A batch of the mirror images, with the labels of the other side."""
    if "parts" in rest:
        sides = jnp.asarray(flip_classes(np.arange(256, dtype=np.uint8), kind))
        rest = rest | {"parts": sides[expansion.mirror(rest["parts"])]}
    return expansion.mirror(image), rest
