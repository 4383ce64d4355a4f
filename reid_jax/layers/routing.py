"""Data-dependent routes through a grid of cells: layers, each of several scales.

Source: Li et al., "Learning Dynamic Routing for Semantic Segmentation", 2020, for the
grid; Jang et al., "Categorical Reparameterization with Gumbel-Softmax", 2017, for the
gates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Grid:
    """Which cells there are, and where each leads.

    A route enters at scale 0 of layer 0. From one layer to the next it goes one scale
    up, keeps its scale, or goes one down; only cells that a route can reach exist.

    Attributes:
      layers: number of layers.
      scales: number of scales; scale s has 1/2^s of the height and width.
    """

    layers: int
    scales: int = 3

    def __post_init__(self) -> None:
        if self.layers < 1 or self.scales < 1:
            raise UserError(
                f"a grid of {self.layers} layers and {self.scales} scales has no cell: "
                "give at least one of each"
            )

    def cells(self, layer: int) -> range:
        """Scales of the cells of a layer, from 0."""
        return range(min(layer + 1, self.scales))

    def exits(self, layer: int, scale: int) -> tuple[int, ...]:
        """Scales in the next layer that a cell leads to; none in the last layer."""
        if layer == self.layers - 1:
            return ()
        return tuple(s for s in (scale - 1, scale, scale + 1) if 0 <= s < self.scales)

    def places(self) -> Iterator[tuple[int, int]]:
        """Layer and scale of every cell, layer after layer."""
        return ((i, s) for i in range(self.layers) for s in self.cells(i))


def gumbel_softmax(
    key: jax.Array,
    logits: jax.Array,
    *,
    temperature: float,
    straight_through: bool = False,
) -> jax.Array:
    """Samples a choice that has a gradient (Jang et al., 2017, section 2.1 and 2.2).

    The largest entry is at a place drawn with the softmax of the logits, whatever the
    temperature.

    Args:
      key: drawn from at the shape of the logits.
      logits: [..., n], unnormalised logarithms of probabilities.
      temperature: towards 0 a sample becomes one-hot, with growing it becomes even.
      straight_through: return the one-hot choice, with the gradient of the sample.

    Returns:
      float32 [..., n], not negative, of sum 1.
    """
    logits = logits.astype(jnp.float32)
    noise = jax.random.gumbel(key, logits.shape)
    sample = jax.nn.softmax((logits + noise) / temperature)
    if not straight_through:
        return sample
    return choice(sample) + (sample - jax.lax.stop_gradient(sample))


def choice(logits: jax.Array) -> jax.Array:
    """The largest entry as a one-hot vector, float32 [..., n]; of equal ones the first.

    There is no gradient.
    """
    return jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1])


def run_if_active(
    module: nn.Module,
    activity: jax.Array,
    function: Callable[..., Any],
    *inputs: jax.Array,
    skip: bool = True,
) -> Any:
    """`function(module, *inputs)`; of one image that is inactive, zeros without work.

    For test mode, where the result of what is inactive is not used. `lax.cond` takes
    one branch at run time; in a batch it would take both, so a batch is just run.

    Args:
      module: whose variables the function reads; they exist already.
      activity: [B], not negative.
      function: of the module and the inputs.
      *inputs: arrays of B rows.
      skip: False runs one image, too, whatever its activity.
    """
    rows = activity.shape[0]
    # The rows of an exported function are a symbol, which equals no number.
    if not skip or not isinstance(rows, int) or rows != 1:
        return function(module, *inputs)

    def idle(module: nn.Module, *inputs: jax.Array) -> Any:
        shapes = jax.eval_shape(lambda *x: function(module, *x), *inputs)
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    return nn.cond(activity[0] > 0, function, idle, module, *inputs)


def sizes_of_scales(size: tuple[int, int], scales: int) -> list[tuple[int, int]]:
    """Height and width of each scale, as convolutions with stride 2 leave them."""
    sizes = [size]
    for _ in range(scales - 1):
        height, width = sizes[-1]
        sizes.append(((height + 1) // 2, (width + 1) // 2))
    return sizes


def scaled(features: jax.Array, weights: jax.Array) -> jax.Array:
    """Features [B, h, w, C] times a number per row [B], in their own dtype.

    The product is one of float32, so that the gradient of a number, a sum over all
    places and channels, is summed in it.
    """
    product = features.astype(jnp.float32) * weights[:, None, None, None]
    return product.astype(features.dtype)


def resized(features: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Bilinear, as PyTorch with align_corners=False."""
    if features.shape[1:3] == size:
        return features
    shape = (features.shape[0], *size, features.shape[3])
    return jax.image.resize(features, shape, "bilinear", antialias=False)


def coarseness(activity: jax.Array) -> jax.Array:
    """Mean scale [B] of the cells that routes pass, by their activity [B, L, S].

    0: all cells at the finest scale.
    """
    weights = jnp.nan_to_num(activity)
    scales = jnp.arange(weights.shape[2])
    return (weights * scales).sum((1, 2)) / weights.sum((1, 2))


def table(
    values: Mapping[tuple[int, ...], jax.Array], shape: tuple[int, ...]
) -> jax.Array:
    """Arrays [B] by place as one of `shape`, [B, ...], NaN where there is none."""
    empty = jnp.full(shape[0], jnp.nan)
    columns = [values.get(place, empty) for place in np.ndindex(shape[1:])]
    return jnp.stack(columns, 1).reshape(shape) if columns else jnp.zeros(shape)
