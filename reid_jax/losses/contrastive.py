"""Contrastive losses between what an attention map shows and what it leaves out.

Source: Gao et al., "Contrastive Pedestrian Attentive and Correlation Learning Network
for Occluded Person Re-Identification" (CpaCol), Eqs 3-6. The sums of these equations
are means here, as in the authors' code: a sum over 64 x 64 pairs would drown the
identity loss.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from reid_jax.losses.groups import in_groups
from reid_jax.retrieval.distances import normalise

LEAST, GREATEST = 0.0005, 0.9995
"""Similarities are clamped to this range before every logarithm (authors' code); the
lower bound takes the place of the ReLU in the equations."""


def inter_image(
    focused: jax.Array,
    rest: jax.Array,
    labels: jax.Array,
    *,
    decays: tuple[float, float] = (0.0, 0.0),
    groups: int = 1,
) -> jax.Array:
    """Eqs 3-5: between the images of a batch.

    What is focused on should differ from what is not in every pair of images, and
    agree between images of one identity; what is not should agree between all.

    Args:
      focused, rest: [N, D], features of the two components.
      labels: int [N].
      decays: of the rank weights of both positive terms, see `contrastive`.
      groups: the mean over so many groups of rows, whose images are compared among
        themselves, as on that many GPUs.

    Returns:
      float32 scalar.
    """

    def loss(focused: jax.Array, rest: jax.Array, labels: jax.Array) -> jax.Array:
        same = labels[:, None] == labels[None, :]
        return contrastive(focused, rest, same, decays=decays)

    rows = (in_groups(x, groups) for x in (focused, rest, labels))
    return jax.vmap(loss)(*rows).mean()


def intra_image(
    focused: jax.Array, rest: jax.Array, *, decay: float = 0.0
) -> jax.Array:
    """Eq. 6: between the stripes of an image; the mean over images.

    Args:
      focused, rest: [B, K, D], features of the two components of K stripes.
      decay: of the rank weights of both positive terms, see `contrastive`.

    Returns:
      float32 scalar.
    """
    same = jnp.ones((focused.shape[1],) * 2, bool)
    losses = jax.vmap(lambda f, r: contrastive(f, r, same, decays=(decay, decay)))
    return losses(focused, rest).mean()


def contrastive(
    focused: jax.Array,
    rest: jax.Array,
    same: jax.Array,
    *,
    decays: tuple[float, float] = (0.0, 0.0),
) -> jax.Array:
    """The negative and both positive terms over N x N pairs, each divided by N².

    Args:
      focused, rest: [N, D].
      same: bool [N, N], pairs that enter the positive term of `focused`.
      decays: beta of the weights exp(-beta (rank - 1)) that multiply the positive
        terms of `focused` and `rest`, rank being a similarity's place in its row from
        0, the largest, on; 0 is the paper's text, which has no weights.

    Returns:
      float32 scalar.
    """
    focused, rest = normalise(focused), normalise(rest)
    negative = -jnp.log1p(-_similarity(focused, rest))  # Eq. 3
    positive = [  # Eq. 4
        -jnp.log(similarity) * _rank_weights(similarity, decay)
        for similarity, decay in zip(
            (_similarity(focused, focused), _similarity(rest, rest)),
            decays,
            strict=True,
        )
    ]
    return negative.mean() + jnp.where(same, positive[0], 0).mean() + positive[1].mean()


def _similarity(left: jax.Array, right: jax.Array) -> jax.Array:
    """Clamped cosines of all pairs of unit vectors."""
    cosine = jnp.matmul(left, right.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.clip(cosine, LEAST, GREATEST)


def _rank_weights(similarity: jax.Array, decay: float) -> jax.Array | float:
    """See `contrastive`; no gradient flows through ranks. The first of equals leads."""
    if not decay:
        return 1.0
    order = jnp.argsort(-jax.lax.stop_gradient(similarity), axis=1, stable=True)
    rank = jnp.argsort(order, axis=1)
    return jnp.exp(-decay * (rank - 1))
