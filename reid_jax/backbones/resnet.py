"""ResNet-50 and ResNet-50-IBN-a, as torchvision and IBN-Net have them.

Sources: He et al., "Deep Residual Learning for Image Recognition", 2016, with the
stride in the 3x3 convolution; Pan et al., "Two at Once: Enhancing Learning and
Generalization Capacities via IBN-Net", 2018, variant a. Parameters are named after
torchvision's (`layer1.0.bn1.weight` is `layer1_0/bn1/scale`), so that its weights
load by renaming and transposing. Padding is PyTorch's: the same on both sides, also
where the stride is 2. Options are non-local blocks between the bottlenecks, and what
torchreid's and fast-reid's trained networks have of their own.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.backbones.non_local import NON_LOCAL, DotNonLocal, NonLocal
from reid_jax.errors import UserError
from reid_jax.layers.convolution import convolution, relu
from reid_jax.layers.heads import fully_connected
from reid_jax.layers.linear import Conv
from reid_jax.layers.norm import BatchNorm, InstanceNorm
from reid_jax.layers.parameters import FAN_OUT
from reid_jax.layers.remat import run_block

EXPANSION = 4
"""Channels of a bottleneck's output per channel of its 3x3 convolution."""


def conv(width: int, size: int, *, stride: int = 1, dtype: Any, name: str) -> Conv:
    """A convolution to `width` channels as these networks use it, without bias."""
    return Conv(
        width,
        size,
        stride=stride,
        padding=size // 2,
        use_bias=False,
        dtype=dtype,
        kernel_init=FAN_OUT,
        convolution=convolution,
        name=name,
    )


def check_dtype(dtype: str) -> None:
    """Raises a `UserError` unless convolutions can run in `dtype`."""
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype is float32 or bfloat16, not {dtype!r}")


class IBN(nn.Module):
    """Instance normalisation for the first half of the channels, batch for the rest."""

    bn_groups: int = 1

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool) -> jax.Array:
        """Normalises `features` [B, H, W, C]."""
        half = features.shape[-1] // 2
        instance = InstanceNorm(name="IN")(features[..., :half])
        batch = BatchNorm(self.bn_groups, name="BN")(features[..., half:], train=train)
        return jnp.concatenate([instance, batch], axis=-1)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut.

    Attributes:
      width: channels of the 3x3 convolution; the output has four times as many.
      stride: of the 3x3 convolution and the shortcut.
      ibn: whether the first normalisation is `IBN`.
      bn_groups: see `BatchNorm.groups`.
      dtype: of the convolutions.
    """

    width: int
    stride: int = 1
    ibn: bool = False
    bn_groups: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, H/stride, W/stride, 4 * width], in `dtype`."""
        width, dtype = self.width, self.dtype

        def norm(name: str, kind: type[nn.Module] = BatchNorm) -> nn.Module:
            return kind(self.bn_groups, name=name)

        branch = conv(width, 1, dtype=dtype, name="conv1")(features)
        first = norm("bn1", IBN if self.ibn else BatchNorm)
        branch = relu(first(branch, train=train))
        middle = conv(width, 3, stride=self.stride, dtype=dtype, name="conv2")
        branch = relu(norm("bn2")(middle(branch), train=train))
        branch = conv(EXPANSION * width, 1, dtype=dtype, name="conv3")(branch)
        branch = norm("bn3")(branch, train=train)
        if self.stride != 1 or features.shape[-1] != EXPANSION * width:
            shortcut = conv(
                EXPANSION * width,
                1,
                stride=self.stride,
                dtype=dtype,
                name="downsample_0",
            )
            features = norm("downsample_1")(shortcut(features), train=train)
        return relu(branch + features)


class Stage(nn.Module):
    """One of the four layers of a ResNet on its own, for networks that repeat it.

    Its children are named as in the trunk, so that the part of pretrained weights
    below `layer4_` fits each of several branches. The defaults are ResNet-50's
    layer4 with stride 1, which maps 1024 channels to 2048.

    Attributes:
      layer: which of the four, from 1.
      blocks: number of bottlenecks.
      width: channels of the 3x3 convolutions.
      stride: of the first bottleneck.
      ibn, bn_groups, dtype: see `Bottleneck`.
      remat: compute each bottleneck again for its gradient, see `run_block`.
    """

    layer: int = 4
    blocks: int = 3
    width: int = 512
    stride: int = 1
    ibn: bool = False
    bn_groups: int = 1
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, H/stride, W/stride, 4 * width], in `dtype`."""
        for block in _bottlenecks(
            self.layer,
            self.blocks,
            width=self.width,
            stride=self.stride,
            ibn=self.ibn,
            bn_groups=self.bn_groups,
            dtype=self.dtype,
        ):
            features = run_block(block, features, remat=self.remat, train=train)
        return features


class ResNet(nn.Module):
    """ResNet without its classifier; the defaults are ResNet-50 for re-ID.

    Attributes:
      blocks: bottlenecks of layer1, layer2, ...; three numbers leave layer4 away,
        for networks that continue with branches of their own.
      width: channels of the stem; 32 times as many leave layer4.
      last_stride: of layer4: 2 as for ImageNet, or 1, which keeps twice the height
        and width.
      ibn: whether layer1 to layer3 are IBN-a's.
      non_local: whether a `NonLocal` block stands before the last bottleneck of each
        of layer2, layer3 and layer4.
      dot_non_local: of each layer, behind how many of its last bottlenecks a
        `DotNonLocal` block stands; fast-reid's are (0, 2, 3, 0). Empty for none.
      ceil_pool: whether the stem's pooling begins at the first pixel and rounds its
        size up, as fast-reid's since its version 1.0, in place of borders all around.
      stem_relu: whether there is a ReLU in front of that pooling; the ResNet of BoT's
        code has none.
      feature_dim: channels of torchreid's fully connected layer behind the mean over
        the last map; 0 for none.
      bn_groups: see `BatchNorm.groups`.
      dtype: "float32" or "bfloat16", of the convolutions and the maps between them.
        Parameters and normalisation are float32.
      remat: compute each bottleneck again for its gradient, see `run_block`.
    """

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    last_stride: int = 1
    ibn: bool = False
    non_local: bool = False
    dot_non_local: tuple[int, ...] = ()
    ceil_pool: bool = False
    stem_relu: bool = True
    feature_dim: int = 0
    bn_groups: int = 1
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        if not 1 <= len(self.blocks) <= 4 or min(self.blocks) < 1:
            raise UserError(
                f"blocks={self.blocks!r}: give the number of bottlenecks, at least 1, "
                "of one to four layers"
            )
        if self.last_stride not in (1, 2):
            raise UserError(f"last_stride is 1 or 2, not {self.last_stride}")
        check_dtype(self.dtype)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """Runs standardised images [B, H, W, 3].

        Returns:
          stem [B, H/4, W/4, width], after the max-pooling; layer1 [B, H/4, W/4,
          4 * width], layer2 [B, H/8, W/8, 8 * width], layer3 [B, H/16, W/16,
          16 * width], layer4 [B, H/16, W/16, 32 * width] or half the height and
          width of that with `last_stride` 2. Fractions are rounded up. With a
          `feature_dim` also feature, float32 [B, feature_dim].
        """
        dtype = jnp.dtype(self.dtype)
        features = conv(self.width, 7, stride=2, dtype=dtype, name="conv1")(images)
        features = BatchNorm(self.bn_groups, name="bn1")(features, train=train)
        if self.stem_relu:
            features = relu(features)
        border = ((0, 1), (0, 1)) if self.ceil_pool else ((1, 1), (1, 1))
        features = nn.max_pool(features, (3, 3), strides=(2, 2), padding=border)
        maps = {"stem": features}
        for layer, blocks in enumerate(self.blocks, start=1):
            bottlenecks = _bottlenecks(
                layer,
                blocks,
                width=self.width * 2 ** (layer - 1),
                stride=(1, 2, 2, self.last_stride)[layer - 1],
                ibn=self.ibn and layer < 4,
                bn_groups=self.bn_groups,
                dtype=dtype,
            )
            behind = (self.dot_non_local or (0, 0, 0, 0))[layer - 1]
            for left, block in zip(range(blocks, 0, -1), bottlenecks, strict=True):
                if self.non_local and layer > 1 and left == 1:
                    features = NonLocal(dtype, name=f"{NON_LOCAL}{layer}")(features)
                features = run_block(block, features, remat=self.remat, train=train)
                if left <= behind:
                    name = f"{NON_LOCAL}{layer}_{behind - left}"
                    extra = DotNonLocal(self.bn_groups, dtype, name=name)
                    features = extra(features, train=train)
            maps[f"layer{layer}"] = features
        if self.feature_dim:
            pooled = features.astype(jnp.float32).mean((1, 2))
            maps["feature"] = fully_connected(
                pooled, self.feature_dim, bn_groups=self.bn_groups, train=train
            )
        return maps


def _bottlenecks(
    layer: int, blocks: int, *, width: int, stride: int, **attributes: Any
) -> list[Bottleneck]:
    """The blocks of one layer, under torchvision's names; the first has the stride."""
    return [
        Bottleneck(
            width,
            stride if index == 0 else 1,
            name=f"layer{layer}_{index}",
            **attributes,
        )
        for index in range(blocks)
    ]
