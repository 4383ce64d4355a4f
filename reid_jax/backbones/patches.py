"""Patches of an image as the tokens of a ViT, and their positions."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.errors import UserError
from reid_jax.layers import gradients
from reid_jax.layers.parameters import parameter
from reid_jax.layers.products import row_product

# timm cuts its normal distribution at -2 and 2: a hundred standard deviations.
INIT = nn.initializers.normal(0.02)


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
        kernel = gradients.cast(parameter(self, "kernel", INIT, shape), self.dtype)
        bias = parameter(self, "bias", nn.initializers.zeros, (self.width,))
        rows, columns = grid_size(images.shape[1:3], size, self.stride)
        images = images.astype(self.dtype)
        if tuple(self.stride) == (size, size):
            patches = images[:, : rows * size, : columns * size]
            patches = patches.reshape(-1, rows, size, columns, size, channels)
            patches = patches.swapaxes(2, 3)
            patches = patches.reshape(-1, rows * columns, size**2 * channels)
            tokens = row_product(patches, kernel.reshape(-1, self.width))
        else:
            patches = gradients.convolved(images, kernel, self.stride, "VALID")
            tokens = patches.reshape(-1, rows * columns, self.width)
        return gradients.plus(tokens, gradients.cast(bias, self.dtype))


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
