"""OSNet: features of several scales in every block, in two million parameters.

Sources: Zhou et al., "Omni-Scale Feature Learning for Person Re-Identification", 2019;
with instance normalisation, "Learning Generalisable Omni-Scale Representations for
Person Re-Identification", 2021 (OSNet-AIN, whose layout was found by a search).
Parameters are named after those of the authors' library, torchreid, so that its weights
load by renaming and transposing; its two files name the streams of a block differently,
and so do we.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.backbones.resnet import check_dtype, conv
from reid_jax.errors import UserError
from reid_jax.layers import gradients
from reid_jax.layers.convolution import relu
from reid_jax.layers.heads import fully_connected
from reid_jax.layers.norm import BatchNorm, InstanceNorm
from reid_jax.layers.parameters import FAN_OUT, parameter
from reid_jax.layers.remat import run_block

STREAMS = 4
"""Of a block; stream t is a chain of t light convolutions, which sees 2 t + 1 rows."""

_REDUCTION = 4
"""Channels of a block's output per channel within it."""

_GATE_REDUCTION = 16
"""Channels of a stream per channel within the gate."""

PLAIN, IBN, AIN = "none", "ibn", "ain"
INSTANCE_NORM = {
    PLAIN: ((), (), ()),
    IBN: ((0, 1), (), ()),
    AIN: ((0, 1), (1,), (0,)),
}
"""Which blocks of conv2, conv3 and conv4 have instance normalisation: behind the sum
with the shortcut ("ibn"), or within the branch ("ain"). The stem has it in both."""

SIZES = {
    "osnet_x1_0": {"channels": (64, 256, 384, 512)},
    "osnet_x0_75": {"channels": (48, 192, 288, 384)},
    "osnet_x0_5": {"channels": (32, 128, 192, 256)},
    "osnet_x0_25": {"channels": (16, 64, 96, 128)},
    "osnet_ibn_x1_0": {"channels": (64, 256, 384, 512), "instance_norm": IBN},
    "osnet_ain_x1_0": {"channels": (64, 256, 384, 512), "instance_norm": AIN},
}
"""Attributes of `OSNet` by torchreid's names."""


class ConvNorm(nn.Module):
    """A convolution, its normalisation and a ReLU; torchreid's ConvLayer and Conv1x1.

    Attributes:
      width: channels of the output.
      size, stride: of the kernel.
      norm: "batch", "instance", or "" for none.
      relu: whether there is one.
      bn_groups: see `BatchNorm.groups`.
      dtype: of the convolution.
    """

    width: int
    size: int = 1
    stride: int = 1
    norm: str = "batch"
    relu: bool = True
    bn_groups: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, H/stride, W/stride, width]."""
        features = conv(
            self.width, self.size, stride=self.stride, dtype=self.dtype, name="conv"
        )(features)
        if self.norm == "instance":
            features = InstanceNorm(name="bn")(features)
        elif self.norm:
            features = BatchNorm(self.bn_groups, name="bn")(features, train=train)
        return relu(features) if self.relu else features


class Depthwise(nn.Module):
    """A 3x3 convolution of each channel with a kernel of its own, with zeros around.

    As a sum of nine shifted maps: XLA's grouped convolution on a CPU takes 4 to 40
    times as long, and nothing is gained by it elsewhere, as no channels are mixed.
    The sum is float32; the parameter is a convolution's, [3, 3, 1, C].
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to the same shape, in `dtype`."""
        height, width, channels = features.shape[1:]
        kernel = parameter(self, "kernel", FAN_OUT, (3, 3, 1, channels))
        kernel = gradients.cast(kernel, self.dtype)
        around = jnp.pad(features, ((0, 0), (1, 1), (1, 1), (0, 0)))
        around = around.astype(jnp.float32)
        kernel = gradients.rounded(kernel, self.dtype)
        total = sum(
            around[:, row : row + height, column : column + width] * kernel[row, column]
            for row in range(3)
            for column in range(3)
        )
        return total.astype(self.dtype)


class LightConv(nn.Module):
    """A linear 1x1 and a depthwise 3x3 convolution, normalised; `ConvNorm`'s fields."""

    width: int
    bn_groups: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, H, W, width]."""
        features = conv(self.width, 1, dtype=self.dtype, name="conv1")(features)
        features = Depthwise(self.dtype, name="conv2")(features)
        return relu(BatchNorm(self.bn_groups, name="bn")(features, train=train))


def light_convolutions(
    names: Sequence[str],
    features: jax.Array,
    bn_groups: int,
    dtype: Any,
    *,
    train: bool,
) -> jax.Array:
    """A chain of `LightConv`s of these names; call it within a module."""
    for name in names:
        light = LightConv(features.shape[-1], bn_groups, dtype, name=name)
        features = light(features, train=train)
    return features


class Stream(nn.Module):
    """A chain of `steps` light convolutions as a module of its own."""

    steps: int
    bn_groups: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to the same shape."""
        names = [f"layers_{step}" for step in range(self.steps)]
        return light_convolutions(
            names, features, self.bn_groups, self.dtype, train=train
        )


class ChannelGate(nn.Module):
    """Weighs a stream's channels by what it holds as a whole; one for all streams."""

    @nn.compact
    def __call__(self, stream: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to the same shape and dtype."""
        channels = stream.shape[-1]

        def layer(width: int, name: str) -> nn.Conv:
            return nn.Conv(width, (1, 1), kernel_init=FAN_OUT, name=name)

        pooled = stream.astype(jnp.float32).mean((1, 2), keepdims=True)
        hidden = relu(layer(channels // _GATE_REDUCTION, "fc1")(pooled))
        gates = jax.nn.sigmoid(layer(channels, "fc2")(hidden))
        # In float32, as the gradient of a gate is a sum over all places.
        return (stream.astype(jnp.float32) * gates).astype(stream.dtype)


class Block(nn.Module):
    """Streams of four scales, gated and summed, beside a shortcut.

    Attributes:
      width: channels of the output.
      instance_norm: where this block has instance normalisation, see `INSTANCE_NORM`;
        "none" if it has none.
      layered: whether the streams have the names of torchreid's `osnet_ain`.
      bn_groups, dtype: see `OSNet`.
    """

    width: int
    instance_norm: str = PLAIN
    layered: bool = False
    bn_groups: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, H, W, width]."""
        inner = self.width // _REDUCTION
        common = {"bn_groups": self.bn_groups, "dtype": self.dtype}
        reduced = ConvNorm(inner, **common, name="conv1")(features, train=train)
        gate = ChannelGate(name="gate")
        total = 0
        for index in range(STREAMS):
            total = total + gate(self._stream(index, reduced, train))
        within = self.instance_norm == AIN
        linear = {"relu": False, **common}
        norm = "" if within else "batch"
        last = ConvNorm(self.width, norm=norm, **linear, name="conv3")
        branch = last(total, train=train)
        if within:
            branch = InstanceNorm(name="IN")(branch)
        if features.shape[-1] != self.width:
            shortcut = ConvNorm(self.width, **linear, name="downsample")
            features = shortcut(features, train=train)
        features = branch + features
        if self.instance_norm == IBN:
            features = InstanceNorm(name="IN")(features)
        return relu(features)

    def _stream(self, index: int, features: jax.Array, train: bool) -> jax.Array:
        """The stream of `index` + 1 light convolutions, under torchreid's names."""
        given = (self.bn_groups, self.dtype)
        if self.layered:
            stream = Stream(index + 1, *given, name=f"conv2_{index}")
            return stream(features, train=train)
        name = f"conv2{'abcd'[index]}"
        names = [f"{name}_{step}" for step in range(index + 1)] if index else [name]
        return light_convolutions(names, features, *given, train=train)


class OSNet(nn.Module):
    """OSNet with its fully connected layer and without its classifier.

    Attributes:
      channels: of the stem and of conv2, conv3 and conv4.
      feature_dim: channels of the fully connected layer, the network's feature.
      instance_norm: a key of `INSTANCE_NORM`.
      bn_groups: see `BatchNorm.groups`.
      dtype: "float32" or "bfloat16", of the convolutions and the maps between them.
        Parameters, normalisation, gates and the feature are float32.
      remat: compute each block again for its gradient, see `run_block`.
    """

    channels: tuple[int, int, int, int] = (64, 256, 384, 512)
    feature_dim: int = 512
    instance_norm: str = PLAIN
    bn_groups: int = 1
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        least = _REDUCTION * _GATE_REDUCTION
        if len(self.channels) != 4 or min(self.channels[1:]) < least:
            raise UserError(
                f"channels={self.channels!r}: give four numbers, the last three at "
                f"least {least}, so that a gate has a channel"
            )
        if self.instance_norm not in INSTANCE_NORM:
            raise UserError(
                f"instance_norm is one of {', '.join(INSTANCE_NORM)}, not "
                f"{self.instance_norm!r}"
            )
        check_dtype(self.dtype)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """Runs standardised images [B, H, W, 3].

        Returns:
          conv2 [B, H/8, W/8, channels[1]], conv3 [B, H/16, W/16, channels[2]] and
          conv5 [B, H/16, W/16, channels[3]], the last map, in `dtype`; feature
          [B, feature_dim], float32, the mean of that map through the fully connected
          layer, batch normalisation and ReLU.
        """
        norm = "batch" if self.instance_norm == PLAIN else "instance"
        stem = self._layer(self.channels[0], "conv1", size=7, stride=2, norm=norm)
        features = nn.max_pool(
            stem(images, train=train), (3, 3), strides=(2, 2), padding=((1, 1), (1, 1))
        )
        maps = {}
        for number in (2, 3, 4):
            features = self._stage(number, features, train)
            if number < 4:
                features = nn.avg_pool(features, (2, 2), strides=(2, 2))
                maps[f"conv{number}"] = features
        last = self._layer(self.channels[3], "conv5")
        maps["conv5"] = last(features, train=train)
        pooled = maps["conv5"].astype(jnp.float32).mean((1, 2))
        maps["feature"] = fully_connected(
            pooled, self.feature_dim, bn_groups=self.bn_groups, train=train
        )
        return maps

    def _layer(self, width: int, name: str, **attributes: Any) -> ConvNorm:
        dtype = jnp.dtype(self.dtype)
        return ConvNorm(
            width, **attributes, bn_groups=self.bn_groups, dtype=dtype, name=name
        )

    def _stage(self, number: int, features: jax.Array, train: bool) -> jax.Array:
        """Two blocks, and the convolution in front of the pooling, if there is one."""
        width = self.channels[number - 1]
        for index in range(2):
            normed = index in INSTANCE_NORM[self.instance_norm][number - 2]
            block = Block(
                width,
                self.instance_norm if normed else PLAIN,
                self.instance_norm == AIN,
                self.bn_groups,
                jnp.dtype(self.dtype),
                name=f"conv{number}_{index}",
            )
            features = run_block(block, features, remat=self.remat, train=train)
        if number == 4:
            return features
        layered = self.instance_norm == AIN
        name = f"pool{number}_0" if layered else f"conv{number}_2_0"
        return self._layer(width, name)(features, train=train)
