"""Parts beside a ViT's global feature: groups of patches, and a last block for them.

Sources: He et al., "TransReID: Transformer-based Object Re-Identification", 2021,
section 3.3 (the jigsaw patch module), and the runs of consecutive patches that
CpaCol's authors use in its place. The groups need no learning; the block is a second
copy of the backbone's last.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.backbones.self_attention import self_attention
from reid_jax.backbones.transformer import Block, layer_norm
from reid_jax.errors import UserError
from reid_jax.layers.remat import run_block


class LocalBranch(nn.Module):
    """A second last block and final LayerNorm, for parts beside the global feature.

    TransReID's local branch, and CpaCol's: it starts as a copy of the backbone's
    last block and `norm`, and reads the backbone's `before_last`, whole or cut into
    parts that are sequences of their own.

    Attributes:
      heads, mlp_ratio, dtype, attention_implementation, remat: of the backbone.
      drop_path: rate of the backbone's last block.
    """

    heads: int = 12
    mlp_ratio: float = 4
    drop_path: float = 0.0
    dtype: str = "float32"
    attention_implementation: str = "einsum"
    remat: bool = False

    @nn.compact
    def __call__(self, tokens: jax.Array, *, train: bool) -> jax.Array:
        """Maps sequences [B, L, D] to the same shape, float32."""
        block = Block(
            self.heads,
            self.mlp_ratio,
            self.drop_path,
            jnp.dtype(self.dtype),
            name="block",
        )
        attend = self_attention(self.attention_implementation, train=train)
        tokens, _ = run_block(
            block, tokens, remat=self.remat, train=train, attend=attend
        )
        return layer_norm("norm")(tokens)


def shift_and_shuffle(patches: jax.Array, *, shift: int, groups: int) -> jax.Array:
    """TransReID's order of the patches, in which every run covers the whole image.

    The first `shift` patches move to the end; then the sequence, cut into `groups`
    of equal length, is read across: the first patch of each group, the second of
    each, and so on. The authors' code moves one patch fewer than its SHIFT_NUM says:
    their 5 is a shift of 4 here.

    Args:
      patches: [B, N, D].

    Returns:
      [B, N, D]; where `groups` does not divide N, the last patch but one is repeated
      at the end until it does, as in the authors' code.
    """
    batch, count, width = patches.shape
    if not 0 <= shift < count or not 0 < groups <= count:
        raise UserError(
            f"cannot shift {count} patches by {shift} and shuffle them in {groups} "
            "groups: choose a shift below the number of patches and 1 to that many "
            "groups"
        )
    patches = jnp.roll(patches, -shift, axis=1)
    missing = -count % groups
    if missing:
        filling = jnp.repeat(patches[:, -2:-1], missing, axis=1)
        patches = jnp.concatenate([patches, filling], axis=1)
    patches = patches.reshape(batch, groups, -1, width)
    return patches.swapaxes(1, 2).reshape(batch, -1, width)


def runs(patches: jax.Array, parts: int, *, length: int | None = None) -> jax.Array:
    """Cuts a sequence of patches into runs; what is left over at the end is dropped.

    In row-major order of the patches, runs are stripes up to whole rows: 242 patches
    in four parts give runs of 60, which end within a row of 11.

    Args:
      patches: [B, N, D].
      parts: number of runs K.
      length: of each run; N // K unless given.

    Returns:
      [B, K, length, D].
    """
    batch, count, width = patches.shape
    length = count // parts if length is None else length
    if not 0 < length * parts <= count:
        raise UserError(
            f"cannot cut {count} patches into {parts} parts: choose fewer parts, a "
            "larger image_size or a smaller stride"
        )
    return patches[:, : length * parts].reshape(batch, parts, length, width)


def with_cls(cls: jax.Array, parts: jax.Array) -> jax.Array:
    """Makes each part a sequence of its own with the CLS token before it.

    Args:
      cls: [B, D].
      parts: [B, K, L, D].

    Returns:
      [B, K, 1 + L, D].
    """
    first = jnp.broadcast_to(cls[:, None, None], (*parts.shape[:2], 1, parts.shape[-1]))
    return jnp.concatenate([first, parts], axis=2)
