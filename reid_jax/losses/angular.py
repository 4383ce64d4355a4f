"""Classification by angles, with a margin for the image's own identity.

Sources: Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face
Recognition", 2019, Eq. 3; Wang et al., "CosFace: Large Margin Cosine Loss for Deep
Face Recognition", 2018, Eq. 4; Sun et al., "Circle Loss: A Unified Perspective of Pair
Similarity Optimization", 2020, section 3, on labels of classes.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from reid_jax.losses.circle import circle_logits

KINDS = ("arcface", "cosface", "circle")


def margin_logits(
    cosines: jax.Array, labels: jax.Array, *, kind: str, margin: float, scale: float
) -> jax.Array:
    """Logits, for a cross-entropy, of a head that returns cosines.

    Args:
      cosines: [B, C], of features and classes.
      labels: int [B] in 0..C-1.
      kind: one of `KINDS`: "arcface" adds the margin to the angle of the own class,
        "cosface" takes it from its cosine; "circle" weighs every class by how far it
        is from where it should be.
      margin: in radians for "arcface".
      scale: of all logits.

    Returns:
      float32 [B, C].
    """
    cosines = cosines.astype(jnp.float32)
    own = labels[:, None] == jnp.arange(cosines.shape[1])
    if kind == "circle":
        positive, negative = circle_logits(cosines, margin=margin, scale=scale)
        return jnp.where(own, -positive, negative)
    harder = cosines - margin if kind == "cosface" else _turned(cosines, margin)
    return scale * jnp.where(own, harder, cosines)


def _turned(cosines: jax.Array, margin: float) -> jax.Array:
    """cos(angle + margin); where that exceeds pi, a line that goes on falling.

    The line is that of the authors' code, `easy_margin=False`.
    """
    # Of a cosine of 1 or beyond by rounding, the sine's gradient is 0, not infinite.
    sines = jnp.sqrt(jnp.maximum(1 - jnp.square(cosines), 1e-12))
    turned = cosines * math.cos(margin) - sines * math.sin(margin)
    falling = cosines - margin * math.sin(margin)
    return jnp.where(cosines > -math.cos(margin), turned, falling)
