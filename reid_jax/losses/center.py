"""Centre loss: how far features lie from the centre of their identity.

Source: Wen et al., "A Discriminative Feature Learning Approach for Deep Face
Recognition", 2016, in the form of Luo et al., "Bag of Tricks and a Strong Baseline for
Deep Person Re-Identification", 2019 (BoT), section 3.6, and its code: whole squares in
place of half of them, and centres that learn by SGD on the loss itself, at a rate of
their own and whatever the loss weighs for the network.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def center_loss(
    features: jax.Array, centers: jax.Array, labels: jax.Array
) -> jax.Array:
    """Mean over the batch of squared distances to the own centre; centres are fixed.

    Args:
      features: [B, D].
      centers: float32 [C, D].
      labels: int [B] in 0..C-1.

    Returns:
      float32 scalar.
    """
    own = jax.lax.stop_gradient(centers)[labels]
    return jnp.square(features.astype(jnp.float32) - own).sum(1).mean()


def moved_centers(
    features: jax.Array, centers: jax.Array, labels: jax.Array, *, rate: float
) -> jax.Array:
    """The centres after a step of SGD on `center_loss`, without momentum or decay.

    Args:
      features, centers, labels: see `center_loss`; before the step of the network.
      rate: the learning rate.

    Returns:
      float32 [C, D], without gradient.
    """
    features, centers = jax.lax.stop_gradient((features, centers))
    apart = centers[labels] - features.astype(jnp.float32)
    # A product in place of a scattered sum, whose order GPUs do not fix.
    chosen = jax.nn.one_hot(labels, len(centers), dtype=jnp.float32)
    sums = jnp.matmul(chosen.T, apart, precision=jax.lax.Precision.HIGHEST)
    return centers - rate * 2 / len(labels) * sums
