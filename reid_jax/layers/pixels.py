"""From the pixels that the loader serves to the numbers that a network takes."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def standardise(
    images: jax.Array, mean: Sequence[float], std: Sequence[float]
) -> jax.Array:
    """Scales uint8 images [B, H, W, 3] to [0, 1] and standardises each channel.

    Returns:
      float32 [B, H, W, 3], (image / 255 - mean) / std.
    """
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    return (images.astype(jnp.float32) / 255 - mean) / std
