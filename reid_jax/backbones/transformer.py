"""Layers of a Vision Transformer, with timm's names and numbers."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.backbones.attention import Attend, attend_all
from reid_jax.backbones.patches import INIT
from reid_jax.layers.linear import Dense
from reid_jax.layers.products import row_product


class Attention(nn.Module):
    """Projections to query, key and value, an `Attend`, and the output projection."""

    heads: int
    dtype: Any

    @nn.compact
    def __call__(
        self, tokens: jax.Array, attend: Attend
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Maps tokens [B, L, D] to the same shape, and returns what `attend` kept."""
        width = tokens.shape[-1]
        qkv = _dense(3 * width, self.dtype, "qkv")(tokens)
        # timm's order: query, key, value, and the heads within each.
        qkv = qkv.reshape(*tokens.shape[:-1], 3, self.heads, width // self.heads)
        output, kept = attend(qkv[..., 0, :, :], qkv[..., 1, :, :], qkv[..., 2, :, :])
        return _dense(width, self.dtype, "proj")(output.reshape(tokens.shape)), kept


class Mlp(nn.Module):
    """Two dense layers with an exact GELU between them."""

    hidden: int
    dtype: Any

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Maps tokens [..., D] to the same shape."""
        hidden = _dense(self.hidden, self.dtype, "fc1")(tokens)
        hidden = jax.nn.gelu(hidden, approximate=False)
        return _dense(tokens.shape[-1], self.dtype, "fc2")(hidden)


DROP_PATHS = ("drop1", "drop2")
"""Names of a block's two `DropPath`s, whose random numbers follow from them."""


class Paths(NamedTuple):
    """What the two `DropPath`s of a block have drawn.

    Attributes:
      kept: bool [2, B], whether an image keeps a branch.
      keep: float32 scalar, the probability of it.
    """

    kept: jax.Array
    keep: jax.Array


class DropPath(nn.Module):
    """Drops a residual branch per image (stochastic depth; Huang et al., 2016).

    Draws from the stream `drop_path`, one number per image of the global batch.
    """

    rate: float

    @nn.compact
    def __call__(self, branch: jax.Array, *, train: bool) -> jax.Array:
        """Drops rows of `branch` [B, ...] and scales the others up, in training."""
        if not train or self.rate == 0:
            return branch
        keep = 1 - self.rate
        kept = jax.random.bernoulli(self.make_rng("drop_path"), keep, (len(branch),))
        return _scaled(branch, kept, keep)


def _scaled(branch: jax.Array, kept: jax.Array, keep: jax.Array | float) -> jax.Array:
    """The rows of `branch` [B, ...] that are kept, and zeros, float32 as the stream is.

    In bfloat16 the probability would be rounded, and the mean not be the branch.
    """
    kept = kept.reshape(-1, *[1] * (branch.ndim - 1))
    return jnp.where(kept, branch.astype(jnp.float32) / keep, 0)


class Block(nn.Module):
    """A pre-norm Transformer layer on a float32 residual stream.

    Attributes:
      heads: attention heads.
      mlp_ratio: hidden width of the MLP as a multiple of the stream's.
      drop_path: probability of dropping each of the two branches in training.
      dtype: of the matrix products.
    """

    heads: int
    mlp_ratio: float = 4
    drop_path: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        *,
        train: bool,
        attend: Attend = attend_all,
        paths: Paths | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Maps tokens [B, L, D] to the same shape, and returns what `attend` kept.

        Which paths are dropped in training may be given; `drop_path` is not read then.
        """

        def dropped(branch: jax.Array, index: int) -> jax.Array:
            if paths is not None:
                return _scaled(branch, paths.kept[index], paths.keep)
            drop = DropPath(self.drop_path, name=DROP_PATHS[index])
            return drop(branch, train=train)

        hidden = int(tokens.shape[-1] * self.mlp_ratio)
        normed = layer_norm("norm1")(tokens)
        branch, kept = Attention(self.heads, self.dtype, name="attn")(normed, attend)
        tokens = tokens + dropped(branch, 0)
        branch = Mlp(hidden, self.dtype, name="mlp")(layer_norm("norm2")(tokens))
        return tokens + dropped(branch, 1), kept


def layer_norm(name: str) -> nn.LayerNorm:
    """LayerNorm in float32 with timm's epsilon and a two-pass variance."""
    return nn.LayerNorm(
        epsilon=1e-6, dtype=jnp.float32, use_fast_variance=False, name=name
    )


def _dense(features: int, dtype: Any, name: str) -> Dense:
    return Dense(
        features, dtype=dtype, kernel_init=INIT, product=row_product, name=name
    )
