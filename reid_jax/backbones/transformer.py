"""Layers of a Vision Transformer, with timm's names and numbers."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.backbones.attention import Attend, attend_all
from reid_jax.backbones.patches import INIT


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
        shape = (branch.shape[0],) + (1,) * (branch.ndim - 1)
        kept = jax.random.bernoulli(self.make_rng("drop_path"), keep, shape)
        return jnp.where(kept, branch / keep, 0)


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
        self, tokens: jax.Array, *, train: bool, attend: Attend = attend_all
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Maps tokens [B, L, D] to the same shape, and returns what `attend` kept."""
        hidden = int(tokens.shape[-1] * self.mlp_ratio)
        normed = layer_norm("norm1")(tokens)
        branch, kept = Attention(self.heads, self.dtype, name="attn")(normed, attend)
        tokens = tokens + DropPath(self.drop_path, name="drop1")(branch, train=train)
        branch = Mlp(hidden, self.dtype, name="mlp")(layer_norm("norm2")(tokens))
        tokens = tokens + DropPath(self.drop_path, name="drop2")(branch, train=train)
        return tokens, kept


def layer_norm(name: str) -> nn.LayerNorm:
    """LayerNorm in float32 with timm's epsilon and a two-pass variance."""
    return nn.LayerNorm(
        epsilon=1e-6, dtype=jnp.float32, use_fast_variance=False, name=name
    )


def _dense(features: int, dtype: Any, name: str) -> nn.Dense:
    return nn.Dense(features, dtype=dtype, kernel_init=INIT, name=name)
