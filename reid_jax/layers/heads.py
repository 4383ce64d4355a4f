"""Re-identification heads."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.layers.graph import inverse_norms
from reid_jax.layers.norm import BatchNorm
from reid_jax.layers.parameters import parameter


class BNNeck(nn.Module):
    """Batch normalisation between the triplet's feature and the identity loss's.

    Source: Luo et al., "Bag of Tricks and a Strong Baseline for Deep Person
    Re-Identification", 2019, section 3.5: no bias in the normalisation nor in the
    classifier, whose weights start at N(0, 0.001).

    Attributes:
      num_classes: training identities.
      bn_groups: see `BatchNorm.groups`.
      use_bias: whether the classifier has one, after all.
      cosine: whether the logits are the cosines of feature and class, for a loss with
        a margin (`losses/angular.py`); without bias.
    """

    num_classes: int
    bn_groups: int = 1
    use_bias: bool = False
    cosine: bool = False

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """Applies the head to `features` [B, D].

        Returns:
          `before` [B, D], the feature as it came, for the triplet loss; `after`
          [B, D], the normalised feature, for retrieval; `logits` [B, num_classes].
          All float32.
        """
        before = features.astype(jnp.float32)
        norm = BatchNorm(groups=self.bn_groups, use_bias=False, name="bn")
        after = norm(before, train=train)
        return {"before": before, "after": after, "logits": self._classifier()(after)}

    def _classifier(self) -> nn.Module:
        if self.cosine:
            return CosineClassifier(self.num_classes, name="classifier")
        return nn.Dense(
            self.num_classes,
            use_bias=self.use_bias,
            kernel_init=nn.initializers.normal(0.001),
            name="classifier",
        )


class CosineClassifier(nn.Module):
    """Cosines of features and of a learned direction for each class.

    Attributes:
      num_classes: training identities.
    """

    num_classes: int

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """Maps float32 [B, D] to [B, num_classes]."""
        shape = (features.shape[-1], self.num_classes)
        kernel = parameter(self, "kernel", nn.initializers.xavier_uniform(), shape)
        norms = inverse_norms(features)[:, None] * inverse_norms(kernel.T)
        # Scaled by up to 256, a cosine of bfloat16's or TF32's digits would be noise.
        highest = jax.lax.Precision.HIGHEST
        return jnp.matmul(features, kernel, precision=highest) * norms


class LinearHead(nn.Module):
    """A classifier with a bias and nothing in front of it, as torchreid has it.

    Attributes:
      num_classes: training identities.
    """

    num_classes: int

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """`BNNeck`'s outputs for `features` [B, D]; `before` is `after`."""
        del train
        features = features.astype(jnp.float32)
        init = nn.initializers.normal(0.01)
        logits = nn.Dense(self.num_classes, kernel_init=init, name="classifier")
        return {"before": features, "after": features, "logits": logits(features)}


class DropoutClassifier(nn.Module):
    """Logits of features; with dropout, after a ReLU and it.

    Attributes:
      num_classes: training identities.
      dropout: share of the channels that are dropped.
    """

    num_classes: int
    dropout: float

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool) -> jax.Array:
        """[..., D] to [..., num_classes]."""
        if self.dropout:
            features = nn.Dropout(self.dropout, deterministic=not train)(
                jax.nn.relu(features)
            )
        return nn.Dense(
            self.num_classes,
            use_bias=False,
            kernel_init=nn.initializers.normal(0.001),
            name="linear",
        )(features)


class Reduction(nn.Module):
    """The layer that makes a short embedding of pooled features: linear, BN and ReLU.

    Source: BPBreID (Somers et al., 2023).

    Attributes:
      width: channels of the embedding.
      bn_groups: see `BatchNorm.groups`.
    """

    width: int
    bn_groups: int = 1

    @nn.compact
    def __call__(self, pooled: jax.Array, *, train: bool) -> jax.Array:
        """Maps float32 [B, ..., C] to [B, ..., width]."""
        init = nn.initializers.normal(0.01)
        layer = nn.Dense(self.width, use_bias=False, kernel_init=init, name="fc")
        norm = BatchNorm(self.bn_groups, name="bn")
        return jax.nn.relu(norm(layer(pooled), train=train))


def fully_connected(
    pooled: jax.Array, width: int, *, bn_groups: int, train: bool
) -> jax.Array:
    """torchreid's layer between pooling and classifier; call it within a module.

    Linear with a bias, BN and ReLU, in the module's `fc_0` and `fc_1`.

    Args:
      pooled: float32 [B, C].
      width: channels of the result [B, width].
      bn_groups: see `BatchNorm.groups`.
      train: whether to normalise by the batch.
    """
    init = nn.initializers.normal(0.01)
    features = nn.Dense(width, kernel_init=init, name="fc_0")(pooled)
    return jax.nn.relu(BatchNorm(bn_groups, name="fc_1")(features, train=train))


class PixelClassifier(nn.Module):
    """Scores of some classes for every place: BN and a 1x1 convolution.

    Source: BPBreID (Somers et al., 2023).

    Attributes:
      classes: their number.
      bn_groups: see `BatchNorm.groups`.
    """

    classes: int
    bn_groups: int = 1

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, h, w, C] to float32 logits [B, h, w, classes]."""
        features = BatchNorm(self.bn_groups, name="bn")(features, train=train)
        init = nn.initializers.normal(0.001)
        return nn.Dense(self.classes, kernel_init=init, name="classifier")(
            features.astype(jnp.float32)
        )


def token_heads(
    head: BNNeck | LinearHead, tokens: jax.Array, *, train: bool
) -> dict[str, jax.Array]:
    """Applies a head of its own to each of several tokens; call it within a module.

    Args:
      head: describes all of them; their parameters have a leading axis T.
      tokens: [B, T, D].
      train: whether to normalise by the batch.

    Returns:
      `before`, `after` [B, T, D] and `logits` [B, T, num_classes], see `BNNeck`.
    """
    return nn.vmap(
        lambda one, feature: one(feature, train=train),
        in_axes=1,
        out_axes=1,
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
    )(head, tokens)
