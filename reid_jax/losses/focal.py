"""Focal loss on masks.

Source: Lin et al., "Focal Loss for Dense Object Detection", 2017, Eq. 5.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def focal_loss(
    logits: jax.Array,
    targets: jax.Array,
    labelled: jax.Array,
    *,
    gamma: float = 2.0,
    alpha: float = 0.25,
) -> jax.Array:
    """Sum over labelled places, divided by the number of positive ones (at least 1).

    Args:
      logits: [B, ...], before the sigmoid.
      targets: bool [B, ...], the mask.
      labelled: bool [B, ...]; other places do not count.
      gamma: how much places that are already right count less.
      alpha: weight of the positive places; that of the others is 1 - alpha.

    Returns:
      float32 scalar.
    """
    # The logit of the right answer, whose logarithm is exact also where it saturates.
    right = jnp.where(targets, logits, -logits).astype(jnp.float32)
    # 1 - p is sigmoid(-right); as exp(log) its power has no infinite slope at 0.
    modulation = jnp.exp(gamma * jax.nn.log_sigmoid(-right))
    weight = jnp.where(targets, alpha, 1 - alpha) * labelled
    losses = -weight * modulation * jax.nn.log_sigmoid(right)
    positives = jnp.sum(targets & labelled)
    return losses.sum() / jnp.maximum(positives, 1)
