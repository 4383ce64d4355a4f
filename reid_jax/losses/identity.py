"""Identity classification."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def cross_entropy(
    logits: jax.Array, labels: jax.Array, *, smoothing: float = 0.0
) -> jax.Array:
    """The mean of `cross_entropies`, float32 scalar."""
    return cross_entropies(logits, labels, smoothing=smoothing).mean()


def cross_entropies(
    logits: jax.Array, labels: jax.Array, *, smoothing: float = 0.0
) -> jax.Array:
    """Cross-entropy of each row, with label smoothing.

    Source: Szegedy et al., "Rethinking the Inception Architecture", 2016, section 7;
    the target is (1 - smoothing) * one_hot + smoothing / C, as in PyTorch.

    Args:
      logits: [B, C].
      labels: int [B] in 0..C-1.
      smoothing: share of the target that is spread evenly over all classes.

    Returns:
      float32 [B].
    """
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    chosen = jnp.take_along_axis(log_probabilities, labels[:, None], axis=1)[:, 0]
    spread = log_probabilities.mean(axis=1)
    return -((1 - smoothing) * chosen + smoothing * spread)


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of the rows whose largest logit is the label's, float32 scalar."""
    return jnp.mean(jnp.argmax(logits, axis=1) == labels, dtype=jnp.float32)
