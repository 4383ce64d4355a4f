"""What an image and its mirror image say together."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from reid_jax.extractor.network import Arrays
from reid_jax.retrieval.distances import normalise


def mean(one: Arrays, other: Arrays) -> Arrays:
    """The Embedding of images from theirs and their mirror images'.

    Vectors become the direction of their mean at the mean of their lengths, so that
    unit vectors stay so; a part counts as visible where either shows it.
    """
    return {name: _mean(name, one[name], other[name]) for name in one}


def _mean(name: str, one: jax.Array, other: jax.Array) -> jax.Array:
    if name == "visibility":
        return jnp.maximum(one, other)
    both = (one + other) / 2
    if both.ndim == 1:
        return both
    length = jnp.linalg.norm(one, axis=-1) + jnp.linalg.norm(other, axis=-1)
    return normalise(both) * length[..., None] / 2
