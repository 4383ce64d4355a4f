"""The baselines that the papers measure against.

ViT (AAformer, section IV-B; recipe of Luo et al., "Bag of Tricks and a Strong
Baseline for Deep Person Re-Identification", 2019): the CLS token of a ViT, BNNeck,
identity loss with label smoothing after it and batch-hard triplet before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.backbones.vit import VisionTransformer
from reid_jax.errors import UserError
from reid_jax.layers.heads import BNNeck
from reid_jax.layers.pixels import standardise
from reid_jax.losses.identity import accuracy, cross_entropy
from reid_jax.losses.triplet import batch_hard_triplet
from reid_jax.models import method
from reid_jax.retrieval.distances import euclidean, normalise


class Network(nn.Module):
    """A backbone's global feature and its re-ID head."""

    backbone: VisionTransformer
    num_classes: int
    bn_groups: int

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """Runs standardised images [B, H, W, 3].

        Returns:
          before, after [B, D] and logits [B, num_classes], see `BNNeck`.
        """
        feature = self.backbone(images, train=train)["cls"]
        head = BNNeck(self.num_classes, self.bn_groups, name="head")
        return head(feature, train=train)


class Method(method.Method):
    """The ViT baseline.

    Args:
      num_classes: training identities.
      image_size: height and width.
      patch_size, stride: side of a patch; rows and columns between patches.
      width, depth, heads, mlp_ratio, drop_path: of the Transformer.
      label_smoothing: share of the target that is spread over all identities.
      margin: of the triplet loss.
      feature: the feature to test with: "after" or "before" BNNeck's normalisation.
      bn_groups, mining_groups: statistics and mining per group of rows, as on that
        many GPUs.
      mean, std: of the channels, in units of the full range.
      dtype: "float32" or "bfloat16", of the matrix products.
    """

    def __init__(
        self,
        num_classes: int,
        image_size: tuple[int, int] = (256, 128),
        *,
        patch_size: int = 16,
        stride: Sequence[int] = (16, 16),
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4,
        drop_path: float = 0.1,
        label_smoothing: float = 0.1,
        margin: float = 0.3,
        feature: str = "after",
        bn_groups: int = 1,
        mining_groups: int = 1,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        dtype: str = "float32",
    ):
        if feature not in ("after", "before"):
            raise UserError(f"feature is one of after, before, not {feature!r}")
        backbone = VisionTransformer(
            image_size=tuple(image_size),
            patch_size=patch_size,
            stride=tuple(stride),
            width=width,
            depth=depth,
            heads=heads,
            mlp_ratio=mlp_ratio,
            drop_path=drop_path,
            dtype=dtype,
        )
        self.module = Network(backbone, num_classes, bn_groups)
        self.standardise = partial(standardise, mean=tuple(mean), std=tuple(std))
        self.label_smoothing = label_smoothing
        self.margin = margin
        self.feature = feature
        self.mining_groups = mining_groups

    def init(self, rng: jax.Array, batch: method.Batch) -> method.Variables:
        """Fresh variables; the pretrained backbone is loaded over them."""
        images = jnp.zeros((1, *batch["image"].shape[1:]))
        return self.module.init(rng, images, train=False)

    def objective(
        self,
        variables: method.Variables,
        batch: method.Batch,
        *,
        rng: jax.Array,
        epoch: jax.Array,
        stage: str,
    ) -> tuple[jax.Array, dict[str, jax.Array], method.Variables]:
        """Identity loss plus triplet loss; metrics are both and the accuracy."""
        del epoch, stage
        labels = batch["label"]
        outputs, collections = self.module.apply(
            variables,
            self.standardise(batch["image"]),
            train=True,
            mutable=["batch_stats"],
            rngs={"drop_path": rng},
        )
        logits = outputs["logits"]
        identity = cross_entropy(logits, labels, smoothing=self.label_smoothing)
        triplet = batch_hard_triplet(
            outputs["before"], labels, margin=self.margin, groups=self.mining_groups
        )
        metrics = {
            "loss_id": identity,
            "loss_triplet": triplet,
            "accuracy": accuracy(logits, labels),
        }
        return identity + triplet, metrics, collections

    def embed(
        self,
        variables: method.Variables,
        images: jax.Array,
        camera: jax.Array | None = None,
        parts: jax.Array | None = None,
    ) -> method.Embedding:
        """`vector` [B, D] of unit norm."""
        del camera, parts
        images = self.standardise(images)
        outputs = self.module.apply(variables, images, train=False)
        return {"vector": normalise(outputs[self.feature])}

    def distance(self, query: method.Embedding, gallery: method.Embedding) -> jax.Array:
        """Euclidean."""
        return euclidean(query["vector"], gallery["vector"])
