"""Batch normalisation with PyTorch's semantics, over the whole (global) batch."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.errors import UserError


class BatchNorm(nn.Module):
    """Normalises every channel over rows and places.

    As torch.nn.BatchNorm: the biased variance normalises, the unbiased one enters
    the running average, and `momentum` is the weight of the new batch. Statistics
    are float32. Under `jax.jit` with a sharded batch they are those of the global
    batch, whatever the number of devices.

    Attributes:
      groups: split the rows into this many consecutive groups, each normalised by
        its own statistics, as a run on that many GPUs without synchronised
        statistics did. The running averages then take the mean over the groups.
      momentum: weight of the new batch in the running averages.
      epsilon: added to the variance.
      use_bias: whether there is an additive parameter; BNNeck has none.

    Parameters `scale` (and `bias`) [C]; collection `batch_stats`: `mean`, `var` [C].
    """

    groups: int = 1
    momentum: float = 0.1
    epsilon: float = 1e-5
    use_bias: bool = True

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        """Normalises `inputs` [B, ..., C]; the result has their dtype."""
        shape = inputs.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape)
        values = inputs.astype(jnp.float32)
        if train:
            values = _split_rows(values, self.groups)
            mean, var = _moments(values)
            if not self.is_initializing():
                count = values[0].size // shape[0]
                unbiased = var * (count / max(count - 1, 1))
                self._update(running_mean, mean)
                self._update(running_var, unbiased)
        else:
            mean, var = running_mean.value, running_var.value
        values = (values - mean) * jax.lax.rsqrt(var + self.epsilon) * scale
        if self.use_bias:
            values += self.param("bias", nn.initializers.zeros, shape)
        return values.reshape(inputs.shape).astype(inputs.dtype)

    def _update(self, running: nn.Variable, batch: jax.Array) -> None:
        new = batch.reshape(self.groups, -1).mean(0)
        running.value = (1 - self.momentum) * running.value + self.momentum * new


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
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        values = inputs.astype(jnp.float32)
        mean, var = _moments(values)
        values = (values - mean) * jax.lax.rsqrt(var + self.epsilon) * scale + bias
        return values.astype(inputs.dtype)
