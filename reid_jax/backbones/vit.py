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

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.backbones.attention import Attend
from reid_jax.backbones.patches import (
    INIT,
    PatchEmbed,
    grid_size,
    resize_position_embedding,
)
from reid_jax.backbones.scan import scan_blocks
from reid_jax.backbones.self_attention import check_implementation, self_attention
from reid_jax.backbones.transformer import Block, layer_norm
from reid_jax.errors import UserError
from reid_jax.layers.parameters import parameter
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
      scan_blocks: loop over the blocks, see `scan`: the same parameters and results,
        compiled in a fraction of the time.
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
    scan_blocks: bool = False

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
        attend = self._attention(attend, train=train)
        tokens = self._embed(images)
        if self.cameras:
            tokens += self._embed_camera(camera)
        blocks = [self._block(index) for index in range(self.depth)]
        how = {"remat": self.remat, "train": train, "attend": attend}
        # Parameters are made block by block.
        if self.scan_blocks and not self.is_initializing():
            if between is not None:
                raise UserError("scan_blocks=True leaves no place between the blocks")
            tokens, before_last, kept = scan_blocks(blocks, tokens, **how)
        else:
            tokens, before_last, kept = _one_by_one(blocks, tokens, between, **how)
        tokens = layer_norm("norm")(tokens)
        border = 1 + self.extra_tokens
        return {
            "cls": tokens[:, 0],
            "extra": tokens[:, 1:border],
            "patches": tokens[:, border:],
            "before_last": before_last,
            "layers": kept,
        }

    def _attention(self, own: Attend | None, *, train: bool) -> Attend:
        """The caller's own attention, or ordinary self-attention."""
        implementation = self.attention_implementation
        if own and implementation != "einsum":
            raise UserError(
                f"attention_implementation={implementation!r} is for ordinary "
                "self-attention; this network has its own: use 'einsum'"
            )
        return own or self_attention(implementation, train=train)

    def _block(self, index: int) -> Block:
        """Block `index`, from 0 on."""
        return Block(
            self.heads,
            self.mlp_ratio,
            self.drop_path * index / max(self.depth - 1, 1),
            jnp.dtype(self.dtype),
            name=f"blocks_{index}",
        )

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
        position = parameter(self, "pos_embed", INIT, (1, length, self.width))
        position = resize_position_embedding(position, own_grid, grid)
        cls = parameter(self, "cls_token", INIT, (1, 1, self.width)) + position[:, :1]
        sequence = [cls]
        if self.extra_tokens:
            shape = (1, self.extra_tokens, self.width)
            extra = parameter(self, "extra_tokens", INIT, shape)
            sequence.append(extra + parameter(self, "extra_pos_embed", INIT, shape))
        first = jnp.concatenate(sequence, axis=1)
        first = jnp.broadcast_to(first, (images.shape[0], *first.shape[1:]))
        return jnp.concatenate([first, patches + position[:, 1:]], axis=1)

    def _embed_camera(self, camera: jax.Array | None) -> jax.Array:
        """What each image's camera adds to its tokens: [B or 1, 1, D]."""
        table = parameter(self, "sie_embed", INIT, (self.cameras, 1, self.width))
        mean = table.mean(0, keepdims=True)
        if camera is None:
            return self.camera_scale * mean
        known = (camera >= 0) & (camera < self.cameras)
        own = table[jnp.clip(camera, 0, self.cameras - 1)]
        return self.camera_scale * jnp.where(known[:, None, None], own, mean)


def _one_by_one(
    blocks: Sequence[Block], tokens: jax.Array, between: Between | None, **how: Any
) -> tuple[jax.Array, jax.Array, tuple[dict[str, jax.Array], ...]]:
    """As `scan_blocks`, with the caller's layers after each block."""
    kept = []
    for index, block in enumerate(blocks):
        before_last = tokens
        tokens, layer = run_block(block, tokens, **how)
        if between is not None:
            tokens = between(index, tokens)
        kept.append(layer)
    return tokens, before_last, tuple(kept)
