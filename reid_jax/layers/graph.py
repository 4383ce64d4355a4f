"""Graphs over the places of two images: their edges, and convolutions over them.

Source: Yu et al., "Devil's in the Details: Aligning Visual Clues for Conditional
Embedding in Person Re-Identification", 2020 (CACE-Net), sections 3.3 and 3.4. A joint
graph has the N places of image u and the M of image v as nodes, and its adjacency is
kept in blocks, because a pair shares what lies within one image with all other pairs.

Functions take one pair; `jax.vmap` makes them take many. Edge weights, degrees and
results are float32, whatever the dtype of the maps.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

LEAST_DEGREE = 1e-3
"""A node of a smaller degree has no neighbours to speak of, and D^-1/2 takes its degree
for 1: its edges stay as weak as they are, and the gradient of D^-1/2 stays bounded."""

_SHORTEST = 1e-12


class Edges(NamedTuple):
    """The symmetric adjacency [[u, cross], [cross^T, v]] of a pair, not negative.

    Attributes:
      u: [N, N], within the first image.
      cross: [N, M], between the images.
      v: [M, M], within the second image.
    """

    u: jax.Array
    cross: jax.Array
    v: jax.Array


# Edges.


def inverse_norms(features: jax.Array) -> jax.Array:
    """1 / |x|, float32 [...], of features [..., D]; 0, without gradient, for no x."""
    square = jnp.square(features.astype(jnp.float32)).sum(-1)
    nonzero = square > _SHORTEST**2
    return jnp.where(nonzero, jax.lax.rsqrt(jnp.where(nonzero, square, 1.0)), 0.0)


def similarity(
    u: jax.Array,
    v: jax.Array,
    *,
    weights: jax.Array | None = None,
    scale_u: jax.Array | None = None,
    scale_v: jax.Array | None = None,
) -> jax.Array:
    """u W v^T with a diagonal W (CACE-Net, Eqs 2 and 3), of scaled rows.

    Args:
      u, v: [N, D] and [M, D].
      weights: [D], the diagonal of W; None is the identity.
      scale_u, scale_v: [N] and [M], factors of the rows, such as `inverse_norms`,
        which make it a cosine.

    Returns:
      float32 [N, M].
    """
    if weights is not None:
        u = (u * weights).astype(v.dtype)
    # Of float32 factors no digits are dropped, whatever the accelerator.
    precision = jax.lax.Precision.HIGHEST if u.dtype == jnp.float32 else None
    product = jnp.matmul(
        u, v.T, precision=precision, preferred_element_type=jnp.float32
    )
    if scale_u is not None:
        product *= scale_u[:, None]
    if scale_v is not None:
        product *= scale_v
    return product


def nearest(similarities: jax.Array) -> jax.Array:
    """Edges of weight 1 from each place to the most similar one of the other image.

    The graph has no directions: two places are joined if either is the other's most
    similar one; of equal ones that is the first.

    Args:
      similarities: [N, M].

    Returns:
      float32 [N, M] of zeros and ones, without gradient.
    """
    rows, columns = similarities.shape
    forth = jax.nn.one_hot(similarities.argmax(1), columns)
    back = jax.nn.one_hot(similarities.argmax(0), rows).T
    return jnp.maximum(forth, back)


def shared(u: jax.Array, v: jax.Array) -> jax.Array:
    """Edges of weight 1 between places that have a part in common.

    Args:
      u, v: [P, N] and [P, M], 1 where the place contains the part, else 0.

    Returns:
      float32 [N, M] of zeros and ones.
    """
    common = jnp.matmul(u.T, v, preferred_element_type=jnp.float32)
    return (common > 0.5).astype(jnp.float32)


def matched_mean(edges: jax.Array, similarities: jax.Array) -> jax.Array:
    """Mean similarity of joined places, weighted by their edges; 0 without edges.

    Args:
      edges: [N, M], not negative.
      similarities: [N, M].

    Returns:
      float32 scalar.
    """
    total = edges.sum()
    return (edges * similarities).sum() / jnp.maximum(total, LEAST_DEGREE)


# Convolutions.


def convolve(
    edges: Edges, u: jax.Array, v: jax.Array, *, sign: float, detach: bool = False
) -> tuple[jax.Array, jax.Array]:
    """(I + sign D^-1/2 A D^-1/2) X of both images' nodes (CACE-Net, Eqs 6 and 7).

    Args:
      edges: A.
      u, v: X, [N, d] and [M, d].
      sign: 1 smooths over neighbours (Eq. 6); -1 is the discrepancy to them, the
        normalised Laplacian (Eq. 7).
      detach: D^-1/2 (D + sign A) D^-1/2 instead, where D^-1/2 has no gradient and the
        D between is as it is: a node without neighbours becomes 0, not itself.

    Returns:
      float32 [N, d] and [M, d].
    """
    norm = _normalisation(edges, detach)
    scaled_u = (u * norm.root_u[:, None]).astype(u.dtype)
    scaled_v = (v * norm.root_v[:, None]).astype(v.dtype)
    mixed_u = _matmul(edges.u, scaled_u) + _matmul(edges.cross, scaled_v)
    mixed_v = _matmul(edges.cross.T, scaled_u) + _matmul(edges.v, scaled_v)
    return (
        u * norm.own_u[:, None] + sign * norm.root_u[:, None] * mixed_u,
        v * norm.own_v[:, None] + sign * norm.root_v[:, None] * mixed_v,
    )


def convolve_mean(
    edges: Edges, u: jax.Array, v: jax.Array, *, sign: float, detach: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Means over the nodes of each image of `convolve`, without computing the nodes'.

    The mean is linear: it goes into the matrix first, and what is left are two
    weighted means of each image's features.

    Returns:
      float32 [d] and [d].
    """
    norm = _normalisation(edges, detach)
    root_u, root_v = norm.root_u, norm.root_v
    # These weights are few, and their sum nearly cancels: float32 also where products
    # of float32 are otherwise rounded to less.
    product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    from_u = jnp.stack(  # what a place of u counts in the mean of u, and in that of v
        [
            norm.own_u + sign * root_u * product(edges.u, root_u),
            sign * root_u * product(edges.cross, root_v),
        ]
    )
    from_v = jnp.stack(
        [
            sign * root_v * product(root_u, edges.cross),
            norm.own_v + sign * root_v * product(edges.v, root_v),
        ]
    )
    sums = product(from_u, u.astype(jnp.float32)) + product(
        from_v, v.astype(jnp.float32)
    )
    return sums[0] / len(u), sums[1] / len(v)


class _Normalisation(NamedTuple):
    """D^-1/2 of both images' nodes, and what a node itself counts."""

    root_u: jax.Array
    root_v: jax.Array
    own_u: jax.Array
    own_v: jax.Array


def _normalisation(edges: Edges, detach: bool) -> _Normalisation:
    degrees_u = edges.u.sum(1) + edges.cross.sum(1)
    degrees_v = edges.v.sum(1) + edges.cross.sum(0)
    root_u, root_v = _inverse_root(degrees_u), _inverse_root(degrees_v)
    if not detach:
        ones = jnp.ones_like(degrees_u), jnp.ones_like(degrees_v)
        return _Normalisation(root_u, root_v, *ones)
    root_u, root_v = jax.lax.stop_gradient((root_u, root_v))
    return _Normalisation(root_u, root_v, degrees_u * root_u**2, degrees_v * root_v**2)


def _inverse_root(degrees: jax.Array) -> jax.Array:
    return jax.lax.rsqrt(jnp.where(degrees > LEAST_DEGREE, degrees, 1.0))


def _matmul(weights: jax.Array, features: jax.Array) -> jax.Array:
    return jnp.matmul(
        weights.astype(features.dtype), features, preferred_element_type=jnp.float32
    )
