"""Correlation of two images: all pairs of places, and 4D convolutions over them.

Sources: Min et al., "Hypercorrelation Squeeze for Few-Shot Segmentation", ICCV 2021
(the center-pivot convolution); Lee et al., "Correlation Verification for Image
Retrieval", CVPR 2022 (the stack); used by CpaCol, section III-C.

A correlation is an array [B, H, W, H', W', C]: for each of B pairs a query place in
H x W and a gallery place in H' x W', channels last.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.errors import UserError
from reid_jax.layers import gradients
from reid_jax.layers.parameters import FAN_OUT, parameter

Size = int | tuple[int, int]
"""Along the rows and the columns of one image; an int means both."""

Blocks = Sequence[tuple[int, int, int]]
"""Layers of a stack: (kernel, stride, channels), equal for query and gallery."""

STACK: Blocks = (
    *((5, 2, 16),),
    *((3, 1, 16), (3, 2, 32)),
    *((3, 1, 32), (3, 1, 32), (3, 2, 64)),
    *((3, 1, 64), (3, 1, 64), (3, 1, 128)),
)
"""The four blocks of CpaCol's Fig. 5."""

_GROUPS = 4


def similarity(query: jax.Array, gallery: jax.Array) -> jax.Array:
    """Cosine of every query place with every gallery place, negative ones set to 0.

    CpaCol, Eq. 9, on L levels of features at once. Both lengths get 1e-8 added; a
    vector of zeros is unlike everything, and gets no gradient.

    Args:
      query: float [..., L, H, W, D].
      gallery: float [..., L, H', W', D] of the same dtype; the axes in front of L
        broadcast, so that one query may meet many candidates.

    Returns:
      [..., H, W, H', W', L], accumulated in float32 and of at least that type. At
      22 x 11 places, 3 levels and D = 256 it takes 45.0 M multiplications per pair.
    """
    cosine = jnp.einsum(
        "...lhwd,...lyxd->...hwyxl",
        _unit(query),
        _unit(gallery),
        preferred_element_type=jnp.promote_types(query.dtype, jnp.float32),
    )
    return jax.nn.relu(cosine)


def _unit(vectors: jax.Array) -> jax.Array:
    values = vectors.astype(jnp.promote_types(vectors.dtype, jnp.float32))
    square = jnp.square(values).sum(-1, keepdims=True)
    # No root of 0, whose gradient would be NaN.
    length = jnp.sqrt(jnp.where(square > 0, square, 1))
    return (values / (length + 1e-8)).astype(vectors.dtype)


class CenterPivotConv4d(nn.Module):
    """The sum of a 2-D convolution over query places and one over gallery places.

    The first looks at the neighbourhood of the query place and at the very gallery
    place, the second the other way round (CpaCol, Eq. 8). Together they are a 4-D
    convolution whose kernel is zero off the two planes through its centre, which
    both planes share: 2 k² taps instead of k⁴.

    Each convolution folds the places that it does not look around into its batch,
    after dropping those that their stride leaves out, so that nothing is computed or
    stored in vain. Borders are padded with zeros, k // 2 in front and (k - 1) // 2
    behind: n places become ceil(n / stride), the first of them around place 0.

    Attributes:
      features: output channels.
      query_kernel, gallery_kernel: extent of each convolution.
      query_stride, gallery_stride: steps along the query's and the gallery's axes.
      dtype: of the convolutions; parameters are float32.

    Parameters: `query` and `gallery`, each with `kernel` [kh, kw, C, features], drawn
    from N(0, 2 / (kh kw features)), and `bias` [features], which starts at 0.
    """

    features: int
    query_kernel: Size
    gallery_kernel: Size
    query_stride: Size = 1
    gallery_stride: Size = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, correlation: jax.Array) -> jax.Array:
        """Maps [B, H, W, H', W', C] to [B, h, w, h', w', features] of `dtype`."""
        around_query = _Conv2d(
            self.features,
            kernel=_two(self.query_kernel),
            stride=_two(self.query_stride),
            dtype=self.dtype,
            name="query",
        )
        around_gallery = _Conv2d(
            self.features,
            kernel=_two(self.gallery_kernel),
            stride=_two(self.gallery_stride),
            dtype=self.dtype,
            name="gallery",
        )
        correlation = correlation.astype(self.dtype)
        rows, columns = around_gallery.stride
        over_query = _over_query(around_query, correlation[:, :, :, ::rows, ::columns])
        rows, columns = around_query.stride
        over_gallery = _over_gallery(around_gallery, correlation[:, ::rows, ::columns])
        return over_query + over_gallery


class _Conv2d(nn.Module):
    """A 2-D convolution of [N, H, W, C], padded on all sides to keep its places."""

    features: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        shape = (*self.kernel, inputs.shape[-1], self.features)
        kernel = parameter(self, "kernel", FAN_OUT, shape)
        bias = parameter(self, "bias", nn.initializers.zeros, (self.features,))
        outputs = gradients.convolved(
            inputs,
            gradients.cast(kernel, self.dtype),
            self.stride,
            [(k // 2, (k - 1) // 2) for k in self.kernel],
        )
        return gradients.plus(outputs, gradients.cast(bias, self.dtype))


def _over_query(conv: _Conv2d, kept: jax.Array) -> jax.Array:
    # With the batch axis behind the rows and columns, where it lies, the convolution
    # would do without this transposition; but inside a loop XLA compiles only the
    # plain layout to fast code on CPU, and elsewhere it transposes by itself.
    return _swapped(_over_gallery(conv, _swapped(kept)))


def _over_gallery(conv: _Conv2d, kept: jax.Array) -> jax.Array:
    """Pairs and query places become the batch axis, in front as they lie."""
    *places, height, width, channels = kept.shape
    result = conv(kept.reshape(-1, height, width, channels))
    return result.reshape(*places, *result.shape[1:])


def _swapped(correlation: jax.Array) -> jax.Array:
    """[B, H, W, H', W', C] to [B, H', W', H, W, C]."""
    return correlation.transpose(0, 3, 4, 1, 2, 5)


def _two(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


class CorrelationStack(nn.Module):
    """Center-pivot convolutions, each with group normalisation and ReLU, and a mean.

    The kernel and stride of a layer hold along all four axes. `GroupNorm` with 4
    groups normalises each pair by itself, over all places, as PyTorch's does (epsilon
    1e-5, float32 statistics). As published, 3 levels of 22 x 11 places shrink to
    11 x 6, 6 x 3 and 3 x 2; there are 386,656 parameters, and a pair takes 57.4 M
    multiplications.

    Attributes:
      blocks: (kernel, stride, channels) of each layer.
      dtype: of the convolutions.

    Raises:
      UserError: if the channels of a layer do not make 4 groups.
    """

    blocks: Blocks = STACK
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, correlation: jax.Array) -> dict[str, jax.Array]:
        """Condenses a correlation [B, H, W, H', W', L], each pair by itself.

        Returns:
          `map` [B, h, w, h', w', D] of `dtype`, the paper's R_out; `vector` float32
          [B, D], its mean over all places.
        """
        values = correlation
        for i, (kernel, stride, channels) in enumerate(self.blocks):
            _check(kernel, stride, channels)
            values = CenterPivotConv4d(
                channels, kernel, kernel, stride, stride, self.dtype, name=f"conv_{i}"
            )(values)
            values = nn.GroupNorm(
                _GROUPS,
                epsilon=1e-5,
                dtype=self.dtype,
                use_fast_variance=False,
                name=f"norm_{i}",
            )(values)
            values = nn.relu(values)
        wide = values.astype(jnp.promote_types(values.dtype, jnp.float32))
        return {"map": values, "vector": wide.mean((1, 2, 3, 4))}


def _check(kernel: int, stride: int, channels: int) -> None:
    if kernel < 1 or stride < 1 or channels < 1 or channels % _GROUPS:
        raise UserError(
            f"4D convolution ({kernel}, {stride}, {channels}): kernel and stride must "
            f"be at least 1, and channels a multiple of {_GROUPS}"
        )
