"""Vision Transformer, as timm's `vit_base_patch16_224` and its smaller siblings.

Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021. Pre-norm blocks,
LayerNorm epsilon 1e-6, exact (erf) GELU, biases everywhere. Parameters are named and
laid out after timm's (`blocks.3.attn.qkv` is `blocks_3/attn/qkv`), so that its
weights load by renaming and transposing. Added to it: patches that overlap (TransReID's
sliding window) and its embedding of the camera, position embeddings resized to the
image, further learnable tokens, attention that a caller may replace, and a caller's own
layers between the blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.backbones.attention import (
    Attend,
    attend_all,
    check_implementation,
    self_attention,
)
from reid_jax.errors import UserError
from reid_jax.layers.remat import run_block

Between = Callable[[int, jax.Array], jax.Array]
"""From a block's index and the tokens [B, L, D] that leave it to those that go on. It
may call further modules of the network that the Transformer is part of."""

SIZES = {
    "small": {"width": 384, "depth": 12, "heads": 6},
    "base": {"width": 768, "depth": 12, "heads": 12},
    "large": {"width": 1024, "depth": 24, "heads": 16},
}
"""Attributes of `VisionTransformer` by the names of the paper and of timm. TransReID's
own "small" is another network: width 768, depth 8, 8 heads, no bias in qkv."""

# timm cuts its normal distribution at -2 and 2: a hundred standard deviations.
_INIT = nn.initializers.normal(0.02)


def grid_size(
    image_size: tuple[int, int], patch_size: int, stride: tuple[int, int]
) -> tuple[int, int]:
    """Rows and columns of patches that fit into an image without padding."""
    height, width = image_size
    if height < patch_size or width < patch_size:
        raise UserError(
            f"an image of {height} x {width} pixels is smaller than one patch of "
            f"{patch_size} x {patch_size}: enlarge image_size or reduce patch_size"
        )
    return (
        (height - patch_size) // stride[0] + 1,
        (width - patch_size) // stride[1] + 1,
    )


def resize_position_embedding(
    embedding: jax.Array, old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> jax.Array:
    """Resizes the grid part of a position embedding, keeping what stands before it.

    Bilinear with half-pixel centres and without antialiasing, as PyTorch's
    `interpolate(mode="bilinear", align_corners=False)`, which the published re-ID
    systems apply to the pretrained weights.

    Args:
      embedding: [1, E + rows * columns, D]; the first E belong to tokens that are
        no patches.
      old_grid, new_grid: rows and columns.

    Returns:
      [1, E + new rows * new columns, D].
    """
    if old_grid == new_grid:
        return embedding
    extra = embedding.shape[1] - old_grid[0] * old_grid[1]
    width = embedding.shape[-1]
    resized = jax.image.resize(
        embedding[:, extra:].reshape(1, *old_grid, width),
        (1, *new_grid, width),
        method="bilinear",
        antialias=False,
    ).reshape(1, -1, width)
    return jnp.concatenate([embedding[:, :extra], resized], axis=1)


class PatchProjection(nn.Module):
    """The convolution that turns patches into vectors, [B, H, W, 3] -> [B, N, D].

    Patches that do not overlap go through one matrix product instead, which is the
    same sum and faster on accelerators; the parameters are the convolution's.
    """

    width: int
    patch_size: int
    stride: tuple[int, int]
    dtype: Any

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Patches in row-major order, in `dtype`."""
        size = self.patch_size
        channels = images.shape[-1]
        shape = (size, size, channels, self.width)
        kernel = self.param("kernel", _INIT, shape).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        rows, columns = grid_size(images.shape[1:3], size, self.stride)
        images = images.astype(self.dtype)
        if tuple(self.stride) == (size, size):
            patches = images[:, : rows * size, : columns * size]
            patches = patches.reshape(-1, rows, size, columns, size, channels)
            patches = patches.swapaxes(2, 3).reshape(-1, rows * columns, size**2 * 3)
            return patches @ kernel.reshape(-1, self.width) + bias.astype(self.dtype)
        patches = jax.lax.conv_general_dilated(
            images,
            kernel,
            self.stride,
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return patches.reshape(-1, rows * columns, self.width) + bias.astype(self.dtype)


class PatchEmbed(nn.Module):
    """Holds the projection under timm's name."""

    width: int
    patch_size: int
    stride: tuple[int, int]
    dtype: Any

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """See `PatchProjection`."""
        return PatchProjection(
            self.width, self.patch_size, self.stride, self.dtype, name="proj"
        )(images)


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


class VisionTransformer(nn.Module):
    """ViT without its classifier; the defaults are ViT-B/16.

    Attributes:
      image_size: height and width that the stored position embedding is for.
      patch_size, stride: side of a patch, and (rows, columns) between patches.
      width, depth, heads, mlp_ratio: of the Transformer.
      drop_path: rate of the last block; it grows linearly from 0 at the first.
      extra_tokens: learnable tokens beside CLS, each with its own position embedding.
      cameras: number of learnable camera embeddings, added to every token
        (TransReID's side information); 0 for none.
      camera_scale: what they are multiplied by.
      dtype: "float32" or "bfloat16", of the matrix products. Parameters, the residual
        stream, LayerNorm and softmax are float32.
      attention_implementation: one of `IMPLEMENTATIONS`, the same up to rounding; a
        caller's own `attend` goes with "einsum" only.
      remat: compute each block again for its gradient, see `run_block`.
    """

    image_size: tuple[int, int] = (256, 128)
    patch_size: int = 16
    stride: tuple[int, int] = (16, 16)
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4
    drop_path: float = 0.0
    extra_tokens: int = 0
    cameras: int = 0
    camera_scale: float = 3.0
    dtype: str = "float32"
    attention_implementation: str = "einsum"
    remat: bool = False

    def __post_init__(self) -> None:
        grid_size(self.image_size, self.patch_size, self.stride)
        if self.width % self.heads:
            raise UserError(
                f"{self.heads} heads do not divide the width of {self.width}: "
                "choose a width that is a multiple of heads"
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise UserError(f"dtype is float32 or bfloat16, not {self.dtype!r}")
        check_implementation(
            self.attention_implementation,
            head_width=self.width // self.heads,
            dtype=self.dtype,
            field="attention_implementation",
        )
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool,
        attend: Attend | None = None,
        camera: jax.Array | None = None,
        between: Between | None = None,
    ) -> dict[str, Any]:
        """Runs standardised images [B, H, W, 3]; `between` is called after each block.

        Without an `attend` it is ordinary self-attention.
        An image of another size than `image_size` gets the position embedding
        resized to its grid. `camera` int32 [B] is read where `cameras` is not 0; an
        image whose camera is not in 0..cameras-1, and every image where it is None,
        gets the mean of the embeddings.

        Returns:
          cls [B, D], extra [B, E, D] and patches [B, N, D]: the tokens after the
          final LayerNorm, float32, patches in row-major order; before_last
          [B, 1+E+N, D]: all tokens as they enter the last block, for a
          `LocalBranch`; layers: for each block, the dict that `attend` kept.
        """
        implementation = self.attention_implementation
        if attend and implementation != "einsum":
            raise UserError(
                f"attention_implementation={implementation!r} is for ordinary "
                "self-attention; this network has its own: use 'einsum'"
            )
        attend = attend or self_attention(implementation, train=train)
        tokens = self._embed(images)
        if self.cameras:
            tokens += self._embed_camera(camera)
        kept = []
        for index in range(self.depth):
            before_last = tokens
            block = Block(
                self.heads,
                self.mlp_ratio,
                self.drop_path * index / max(self.depth - 1, 1),
                jnp.dtype(self.dtype),
                name=f"blocks_{index}",
            )
            tokens, layer = run_block(
                block, tokens, remat=self.remat, train=train, attend=attend
            )
            if between is not None:
                tokens = between(index, tokens)
            kept.append(layer)
        tokens = layer_norm("norm")(tokens)
        border = 1 + self.extra_tokens
        return {
            "cls": tokens[:, 0],
            "extra": tokens[:, 1:border],
            "patches": tokens[:, border:],
            "before_last": before_last,
            "layers": tuple(kept),
        }

    def _embed(self, images: jax.Array) -> jax.Array:
        """The sequence CLS, extra tokens, patches, with positions: [B, 1+E+N, D]."""
        dtype = jnp.dtype(self.dtype)
        embed = PatchEmbed(
            self.width, self.patch_size, self.stride, dtype, name="patch_embed"
        )
        patches = embed(images).astype(jnp.float32)
        own_grid = grid_size(self.image_size, self.patch_size, self.stride)
        grid = grid_size(images.shape[1:3], self.patch_size, self.stride)
        length = 1 + own_grid[0] * own_grid[1]
        position = self.param("pos_embed", _INIT, (1, length, self.width))
        position = resize_position_embedding(position, own_grid, grid)
        cls = self.param("cls_token", _INIT, (1, 1, self.width)) + position[:, :1]
        sequence = [cls]
        if self.extra_tokens:
            shape = (1, self.extra_tokens, self.width)
            extra = self.param("extra_tokens", _INIT, shape)
            sequence.append(extra + self.param("extra_pos_embed", _INIT, shape))
        first = jnp.concatenate(sequence, axis=1)
        first = jnp.broadcast_to(first, (images.shape[0], *first.shape[1:]))
        return jnp.concatenate([first, patches + position[:, 1:]], axis=1)

    def _embed_camera(self, camera: jax.Array | None) -> jax.Array:
        """What each image's camera adds to its tokens: [B or 1, 1, D]."""
        table = self.param("sie_embed", _INIT, (self.cameras, 1, self.width))
        mean = table.mean(0, keepdims=True)
        if camera is None:
            return self.camera_scale * mean
        known = (camera >= 0) & (camera < self.cameras)
        own = table[jnp.clip(camera, 0, self.cameras - 1)]
        return self.camera_scale * jnp.where(known[:, None, None], own, mean)


def layer_norm(name: str) -> nn.LayerNorm:
    """LayerNorm in float32 with timm's epsilon and a two-pass variance."""
    return nn.LayerNorm(
        epsilon=1e-6, dtype=jnp.float32, use_fast_variance=False, name=name
    )


def _dense(features: int, dtype: Any, name: str) -> nn.Dense:
    return nn.Dense(features, dtype=dtype, kernel_init=_INIT, name=name)
