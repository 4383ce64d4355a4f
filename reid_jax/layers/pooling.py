"""Pooling of feature maps by soft masks."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.layers.parameters import parameter

_LEAST_WEIGHT = 1e-6
"""A mask that sums to less holds nothing; its mean fades to zero."""

_LEAST_VALUE = 1e-6
"""Smaller values of a map have no power, as in fast-reid."""


class GeneralizedMean(nn.Module):
    """The mean of powers, and its root: 1 is the mean, a large exponent the maximum.

    Source: Radenovic et al., "Fine-tuning CNN Image Retrieval with No Human
    Annotation", 2018. Negative values count as (almost) none.

    Parameter `p` [1]: the exponent, 3 at first.
    """

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """Maps float32 [B, H, W, C] to [B, C]."""
        p = parameter(self, "p", nn.initializers.constant(3.0), (1,))
        values = jnp.maximum(features, _LEAST_VALUE)
        # In shares of the greatest value, so that no power falls below float32's least
        # number. The result does not depend on it, and so has no gradient by it.
        top = jax.lax.stop_gradient(values.max((1, 2), keepdims=True))
        root = ((values / top) ** p).mean((1, 2)) ** (1 / p)
        return root * top[:, 0, 0]


def weighted_average(features: jax.Array, masks: jax.Array) -> jax.Array:
    """Means of the features, weighted by each mask.

    Source: Qiu, "Global Weighted Average Pooling", 2018.

    Args:
      features: [B, h, w, C].
      masks: float [B, h, w, K], not negative.

    Returns:
      float32 [B, K, C]; zeros for a mask of zeros.
    """
    masks = masks.astype(features.dtype)
    total = jnp.einsum(
        "bhwk,bhwc->bkc", masks, features, preferred_element_type=jnp.float32
    )
    weight = masks.astype(jnp.float32).sum((1, 2))
    return total / jnp.maximum(weight, _LEAST_WEIGHT)[..., None]


def weighted_max(features: jax.Array, masks: jax.Array) -> jax.Array:
    """Greatest products of features and masks over all places.

    Mask after mask: the products [B, h, w, K, C] would not fit into memory. Only the
    winning places take part in the backward pass.

    Args:
      features: [B, h, w, C].
      masks: float [B, h, w, K].

    Returns:
      float32 [B, K, C]; of equal products the first place passes the gradient.
    """
    batch, _, _, channels = features.shape
    features = features.reshape(batch, -1, channels)
    masks = masks.reshape(batch, -1, masks.shape[-1]).transpose(2, 0, 1)
    last = features.shape[1] - 1
    place = jnp.arange(last + 1)[:, None]

    def first_greatest(mask: jax.Array) -> jax.Array:
        products = _product(mask[..., None], features)
        greatest = products.max(1, keepdims=True)
        # Two plain reductions: XLA's arg-max does not use a CPU's vector units.
        return jnp.where(products >= greatest, place, last).min(1)

    winners = jax.lax.stop_gradient(jax.lax.map(first_greatest, masks))  # [K, B, C]
    values = jnp.take_along_axis(features, winners.swapaxes(0, 1), axis=1)
    weights = jnp.take_along_axis(masks, winners, axis=2).swapaxes(0, 1)
    return _product(weights, values)


def _product(masks: jax.Array, features: jax.Array) -> jax.Array:
    return masks.astype(jnp.float32) * features.astype(jnp.float32)
