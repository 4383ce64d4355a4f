"""Batch normalisation with PyTorch's semantics, over the whole (global) batch."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.errors import UserError
from reid_jax.layers.parameters import parameter

Pair = tuple[jax.Array, jax.Array]

_LEAST_WEIGHT = 1e-6
"""Rows of a smaller total weight have no statistics; dividing by it would overflow."""


class BatchNorm(nn.Module):
    """Normalises every channel over rows and places.

    As torch.nn.BatchNorm: the biased variance normalises, the unbiased one enters
    the running average, and `momentum` is the weight of the new batch. Statistics
    are float32. Under `jax.jit` with a sharded batch they are those of the global
    batch, whatever the number of devices: one all-reduce forward and one backward,
    because both sums are taken at once, of distances from the running mean. The
    variance then has float32's digits as long as that is near the batch's mean; of a
    batch that is n standard deviations away from it, it has an error of n² roundings.

    Attributes:
      groups: split the rows into this many consecutive groups, each normalised by
        its own statistics, as a run on that many GPUs without synchronised
        statistics did. The running averages then take the mean over the groups.
      momentum: weight of the new batch in the running averages.
      epsilon: added to the variance.
      use_bias: whether there is an additive parameter; BNNeck has none.
      scale_init: of the scale.

    Parameters `scale` (and `bias`) [C]; collection `batch_stats`: `mean`, `var` [C].
    """

    groups: int = 1
    momentum: float = 0.1
    epsilon: float = 1e-5
    use_bias: bool = True
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(
        self, inputs: jax.Array, *, train: bool, weights: jax.Array | None = None
    ) -> jax.Array:
        """Normalises `inputs` [B, ..., C]; the result has their dtype.

        Args:
          inputs: any float type.
          train: whether to normalise by the batch.
          weights: float [B], not negative, how much each row counts in the
            statistics; None counts all alike. Where no row of a group counts, the
            running averages normalise it, and it leaves them alone.
        """
        shape = inputs.shape[-1:]
        scale = parameter(self, "scale", self.scale_init, shape)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape)
        bias = None
        if self.use_bias:
            bias = parameter(self, "bias", nn.initializers.zeros, shape)
        running = running_mean.value, running_var.value
        if not train:
            return _normalised(inputs, *running, running[0], scale, bias, self.epsilon)
        outputs, updated = _by_the_batch(
            inputs,
            weights,
            running,
            scale,
            bias,
            self.groups,
            self.momentum,
            self.epsilon,
        )
        if not self.is_initializing():
            running_mean.value, running_var.value = updated
        return outputs


# Traced once for each shape, and inlined where they are called: a network normalises
# hundreds of times, each of dozens of operations (docs/results.md, "Time to trace").


@functools.partial(jax.jit, static_argnums=6, inline=True)
def _normalised(
    inputs: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    centre: jax.Array,
    scale: jax.Array,
    bias: jax.Array | None,
    epsilon: float,
) -> jax.Array:
    """`inputs` in units of the deviation, scaled and moved, in their dtype.

    Args:
      inputs: [..., C], of any float type.
      mean, var: of a shape that is broadcast to it, or to it in groups of rows.
      centre: [C], that the sums for `mean` are of distances from.
      scale, bias: [C].
      epsilon: added to the variance.
    """
    groups = mean.shape[0] if mean.ndim > 1 else 1
    values = _split_rows(inputs.astype(jnp.float32), groups)
    factor = jax.lax.rsqrt(var + epsilon) * scale
    # Of the distances that the sums are of, and the mean's taken from them first:
    # in one addend with the bias it would cost the gradient digits.
    values = ((values - centre) - (mean - centre)) * factor
    if bias is not None:
        values += bias
    return values.reshape(inputs.shape).astype(inputs.dtype)


@functools.partial(jax.jit, static_argnums=(5, 6, 7), inline=True)
def _by_the_batch(
    inputs: jax.Array,
    weights: jax.Array | None,
    running: Pair,
    scale: jax.Array,
    bias: jax.Array | None,
    groups: int,
    momentum: float,
    epsilon: float,
) -> tuple[jax.Array, Pair]:
    """What `BatchNorm` returns in training, and the running averages behind it."""
    centre = running[0]
    values = _split_rows(inputs.astype(jnp.float32), groups)
    if weights is None:
        mean, var = _moments_about(centre, values)
        count = values[0].size // values.shape[-1]
        unbiased, counted = var * (count / max(count - 1, 1)), None
        used = mean, var
    else:
        weights = _split_rows(weights.astype(jnp.float32), groups)
        mean, var, unbiased, counted = _weighted_moments_about(centre, values, weights)
        used = [
            jnp.where(counted, new, old)
            for new, old in zip((mean, var), running, strict=True)
        ]
    outputs = _normalised(inputs, *used, centre, scale, bias, epsilon)
    updated = tuple(
        _mixed(old, new, counted, momentum)
        for old, new in zip(running, (mean, unbiased), strict=True)
    )
    return outputs, updated


def _mixed(
    running: jax.Array, batch: jax.Array, counted: jax.Array | None, momentum: float
) -> jax.Array:
    """Running average [C] with the mean over the groups; of those that count."""
    batch = batch.reshape(batch.shape[0], -1)
    if counted is None:
        new = batch.mean(0)
    else:
        counted = counted.reshape(-1, 1)
        new = (counted * batch).sum(0) / jnp.maximum(counted.sum(), 1)
    mixed = (1 - momentum) * running + momentum * new
    return mixed if counted is None else jnp.where(counted.any(), mixed, running)


def _split_rows(values: jax.Array, groups: int) -> jax.Array:
    rows = values.shape[0]
    if rows % groups:
        raise UserError(
            f"bn_groups={groups} does not divide the batch of {rows} images: "
            "choose a batch size that is a multiple of it, or bn_groups=1"
        )
    return values.reshape(groups, rows // groups, *values.shape[1:])


def _moments(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance per group, [groups, 1, ..., 1, C], in two passes."""
    axes = tuple(range(1, values.ndim - 1))
    mean = values.mean(axes, keepdims=True)
    var = jnp.square(values - mean).mean(axes, keepdims=True)
    return mean, var


def _moments_about(centre: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same in one pass, about a `centre` [C] that is known before."""
    axes = tuple(range(1, values.ndim - 1))
    offsets = values - centre
    offset = offsets.mean(axes, keepdims=True)
    square = jnp.square(offsets).mean(axes, keepdims=True)
    return centre + offset, jnp.maximum(square - jnp.square(offset), 0)


def _weighted_moments_about(
    centre: jax.Array, values: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Mean, biased and unbiased variance per group, and whether its rows count.

    The unbiased variance is that of reliability weights: with weights of 0 and 1 it
    is the usual one over the rows of weight 1. All sums are taken in one pass.

    Args:
      centre: [C], known before.
      values: [groups, rows, ..., C].
      weights: [groups, rows].
    """
    axes = tuple(range(1, values.ndim - 1))
    weights = weights.reshape(*weights.shape, *[1] * (values.ndim - 2))
    places = values[0, 0].size // values.shape[-1]
    offsets = values - centre

    def summed(x: jax.Array) -> jax.Array:
        return x.sum(axes, keepdims=True)

    total, squares = summed(weights), summed(jnp.square(weights))
    offset = summed(weights * offsets)
    square = summed(weights * jnp.square(offsets))
    counted = places * total > _LEAST_WEIGHT
    total = jnp.where(counted, total, 1.0)
    offset, square = (
        jnp.where(counted, x, 0.0) / (places * total) for x in (offset, square)
    )
    var = jnp.maximum(square - jnp.square(offset), 0)
    # The sum of squared shares: one over the number of places that count.
    effective = squares / jnp.square(total) / places
    several = effective < 1 - _LEAST_WEIGHT
    unbiased = var / jnp.where(several, 1 - effective, 1.0)
    return centre + offset, var, unbiased, counted


class InstanceNorm(nn.Module):
    """Normalises every channel of every image over its places.

    As torch.nn.InstanceNorm2d(affine=True): no running averages, the same in
    training and evaluation. Statistics are float32.

    Attributes:
      epsilon: added to the variance.

    Parameters `scale` and `bias` [C].
    """

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Normalises `inputs` [B, ..., C]; the result has their dtype."""
        shape = inputs.shape[-1:]
        scale = parameter(self, "scale", nn.initializers.ones, shape)
        bias = parameter(self, "bias", nn.initializers.zeros, shape)
        values = inputs.astype(jnp.float32)
        mean, var = _moments(values)
        values = (values - mean) * jax.lax.rsqrt(var + self.epsilon) * scale + bias
        return values.astype(inputs.dtype)
