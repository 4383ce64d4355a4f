"""HRNet-W32 as its ImageNet classifier has it, up to the four streams.

Source: Wang et al., "Deep High-Resolution Representation Learning for Visual
Recognition", 2020, and the `incre_modules` that widen the streams in its classifier.
Parameters are named after HRNet-Image-Classification's
(`stage2.0.fuse_layers.0.1.0.weight` is `stage2_0/fuse_layers_0_1_0/kernel`), so that
its weights load by renaming and transposing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.backbones.resnet import Bottleneck, check_dtype, conv
from reid_jax.errors import UserError
from reid_jax.layers.convolution import relu
from reid_jax.layers.norm import BatchNorm
from reid_jax.layers.remat import run_block

Streams = tuple[jax.Array, ...]
"""Feature maps from the finest on, each with half the height and width of the one
before it and twice the channels."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside an identity shortcut.

    Attributes:
      bn_groups: see `BatchNorm.groups`.
      dtype: of the convolutions.
    """

    bn_groups: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to the same shape."""
        width = features.shape[-1]
        branch = conv(width, 3, dtype=self.dtype, name="conv1")(features)
        branch = BatchNorm(self.bn_groups, name="bn1")(branch, train=train)
        branch = conv(width, 3, dtype=self.dtype, name="conv2")(relu(branch))
        branch = BatchNorm(self.bn_groups, name="bn2")(branch, train=train)
        return relu(branch + features)


class Exchange(nn.Module):
    """One module of a stage: blocks in every stream, then each stream hears all.

    Attributes:
      blocks: number of `BasicBlock`s in every stream.
      bn_groups, dtype: see `BasicBlock`.
      remat: compute each block again for its gradient, see `run_block`.
    """

    blocks: int
    bn_groups: int = 1
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, streams: Streams, *, train: bool) -> Streams:
        """Maps the streams to as many of the same shapes."""
        streams = tuple(
            self._branch(index, stream, train) for index, stream in enumerate(streams)
        )
        fused = []
        for target, own in enumerate(streams):
            terms = [
                own if source == target else self._fuse(streams, source, target, train)
                for source in range(len(streams))
            ]
            fused.append(relu(sum(terms[1:], start=terms[0])))
        return tuple(fused)

    def _branch(self, index: int, features: jax.Array, train: bool) -> jax.Array:
        for block in range(self.blocks):
            name = f"branches_{index}_{block}"
            basic = BasicBlock(self.bn_groups, self.dtype, name=name)
            features = run_block(basic, features, remat=self.remat, train=train)
        return features

    def _fuse(
        self, streams: Streams, source: int, target: int, train: bool
    ) -> jax.Array:
        """Stream `source` in the shape of stream `target`."""
        features = streams[source]
        width = streams[target].shape[-1]
        name = f"fuse_layers_{target}_{source}"
        if source > target:
            features = conv(width, 1, dtype=self.dtype, name=f"{name}_0")(features)
            norm = BatchNorm(self.bn_groups, name=f"{name}_1")
            return upsample(norm(features, train=train), 2 ** (source - target))
        steps = target - source
        for step in range(steps):
            last = step == steps - 1
            features = conv(
                width if last else features.shape[-1],
                3,
                stride=2,
                dtype=self.dtype,
                name=f"{name}_{step}_0",
            )(features)
            norm = BatchNorm(self.bn_groups, name=f"{name}_{step}_1")
            features = norm(features, train=train)
            features = features if last else relu(features)
        return features


def upsample(features: jax.Array, factor: int) -> jax.Array:
    """Nearest-neighbour upsampling of [B, H, W, C] by a whole factor."""
    batch, height, width, channels = features.shape
    features = jnp.broadcast_to(
        features[:, :, None, :, None],
        (batch, height, factor, width, factor, channels),
    )
    return features.reshape(batch, height * factor, width * factor, channels)


class HRNet(nn.Module):
    """HRNet without its classifier; the defaults are HRNet-W32.

    Attributes:
      width: channels of the finest stream; 2, 4 and 8 times as many in the others.
      modules: number of `Exchange` modules in stage2, stage3 and stage4.
      blocks: bottlenecks of layer1, and blocks of every stream in a module.
      stem: channels of the stem and of layer1's 3x3 convolutions.
      incre: channels of the 3x3 convolution that widens the finest stream; 2, 4
        and 8 times as many for the others.
      bn_groups: see `BatchNorm.groups`.
      dtype: "float32" or "bfloat16", of the convolutions and the maps between them.
        Parameters and normalisation are float32.
      remat: compute each block again for its gradient, see `run_block`.
    """

    width: int = 32
    modules: tuple[int, int, int] = (1, 4, 3)
    blocks: int = 4
    stem: int = 64
    incre: int = 32
    bn_groups: int = 1
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        if len(self.modules) != 3:
            raise UserError(
                f"modules={self.modules!r}: give the number of modules of stage2, "
                "stage3 and stage4"
            )
        check_dtype(self.dtype)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[str, Streams]:
        """Runs standardised images [B, H, W, 3]; H and W are multiples of 32.

        Returns:
          streams: the four maps after stage4, [B, H/4, W/4, width] to
          [B, H/32, W/32, 8 * width]; incre: the same after the widening,
          [B, H/4, W/4, 4 * incre] to [B, H/32, W/32, 32 * incre].
        """
        height, width = images.shape[1:3]
        if height % 32 or width % 32:
            raise UserError(
                f"HRNet halves the image five times; {height} x {width} pixels "
                "cannot be: choose an image_size of multiples of 32"
            )
        streams: Streams = (self._stem(images, train),)
        for index, modules in enumerate(self.modules):
            streams = self._transition(index + 1, streams, train)
            for module in range(modules):
                name = f"stage{index + 2}_{module}"
                exchange = Exchange(
                    self.blocks,
                    self.bn_groups,
                    jnp.dtype(self.dtype),
                    self.remat,
                    name=name,
                )
                streams = exchange(streams, train=train)
        wide = tuple(
            self._bottleneck(
                stream, self.incre * 2**index, f"incre_modules_{index}_0", train
            )
            for index, stream in enumerate(streams)
        )
        return {"streams": streams, "incre": wide}

    def _stem(self, images: jax.Array, train: bool) -> jax.Array:
        features = images
        for index in (1, 2):
            names = (f"conv{index}", f"bn{index}")
            features = self._reduce(features, self.stem, names, train, stride=2)
        for index in range(self.blocks):
            name = f"layer1_{index}"
            features = self._bottleneck(features, self.stem, name, train)
        return features

    def _transition(
        self, number: int, streams: Sequence[jax.Array], train: bool
    ) -> Streams:
        """Opens one more stream below the coarsest, and narrows layer1's output."""
        streams = list(streams)
        name = f"transition{number}"
        coarsest, count = streams[-1], len(streams)
        # Only layer1's output can have another width than its stream.
        if streams[0].shape[-1] != self.width:
            names = (f"{name}_0_0", f"{name}_0_1")
            streams[0] = self._reduce(streams[0], self.width, names, train)
        names = (f"{name}_{count}_0_0", f"{name}_{count}_0_1")
        width = self.width * 2**count
        return (*streams, self._reduce(coarsest, width, names, train, stride=2))

    def _reduce(
        self,
        features: jax.Array,
        width: int,
        names: tuple[str, str],
        train: bool,
        *,
        stride: int = 1,
    ) -> jax.Array:
        """3x3 convolution, normalisation and ReLU, with the names of the first two."""
        dtype = jnp.dtype(self.dtype)
        features = conv(width, 3, stride=stride, dtype=dtype, name=names[0])(features)
        norm = BatchNorm(self.bn_groups, name=names[1])
        return relu(norm(features, train=train))

    def _bottleneck(
        self, features: jax.Array, width: int, name: str, train: bool
    ) -> jax.Array:
        block = Bottleneck(
            width, bn_groups=self.bn_groups, dtype=jnp.dtype(self.dtype), name=name
        )
        return run_block(block, features, remat=self.remat, train=train)
