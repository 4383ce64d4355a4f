"""One vector for an image that several tokens describe."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from reid_jax.retrieval.distances import euclidean, normalise

FORMS = ("unit_tokens", "unit_vector", "raw", "cls")
"""What `join` makes of tokens."""


def join(tokens: jax.Array, form: str) -> dict[str, jax.Array]:
    """What is stored of an image's tokens.

    Args:
      tokens: [B, T, D] of any length, the global one first.
      form: one of `FORMS`. "unit_tokens" scales each token to unit length,
        concatenates them, and scales the whole to unit length; "unit_vector" leaves
        out the first of these; "raw" leaves out both, so that distances are those of
        the concatenated tokens as they are; "cls" is the first token alone, of unit
        length.

    Returns:
      `vector` of unit norm, float32 [B, T * D], or [B, D] for "cls"; for "raw" also
      `length` [B], what it has to be multiplied by.
    """
    if form == "cls":
        tokens = tokens[:, :1]
    if form == "unit_tokens":
        tokens = normalise(tokens)
    joined = tokens.reshape(tokens.shape[0], -1).astype(jnp.float32)
    embedding = {"vector": normalise(joined)}
    if form == "raw":
        embedding["length"] = jnp.linalg.norm(joined, axis=-1)
    return embedding


def distance(
    query: Mapping[str, jax.Array], gallery: Mapping[str, jax.Array]
) -> jax.Array:
    """Euclidean distances [Q, G] of what `join` returns, at its lengths, float32."""
    return euclidean(_at_length(query), _at_length(gallery))


def _at_length(embedding: Mapping[str, jax.Array]) -> jax.Array:
    vector = embedding["vector"]
    return vector * embedding["length"][:, None] if "length" in embedding else vector
