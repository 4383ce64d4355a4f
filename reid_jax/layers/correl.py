"""Correlation learning: whether two images show one person, by all pairs of places.

Source: Gao et al., "Contrastive Pedestrian Attentive and Correlation Learning Network
for Occluded Person Re-Identification" (CpaCol), section III-C, after Lee et al.,
"Correlation Verification for Image Retrieval", CVPR 2022. What the text leaves open is
said in `reid_jax/models/cpacol.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.layers.correlation4d import STACK, Blocks, CorrelationStack, similarity
from reid_jax.layers.heat_maps import strongest
from reid_jax.layers.linear import Conv
from reid_jax.layers.norm import BatchNorm
from reid_jax.layers.stripes import stripe_positions


class CorreL(nn.Module):
    """The correlation learning module (Fig. 5), for maps of any backbone.

    Attributes:
      grid: rows and columns of every map.
      levels: maps of an image.
      channels: C_r, which omega compresses each map to.
      blocks: (kernel, stride, channels) of the 4D convolutions.
      position_embedding: whether similarities are multiplied with alpha.
      stripes: whose distances alpha starts from.
      bn_groups: see `BatchNorm.groups`.
      dtype: of the matrix products and convolutions; parameters are float32.
    """

    grid: tuple[int, int]
    levels: int
    channels: int = 256
    blocks: Blocks = STACK
    position_embedding: bool = True
    stripes: int = 4
    bn_groups: int = 1
    dtype: str = "float32"

    def setup(self) -> None:
        """One omega for each level; everything else is shared."""
        dtype = jnp.dtype(self.dtype)
        self.omega = [
            Conv(
                self.channels,
                3,
                use_bias=False,
                dtype=dtype,
                kernel_init=nn.initializers.he_normal(),
            )
            for _ in range(self.levels)
        ]
        self.omega_bn = [BatchNorm(self.bn_groups) for _ in range(self.levels)]
        if self.position_embedding:
            start = stripe_positions(self.grid, self.stripes)
            self.alpha = self.param("alpha", lambda _: jnp.asarray(start))
        self.stack = CorrelationStack(self.blocks, dtype=dtype)
        self.hidden = nn.Dense(self.blocks[-1][-1])
        self.output = nn.Dense(1)

    def embed(self, levels: Sequence[jax.Array], *, train: bool) -> jax.Array:
        """omega of Eq. 9: from [B, H, W, D] each to [B, L, H, W, C_r] of `dtype`."""
        embedded = [
            norm(conv(level), train=train)
            for conv, norm, level in zip(self.omega, self.omega_bn, levels, strict=True)
        ]
        return jnp.stack(embedded, axis=1)

    def similarities(self, query: jax.Array, gallery: jax.Array) -> jax.Array:
        """R [..., H, W, H, W, L] of maps [..., L, H, W, C_r] that broadcast."""
        dense = similarity(query, gallery)  # Eq. 9
        if not self.position_embedding:
            return dense
        return dense * self.alpha[..., None]

    def __call__(self, query: jax.Array, gallery: jax.Array) -> jax.Array:
        """Logits of s_ij, float32 [...], of maps as in `similarities`."""
        return self._verify(self.similarities(query, gallery))[0]

    def _verify(self, dense: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits [...] and R_out [..., h, w, h, w, C] of R."""
        pairs = dense.shape[:-5]
        outputs = self.stack(dense.reshape(-1, *dense.shape[-5:]))
        logits = self.output(jax.nn.relu(self.hidden(outputs["vector"])))
        learned = outputs["map"]
        return logits.reshape(pairs), learned.reshape(*pairs, *learned.shape[1:])

    def correspondences(
        self, query: jax.Array, gallery: jax.Array, *, count: int
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """The strongest pairs of places (Fig. 6), at most one for each query place.

        Returns:
          Centres and strengths, see `strongest`, of the response of a pair of places:
          the mean over levels of R times the mean over channels of R_out at that place;
          and the logits of s_ij [...].
        """
        dense = self.similarities(query, gallery)
        logits, learned = self._verify(dense)
        learned = learned.astype(jnp.float32).mean(-1)
        step = math.prod(stride for _, stride, _ in self.blocks)
        for axis, size in zip((-4, -3, -2, -1), (*self.grid, *self.grid), strict=True):
            nearest = (np.arange(size) + step // 2) // step
            nearest = np.minimum(nearest, learned.shape[axis] - 1)
            learned = jnp.take(learned, nearest, axis)
        places = math.prod(self.grid)
        response = (dense.mean(-1) * learned).reshape(*logits.shape, places, places)
        return *strongest(response, self.grid, count=count), logits
