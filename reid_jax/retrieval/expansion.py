"""Embeddings that take in their neighbours, and those of an image and its mirror image.

Query expansion with weights: Radenović et al., "Fine-tuning CNN Image Retrieval with
No Human Annotation", TPAMI 2019, section 3.4. Database-side augmentation is the same
for a gallery: Arandjelović and Zisserman, "Three Things Everyone Should Know to Improve
Object Retrieval", CVPR 2012.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.errors import UserError
from reid_jax.retrieval.distances import normalise
from reid_jax.retrieval.search import Embedding, Nearest, blocks

_FIELDS = ("vector", "parts", "visibility")
"""What can be averaged of an Embedding."""

_MEMBERS = 2**13
"""Neighbours that are averaged at once, whatever their number for an image."""


@dataclasses.dataclass(frozen=True)
class Expansion:
    """Options of query expansion, and of database-side augmentation.

    Attributes:
      k: neighbours that an embedding takes in.
      alpha: their weights are their cosines to this power; 0 is the plain average.
    """

    k: int = 5
    alpha: float = 3.0


def check_averaged(embedding: Mapping[str, object], step: str) -> None:
    """Raises UserError for an embedding that there is no average of; names a `step`."""
    further = [name for name in embedding if name not in _FIELDS]
    if further:
        raise UserError(
            f"{step} averages unit vectors, and this method's embedding has "
            f"`{further[0]}` beside them; leave {step} out, or choose another test "
            "feature (AAformer: another config.model.vector)"
        )


def expanded(
    embedding: Embedding,
    gallery: Embedding,
    nearest: np.ndarray,
    *,
    alpha: float,
    block: int,
) -> Embedding:
    """Unit vectors or parts, to which weighted neighbours are added.

    Of parts, the neighbours' visible ones are added; an image's visibility stays.

    Args:
      embedding: arrays [N, ...] on the host.
      gallery: arrays [G, ...] on the host.
      nearest: int [N, k], the neighbours in the gallery.
      alpha: as `Expansion.alpha`.
      block: embeddings at once, at most.
    """
    found, block = [], max(1, min(block, _MEMBERS // max(1, nearest.shape[1])))
    for rows, own in blocks(embedding, block):
        indices = nearest[np.resize(rows, block)]
        members = {name: array[indices] for name, array in gallery.items()}
        made = _expanded(own, members, alpha)
        found.append({name: np.asarray(x)[: len(rows)] for name, x in made.items()})
    return {name: np.concatenate([one[name] for one in found]) for name in embedding}


@jax.jit
def _expanded(own: Embedding, members: Embedding, alpha: float) -> Embedding:
    """Embeddings [b, ...] with those of their neighbours, [b, k, ...]."""
    precisely = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    if "parts" not in own:
        cosine = precisely("nd,nkd->nk", own["vector"], members["vector"])
        weight = jnp.maximum(cosine, 0) ** alpha
        summed = own["vector"] + precisely("nk,nkd->nd", weight, members["vector"])
        return own | {"vector": normalise(summed)}
    seen = _seen(members)
    both = seen * _seen(own)[:, None]
    cosines = precisely("npd,nkpd->nkp", own["parts"], members["parts"])
    cosine = (cosines * both).sum(-1) / jnp.maximum(both.sum(-1), 1)
    weight = (jnp.maximum(cosine, 0) ** alpha)[..., None] * seen
    summed = own["parts"] + precisely("nkp,nkpd->npd", weight, members["parts"])
    return own | {"parts": normalise(summed)}


def _seen(embedding: Embedding) -> jax.Array:
    """1 for parts that are visible, else 0."""
    return (embedding["visibility"] > 0).astype(jnp.float32)


def others(nearest: Nearest) -> np.ndarray:
    """Neighbours [G, k - 1] of gallery images in their own gallery, without themselves.

    Where an image is not among its k nearest, as there are as many copies of it, the
    last one is left out.
    """
    size, k = nearest.indices.shape
    itself = nearest.indices == np.arange(size)[:, None]
    itself[~itself.any(1), -1] = True
    return nearest.indices[~itself].reshape(size, k - 1)


def mirror(images: jax.Array) -> jax.Array:
    """The mirror images of images, or of label maps, [B, H, W, ...]."""
    return images[:, :, ::-1]


def with_mirrored(
    embedding: Embedding, mirrored: Embedding, sides: Sequence[int] = ()
) -> Embedding:
    """The average of images' embeddings and those of their mirror images.

    Vectors keep their mean length, so that unit vectors stay so; parts have unit norm.
    A part is what either image shows; it is visible where one of them shows it.

    Args:
      embedding, mirrored: arrays [N, ...].
      sides: from `other_sides`; () where parts have no sides.
    """
    made = dict(embedding)
    if "vector" in embedding:
        vectors = embedding["vector"], mirrored["vector"]
        length = sum(jnp.linalg.norm(x, axis=-1, keepdims=True) for x in vectors) / 2
        made["vector"] = normalise(sum(vectors)) * length
    if "visibility" not in embedding:
        return made
    order = np.array(sides or range(embedding["visibility"].shape[1]))
    mirrored = mirrored | {"visibility": mirrored["visibility"][:, order]}
    made["visibility"] = jnp.maximum(embedding["visibility"], mirrored["visibility"])
    if "parts" in embedding:
        here, there = _seen(embedding)[..., None], _seen(mirrored)[..., None]
        hidden = 1 - jnp.maximum(here, there)  # its parts stay what they were, averaged
        made["parts"] = normalise(
            (here + hidden) * embedding["parts"]
            + (there + hidden) * mirrored["parts"][:, order]
        )
    return made


def other_sides(titles: Sequence[str]) -> tuple[int, ...]:
    """Which part of the mirror image is each part of an image, by their names.

    Raises:
      UserError: for a left or right part that has no counterpart.
    """
    swapped = {"left": "right", "right": "left"}
    order = []
    for place, title in enumerate(titles):
        other = " ".join(swapped.get(word, word) for word in title.split(" "))
        if other == title:
            order.append(place)
        elif other in titles:
            order.append(titles.index(other))
        else:
            raise UserError(
                f"flip has to know which part is {title!r} in a mirror image; "
                f"no {other!r} is among {', '.join(titles)}: leave flip out"
            )
    return tuple(order)
