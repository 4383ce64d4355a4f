"""Contrastive pedestrian attention: what a layer of a Transformer focuses on.

Source: Gao et al., "Contrastive Pedestrian Attentive and Correlation Learning Network
for Occluded Person Re-Identification" (CpaCol), section III-B, Eqs 1, 2 and 7; what the
text leaves open is said in `reid_jax/models/cpacol.py`. The losses that shape the
attention (Eqs 3-6) are in `reid_jax/losses/contrastive.py`.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.layers.heads import BNNeck
from reid_jax.layers.linear import Conv, Dense
from reid_jax.layers.norm import BatchNorm
from reid_jax.layers.parameters import FAN_OUT
from reid_jax.layers.stripes import stripe_means


class Mlp3(nn.Module):
    """MLP_e and MLP_r: three layers, of which the inner two are half as wide."""

    use_bias: bool
    dtype: Any

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Maps [..., D] to the same shape, float32."""
        width = tokens.shape[-1]
        for index, features in enumerate((width // 2, width // 2, width)):
            if index:
                norm = nn.LayerNorm(
                    epsilon=1e-5, dtype=jnp.float32, use_fast_variance=False
                )
                tokens = jax.nn.gelu(norm(tokens), approximate=False)
            tokens = Dense(
                features,
                use_bias=self.use_bias,
                dtype=self.dtype,
                kernel_init=nn.initializers.normal(0.02),
            )(tokens)
        return tokens.astype(jnp.float32)


class ContrastAttn(nn.Module):
    """A contrastive pedestrian attention layer (Fig. 3).

    Attributes:
      grid: rows and columns of the patches.
      stripes: K of Eq. 6.
      num_classes: training identities of a head on the focused component; 0 leaves
        the head away.
      gradient: whether the gradient of MLP_e's output reaches the features.
      bn_groups: see `BatchNorm.groups`.
      dtype: of the matrix products and convolutions; parameters are float32.
    """

    grid: tuple[int, int]
    stripes: int = 4
    num_classes: int = 0
    gradient: bool = False
    bn_groups: int = 1
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self,
        features: jax.Array,
        previous: jax.Array | float = 0.0,
        *,
        train: bool,
    ) -> dict[str, jax.Array]:
        """Attends to patch tokens f [B, HW, D]; `previous` is added to the embedding.

        Returns:
          attention [B, H, W]; embedding [B, HW, D]; attended [B, HW, D], f_l of Eq. 7;
          focused, rest [B, D] and the same of stripes [B, K, D], `stripes_focused`
          and `stripes_rest`; where there is a head, `logits` [B, num_classes].
        """
        dtype = jnp.dtype(self.dtype)
        seen = features if self.gradient else jax.lax.stop_gradient(features)
        embedding = Mlp3(use_bias=True, dtype=dtype, name="mlp_e")(seen) + previous
        maps = embedding.reshape(-1, *self.grid, embedding.shape[-1])
        attention = self._attention(maps, train=train)
        outputs = {"embedding": embedding, "attention": attention}
        for name, weights in ("focused", attention), ("rest", 1 - attention):
            weighed = maps * weights[..., None]
            outputs[name] = weighed.mean((1, 2))  # Eq. 2
            outputs[f"stripes_{name}"] = stripe_means(weighed, self.stripes)
        attended = Mlp3(use_bias=False, dtype=dtype, name="mlp_r")(features)
        flat = attention.reshape(*attended.shape[:2], 1)
        outputs["attended"] = attended * flat  # Eq. 7
        if self.num_classes:
            head = BNNeck(self.num_classes, self.bn_groups, name="auxiliary")
            outputs["logits"] = head(outputs["focused"], train=train)["logits"]
        return outputs

    def _attention(self, maps: jax.Array, *, train: bool) -> jax.Array:
        """Eq. 1: [B, H, W, D] to [B, H, W]."""
        score = Conv(
            1,
            3,
            use_bias=False,
            dtype=jnp.dtype(self.dtype),
            kernel_init=FAN_OUT,
            name="conv",
        )(maps)
        norm = BatchNorm(self.bn_groups, name="bn")
        score = norm(score.astype(jnp.float32), train=train)
        return jax.nn.sigmoid(score[..., 0])
