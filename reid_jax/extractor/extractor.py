"""One network on this machine's devices: embedding, comparing and ranking images."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from reid_jax.errors import UserError
from reid_jax.extractor import batches
from reid_jax.extractor import images as imaging
from reid_jax.extractor.images import BadImage, Images, Source
from reid_jax.extractor.network import Arrays, Network
from reid_jax.extractor.ranking import Ranking
from reid_jax.retrieval import expansion, reranking, search
from reid_jax.retrieval.k_reciprocal import Encoding
from reid_jax.retrieval.lists import smallest
from reid_jax.retrieval.steps import Steps, of_embeddings
from reid_jax.runtime import sharding
from reid_jax.runtime.ahead import one_ahead

Embedding = dict[str, np.ndarray]
"""Arrays by name whose leading axis is that of the images. Most methods give `vector`,
float32 [N, D] of unit norm; those that compare parts `parts` [N, K, D] and `visibility`
[N, K]."""

BATCH_PER_CPU, BATCH_PER_ACCELERATOR = 8, 128
QUERY_BLOCK = 64
"""Queries that are compared with the whole gallery at once."""


class Extractor:
    """Embeds, compares and ranks images with one network; see `reid_jax.load`.

    Attributes:
      network: what was loaded: its method, fingerprint, image size and inputs.
    """

    def __init__(self, network: Network, mesh: jax.sharding.Mesh):
        """Runs `network` on the devices of `mesh`."""
        self.network = network
        self._mesh = mesh
        self._variables = jax.device_put(network.variables, sharding.replicated(mesh))
        self._comparison = search.Comparison(
            network.distance, devices=tuple(mesh.devices.flat)
        )
        self._run = jax.jit(
            self._embedded,
            static_argnames="flip",
            out_shardings=sharding.replicated(mesh),
        )

    def __repr__(self) -> str:
        height, width = self.network.image_size
        return (
            f"Extractor({self.network.method}, {height} x {width}, fingerprint "
            f"{self.network.fingerprint}, devices: {self._mesh.size})"
        )

    def embed(
        self,
        images: Images,
        *,
        flip: bool = False,
        batch_size: int | None = None,
        cameras: Sequence[int] | None = None,
        progress: bool = True,
    ) -> Embedding:
        """Embeds images.

        They are resized as in training, and batches are padded to one size, so that one
        program is compiled, at the first call.

        Args:
          images: a path, a folder (all image files below it, by name), a uint8 RGB
            array [H, W, 3] of any size or [N, H, W, 3], a Pillow image, or an iterable
            of single ones.
          flip: embeds the mirror images too, and averages; twice the work.
          batch_size: images at once over all devices; 8 for each CPU device and 128 for
            each accelerator unless given; rounded up to a multiple of the devices.
          cameras: the training set's number of each image's camera, from 0 on (see
            docs/python.md), for the networks that read it.
          progress: shows a bar on standard error.

        Returns:
          NumPy arrays by name, the images' axis leading, in their order.

        Raises:
          UserError: an image that is not there or cannot be read, which is named, no
            images, or an input that the network needs.
        """
        sources = _with_cameras(imaging.sources(images), cameras)
        options = {"flip": flip, "batch_size": batch_size, "progress": progress}
        return self._named(sources, **options)[1]

    def distance(
        self,
        query: Embedding | Images,
        gallery: Embedding | Images,
        *,
        progress: bool = True,
    ) -> np.ndarray:
        """Distances [Q, G] as the method defines them, float32; smaller is more alike.

        Args:
          query, gallery: what `embed` has returned, or what it takes.
          progress: shows a bar while images are embedded.

        Raises:
          UserError: if they are of different networks, empty or not finite.
        """
        (_, query), (_, gallery) = self._embeddings(query, gallery, progress=progress)
        return np.concatenate([block for _, block in self._distances(query, gallery)])

    def rank(
        self,
        query: Embedding | Images,
        gallery: Embedding | Images,
        k: int = 10,
        *,
        rerank: Steps = (),
        progress: bool = True,
    ) -> Ranking:
        """The `k` nearest gallery images of each query.

        Memory is bounded by 64 x gallery, and with k-reciprocal neighbours by some
        k1^2 numbers for each image. What a pair model learned of image pairs takes no
        part.

        Args:
          query, gallery: what `embed` has returned, or what it takes.
          k: images of a list; all of the gallery, where it has fewer.
          rerank: steps of re-ranking in their order, of "database_augmentation",
            "query_expansion" and "k_reciprocal", or a dict of them with options,
            {"k_reciprocal": {"k1": 10}}; see `retrieval.steps`. Distances are then
            those of what comes out. The queries are neighbours of each other, too, and
            all gallery images are compared with all: ask for many queries at once.
          progress: shows bars while images are embedded and re-ranked.

        Raises:
          UserError: if they or their distances are not finite, they are of different
            networks or empty, `k` is no whole number from 1, or a step or an option
            makes no sense.
        """
        if not isinstance(k, int | np.integer) or k < 1:
            raise UserError(f"k={k!r}: a list has a whole number of images, at least 1")
        steps = of_embeddings(rerank)
        (names, query), (gallery_names, gallery) = self._embeddings(
            query, gallery, progress=progress
        )
        reranking.check(steps, query, self.network.parts)
        made = reranking.Reranking(
            steps,
            self._comparison,
            squares=self.network.squared_distances,
            block=QUERY_BLOCK,  # as gallery images are queries, too
            progress=progress,
        )
        query, gallery = made.embeddings((query, gallery))
        if encoding := made.encoding(query, gallery):
            index, distance = self._encoded(query, gallery, k, encoding)
        else:
            index, distance = self._nearest(query, gallery, k)
        return Ranking(index, distance, names, gallery_names)

    def stream(
        self,
        sources: Iterable[Source],
        *,
        flip: bool = False,
        batch_size: int | None = None,
        skipped: Callable[[Source, BadImage], None] | None = None,
    ) -> Iterator[tuple[list[Source], Embedding]]:
        """Embeds batch by batch: images are read by threads while devices compute.

        Args:
          sources: from `images.sources`, or one's own.
          flip, batch_size: as for `embed`.
          skipped: is told of each image that cannot be read, which is then left out.

        Yields:
          the images of a batch, and their Embedding.

        Raises:
          BadImage: an image that cannot be read, unless there is `skipped`.
          UserError: an input that the network needs is not there, or an embedding is
            not finite.
        """
        size, how = self.network.image_size, self.network.resize
        read = functools.partial(imaging.resized, size=size, how=how)
        rows = batches.usable(imaging.read_ahead(read, sources), skipped)
        started = (
            (batch, self._start(arrays, flip=flip))
            for batch, arrays in batches.padded(rows, self.batch_size(batch_size))
        )
        for batch, running in one_ahead(started):
            yield _finished(batch, running)

    def batch_size(self, wanted: int | None = None) -> int:
        """Images at once over all devices: `wanted`, or what divides by them."""
        if wanted is None:
            on_cpu = self._mesh.devices.flat[0].platform == "cpu"
            wanted = self._mesh.size * (
                BATCH_PER_CPU if on_cpu else BATCH_PER_ACCELERATOR
            )
        if wanted < 1:
            raise UserError(f"a batch has at least one image, not {wanted}")
        return -(-wanted // self._mesh.size) * self._mesh.size

    def _embedded(
        self,
        variables: Any,
        images: jax.Array,
        inputs: tuple[jax.Array, ...],
        flip: bool,
    ) -> Arrays:
        """The program that is compiled."""
        embedding = self.network.embed(variables, images, *inputs)
        if not flip:
            return embedding
        other = self.network.embed(variables, expansion.mirror(images), *inputs)
        expansion.check_averaged(embedding, "flip")
        sides = expansion.other_sides(self.network.parts)
        return expansion.with_mirrored(embedding, other, sides)

    def _start(self, arrays: Mapping[str, np.ndarray], *, flip: bool) -> Arrays:
        for name in self.network.inputs:
            if name not in arrays:
                raise UserError(_NEEDS[name])
        names = ("image", *self.network.inputs)
        placed = sharding.put_batch({name: arrays[name] for name in names}, self._mesh)
        images, *inputs = (placed[name] for name in names)
        return self._run(self._variables, images, tuple(inputs), flip=flip)

    def _named(
        self, sources: Iterable[Source], *, progress: bool = True, **options: Any
    ) -> tuple[tuple[str, ...], Embedding]:
        """Names of images, and their Embedding."""
        names, blocks = [], []
        total = len(sources) if isinstance(sources, Sized) else None
        with tqdm(
            desc="embedding",
            total=total,
            unit="img",
            leave=False,
            disable=not progress,
        ) as bar:
            for batch, embedding in self.stream(sources, **options):
                names += [source.name for source in batch]
                blocks.append(embedding)
                bar.update(len(batch))
        if not blocks:
            raise UserError("there are no images to embed")
        return tuple(names), jax.tree.map(lambda *x: np.concatenate(x), *blocks)

    def _embeddings(
        self, *given: Embedding | Images, progress: bool
    ) -> list[tuple[tuple[str, ...], Embedding]]:
        """Names and arrays; a wrong one is told before any image is embedded."""
        found = [
            _checked(each) if isinstance(each, Mapping) else imaging.sources(each)
            for each in given
        ]
        made = [
            (_numbered(each), each)
            if isinstance(each, Mapping)
            else self._named(each, progress=progress)
            for each in found
        ]
        for _, embedding in made:
            shapes = {name: array.shape[1:] for name, array in embedding.items()}
            if shapes != self._shapes:
                raise UserError(
                    f"these embeddings are of different networks: {shapes}, and this "
                    f"one's are {self._shapes}"
                )
        return made

    @functools.cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the arrays of an image's Embedding; nothing is computed for them."""
        size = self.network.image_size
        given = {"camera": ((1,), np.int32), "parts": ((1, *size), np.uint8)}
        images, *inputs = (
            jax.ShapeDtypeStruct(*each)
            for each in [
                ((1, *size, 3), np.uint8),
                *map(given.get, self.network.inputs),
            ]
        )
        made = jax.eval_shape(self.network.embed, self._variables, images, *inputs)
        return {name: x.shape[1:] for name, x in made.items()}

    def _nearest(
        self, query: Embedding, gallery: Embedding, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Indices [Q, K] of the nearest, and their distances; found on the devices."""
        there = search.Gallery(self._comparison, gallery)
        found = there.nearest(query, k, block=_block(query))
        if len(wrong := np.flatnonzero(np.isnan(found.farthest))):
            raise UserError(
                f"the distances of query {wrong[0]} are no numbers: its embedding and "
                "some of the gallery's are out of all proportion; embed them again"
            )
        return found.indices, found.distances

    def _encoded(
        self, query: Embedding, gallery: Embedding, k: int, encoding: Encoding
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same by k-reciprocal neighbours, whose distances the host has."""
        index, distance = [], []
        for rows, block in self._distances(query, gallery):
            keys = encoding.keys(rows, block)
            nearest = np.int32([smallest(row, k) for row in keys])
            index.append(nearest)
            distance.append(np.take_along_axis(keys, nearest, axis=1))
        return np.concatenate(index), np.concatenate(distance)

    def _distances(
        self, query: Embedding, gallery: Embedding
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows [q] of queries, and their distances [q, G], block by block."""
        there = search.Gallery(self._comparison, gallery)
        for rows, part in search.blocks(query, _block(query)):
            yield rows, np.asarray(there.distances(part)[0])[: len(rows)]


_NEEDS = {
    "camera": (
        "this network reads each image's camera, the training set's number of it from "
        "0 on: embed its images with embed(..., cameras=), as rank and distance take "
        "embeddings, too, or by reid-jax embed with a table whose column camera has it "
        "in each row"
    ),
    "parts": (
        "this network reads part labels, which images alone do not have; on prepared "
        "data it is ranked by --mode=evaluate"
    ),
}


def _block(query: Embedding) -> int:
    """Queries that are compared at once."""
    return min(QUERY_BLOCK, len(next(iter(query.values()))))


def _with_cameras(
    sources: Iterable[Source], cameras: Sequence[int] | None
) -> Iterable[Source]:
    """The same images, each with its camera.

    Raises:
      UserError: if there are more or fewer cameras than images, or one is no int32.
    """
    if cameras is None:
        return sources
    sources = list(sources)
    if len(sources) != len(cameras):
        raise UserError(f"there are {len(sources)} images and {len(cameras)} cameras")
    numbers = np.asarray(cameras)
    if numbers.dtype.kind not in "iu" or (numbers != numbers.astype(np.int32)).any():
        raise UserError(
            "cameras are the training set's whole numbers of them, an int32 for each "
            f"image, and not {list(cameras)[:3]}"
        )
    return [
        dataclasses.replace(source, inputs={"camera": camera})
        for source, camera in zip(sources, numbers.astype(np.int32), strict=True)
    ]


def _numbered(embedding: Embedding) -> tuple[str, ...]:
    """Names of images that are known by their embeddings only."""
    return tuple(f"image {i}" for i in range(len(next(iter(embedding.values())))))


def _checked(given: Mapping[str, Any]) -> Embedding:
    """Raises UserError for arrays that are no Embedding of at least one image."""
    embedding = {name: np.asarray(array) for name, array in given.items()}
    shapes = {name: list(array.shape) for name, array in embedding.items()}
    counts = {shape[0] if shape else 0 for shape in shapes.values()}
    if len(counts) != 1 or 0 in counts:
        raise UserError(
            "an Embedding has arrays whose first axis is that of the images, of which "
            f"there is at least one; the shapes of this one's: {shapes}"
        )
    for name, array in embedding.items():
        if array.dtype.kind not in "fiub" and array.dtype != jnp.bfloat16:
            raise UserError(f"{name} of an Embedding has numbers, not {array.dtype}")
        if (row := _not_finite(array)) is not None:
            raise UserError(f"{name} of an Embedding is not finite in row {row}")
    return embedding


def _not_finite(array: np.ndarray) -> int | None:
    """The first row that is not."""
    finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
    return None if finite.all() else int(np.argmin(finite))


def _finished(batch: list[Source], arrays: Arrays) -> tuple[list[Source], Embedding]:
    """Waits for a batch, and leaves out what filled it up."""
    embedding = {k: v[: len(batch)] for k, v in sharding.fetch(arrays).items()}
    for array in embedding.values():
        if (row := _not_finite(array)) is not None:
            raise UserError(f"the embedding of {batch[row].name} is not finite")
    return batch, embedding
