"""AAformer: part tokens that are aligned with image patches inside self-attention.

Kuan Zhu, Haiyun Guo, Shiliang Zhang, Yaowei Wang, Jing Liu, Jinqiao Wang, Ming Tang:
"AAformer: Auto-Aligned Transformer for Person Re-Identification", IEEE Transactions
on Neural Networks and Learning Systems, 2023. The authors published no code.

Implemented: the Multi-head Auto-Alignment layer and network (section III-B), the
objective (III-C), and every row of the ablations (IV-C, Tables IV-VI):

  row                        fields
  ViT-baseline               tokens="none"
  +PCB, Pool / PT            tokens="pool" / "part", assignment="stripes",
                             granularities=(6,)
  +MGN, Pool / PT            the same with granularities=(2, 3)
  +SPReID, Pool / PT         tokens="pool" / "part", assignment="parsing"
  6*CLS                      tokens="cls"
  AAformer                   the defaults
  Nearest Neighbor           assignment="nn"
  Table VI                   granularities=(4,), (5,), (6,), (2, 3), (3, 4), (2, 3, 4)

Deviations from the text, and what it leaves open:

- Queries and keys are L2-normalised for the assignment only. Eqs 3 and 5 are raw; raw
  inner products over epsilon = 0.05 overflow the exponential and leave three
  iterations far from balance. SwAV, which the paper builds on, normalises, too.
  `normalise_scores=False` is the literal form; it stays finite in the log domain.
- Eqs 1 and 2 scale by sqrt(D); here by sqrt(D / heads), which the pretrained weights
  were trained with and which the text means per head.
- "A rounding procedure" is the arg-max over the PARTs of each patch, and no gradient
  flows through the assignment: it reaches queries and keys through Eq. 2.
- Rounding need not balance: a PART may be left without patches. Its alignment is zero.
- Each granularity is clustered by itself, in every layer and head (section IV-C,
  "in parallel"); a patch belongs to one PART of each granularity.
- CLS and patches attend to the whole sequence, PARTs included, as Eq. 1 reads
  literally; `parts_visible=False` hides the PARTs from them.
- PARTs start from a normal distribution of 0.02 and have own position embeddings;
  stochastic depth of 0.1, as the sibling systems with this backbone.
- BNNeck as in BoT, which the paper follows: triplet before, identity loss and test
  after the normalisation (`feature="before"` tests with the other). Each token is
  scaled to unit length before they are concatenated.
- With no PARTs, Eq. 7 is the global triplet alone, with weight 1.
- SPReID's five regions are the foreground, head, upper body, lower body and shoes.
  Pooling is the mean; a region that is absent gives zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.backbones.attention import Attend, attention
from reid_jax.backbones.patches import grid_size
from reid_jax.backbones.vit import VisionTransformer
from reid_jax.errors import UserError, check_choices
from reid_jax.layers import masks
from reid_jax.layers.heads import BNNeck, token_heads
from reid_jax.layers.pixels import standardise
from reid_jax.layers.sinkhorn import assign, sinkhorn
from reid_jax.losses.identity import accuracy, cross_entropy
from reid_jax.losses.triplet import batch_hard_triplet
from reid_jax.models import method
from reid_jax.retrieval.distances import euclidean, normalise

PICTURE_LAYER, PICTURE_HEAD = 2, 0
"""Figure 5 shows the first head of the third layer."""

SPREID_REGIONS = ((1, 2, 3, 4, 5, 6, 7, 8), (1,), (2, 3, 4), (5, 6), (7, 8))
"""Part classes of the foreground, head, upper body, lower body and shoes."""


# III-B. [PART]s: each sees only its subset of patches.


def align(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    subsets: jax.Array,
    *,
    parts_visible: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """The attention of one layer over the sequence CLS, P PARTs, N patches.

    Args:
      query, key, value: [B, 1 + P + N, heads, d].
      subsets: bool, broadcastable to [B, heads, P, N]: the patches of each PART.
      parts_visible: whether CLS and patches attend to the PARTs.

    Returns:
      The output [B, 1 + P + N, heads, d], and the PARTs' weights over the patches
      [B, heads, P, N].
    """
    border = 1 + subsets.shape[-2]
    patches = slice(border, None)
    position = np.arange(key.shape[1])
    mask = None if parts_visible else (position < 1) | (position >= border)
    everything, _ = attention(query, key, value, mask)  # Eq. 1
    parts, weights = attention(  # Eq. 2
        query[:, 1:border], key[:, patches], value[:, patches], subsets
    )
    # The PARTs' rows of Eq. 1 are not used: computing them costs less than a copy
    # of the other queries.
    output = jnp.concatenate([everything[:, :1], parts, everything[:, patches]], axis=1)
    return output, weights


def auto_assignment(
    queries: jax.Array,
    keys: jax.Array,
    granularities: Sequence[int],
    *,
    balanced: bool = True,
    normalised: bool = True,
    epsilon: float = 0.05,
    iterations: int = 3,
) -> jax.Array:
    """Clusters an image's patches with the PARTs as prototypes, head by head.

    Args:
      queries: [B, P, heads, d] of the PARTs, P = sum(granularities).
      keys: [B, N, heads, d] of the patches.
      granularities: PARTs of each partition of the patches.
      balanced: optimal transport (Eqs 3-5); False is the nearest neighbour of Table V.
      normalised: compare directions rather than raw vectors.
      epsilon, iterations: see `sinkhorn`.

    Returns:
      bool [B, heads, P, N]: the subsets, without gradient.
    """
    queries, keys = jax.lax.stop_gradient((queries, keys))
    if normalised:
        queries, keys = normalise(queries), normalise(keys)
    scores = jnp.einsum(  # the inner products of Eq. 3
        "bphd,bnhd->bhpn",
        queries.astype(jnp.float32),
        keys.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )
    subsets, first = [], 0
    for count in granularities:
        group = scores[:, :, first : first + count]
        if balanced:
            group = sinkhorn(group, epsilon=epsilon, iterations=iterations)  # Eq. 5
        subsets.append(assign(group))
        first += count
    return jnp.concatenate(subsets, axis=2)


class Network(nn.Module):
    """The Transformer with its PARTs and re-ID heads.

    Attributes:
      backbone: the Transformer; its extra tokens are the PARTs, or further CLS tokens.
      num_classes: training identities.
      tokens, parts_visible, bn_groups: as of `Method`.
      cluster: `auto_assignment` with its options.
    """

    backbone: VisionTransformer
    num_classes: int
    tokens: str
    cluster: Callable[[jax.Array, jax.Array], jax.Array]
    parts_visible: bool
    bn_groups: int

    @nn.compact
    def __call__(
        self, images: jax.Array, subsets: jax.Array | None = None, *, train: bool
    ) -> dict[str, Any]:
        """Runs standardised images [B, H, W, 3].

        Args:
          images: float32.
          subsets: bool [P, N] or [B, P, N], the patches of each part; None lets
            every layer find its own.
          train: training mode of stochastic depth and batch normalisation.

        Returns:
          before, after: [B, P + 1, D], CLS and parts before and after BNNeck;
          logits: [B, P + 1, num_classes];
          layers: of each layer, `subsets` and `weights` [B, heads, P, N], bool and
            float32, the PARTs' patches and attention; empty without PARTs.
        """
        attend = self._attend(subsets) if self.tokens == "part" else None
        features = self.backbone(images, train=train, attend=attend)
        outputs = jnp.concatenate([features["cls"][:, None], features["extra"]], axis=1)
        if self.tokens == "pool":
            pooled = masks.masked_mean(features["patches"], subsets)
            outputs = jnp.concatenate([outputs, pooled], axis=1)
        head = BNNeck(self.num_classes, self.bn_groups, name="heads")
        heads = token_heads(head, outputs, train=train)  # not shared (III-C)
        return {**heads, "layers": features["layers"]}

    def _attend(self, given: jax.Array | None) -> Attend:
        """Multi-head Auto-Alignment, or alignment with subsets that are given."""
        border = 1 + self.backbone.extra_tokens

        def attend(
            query: jax.Array, key: jax.Array, value: jax.Array
        ) -> tuple[jax.Array, dict[str, jax.Array]]:
            if given is None:
                subsets = self.cluster(query[:, 1:border], key[:, border:])
            else:
                subsets = given[..., None, :, :]  # the same in every head
            output, weights = align(
                query, key, value, subsets, parts_visible=self.parts_visible
            )
            subsets = jnp.broadcast_to(subsets, weights.shape)
            return output, {"subsets": subsets, "weights": weights}

        return attend


class Method(method.Method):
    """AAformer and the rows of its ablation tables.

    Args:
      num_classes: training identities.
      image_size: height and width.
      tokens: what carries part features: "part" (PARTs), "pool" (means of the last
        layer's patches over the same subsets), "cls" (as many more CLS tokens), or
        "none" (the ViT baseline).
      assignment: of patches to parts, for "part" and "pool": "ot" (optimal
        transport), "nn" (nearest neighbour), "stripes" or "parsing".
      granularities: parts of each partition; "parsing" has `part_groups` instead.
      patch_size, stride: side of a patch; rows and columns between patches.
      width, depth, heads, mlp_ratio, drop_path: of the Transformer.
      epsilon, sinkhorn_iterations: of Eqs 3-5.
      normalise_scores: compare PARTs and patches by direction in the assignment.
      parts_visible: CLS and patches attend to the PARTs.
      part_groups: part classes of each part, for assignment="parsing".
      part_kind: the kind of labels that these numbers are of: "parts", "pifpaf" or
        "hpnet".
      label_smoothing, margin: of Eqs 6 and 7.
      feature: the feature to test with: "after" or "before" BNNeck's normalisation.
      bn_groups, mining_groups: statistics and mining per group of rows, as on that
        many GPUs.
      mean, std: of the channels, in units of the full range.
      dtype: "float32" or "bfloat16", of the matrix products.
      attention_implementation: of the Transformer, see there; with PARTs, whose
        attention (Eqs 1 and 2) is this method's own, "einsum" only.
      remat: compute the Transformer's blocks again for their gradients.
    """

    def __init__(
        self,
        num_classes: int,
        image_size: tuple[int, int] = (256, 128),
        *,
        tokens: str = "part",
        assignment: str = "ot",
        granularities: Sequence[int] = (2, 3),
        patch_size: int = 16,
        stride: Sequence[int] = (16, 16),
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4,
        drop_path: float = 0.1,
        epsilon: float = 0.05,
        sinkhorn_iterations: int = 3,
        normalise_scores: bool = True,
        parts_visible: bool = True,
        part_groups: Sequence[Sequence[int]] = SPREID_REGIONS,
        part_kind: str = "parts",
        label_smoothing: float = 0.1,
        margin: float = 0.3,
        feature: str = "after",
        bn_groups: int = 1,
        mining_groups: int = 1,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        dtype: str = "float32",
        attention_implementation: str = "einsum",
        remat: bool = False,
    ):
        _check(tokens, assignment, feature, granularities)
        if tokens == "part" and attention_implementation != "einsum":
            raise UserError(
                f"attention_implementation={attention_implementation!r}: with "
                "tokens='part' the attention is AAformer's own; only 'einsum' has it"
            )
        fixed = tokens in ("part", "pool") and assignment in ("stripes", "parsing")
        self.partition = assignment if fixed else None
        self.granularities = tuple(granularities)
        self.part_groups = tuple(map(tuple, part_groups))
        self.part_kind = part_kind
        if self.partition == "parsing":
            self.granularities = (len(self.part_groups),)
            self.train_inputs = self.embed_inputs = ("parts",)
        backbone = VisionTransformer(
            image_size=tuple(image_size),
            patch_size=patch_size,
            stride=tuple(stride),
            width=width,
            depth=depth,
            heads=heads,
            mlp_ratio=mlp_ratio,
            drop_path=drop_path,
            extra_tokens=sum(self.granularities) if tokens in ("part", "cls") else 0,
            dtype=dtype,
            attention_implementation=attention_implementation,
            remat=remat,
        )
        cluster = partial(
            auto_assignment,
            granularities=self.granularities,
            balanced=assignment == "ot",
            normalised=normalise_scores,
            epsilon=epsilon,
            iterations=sinkhorn_iterations,
        )
        self.position_grid = grid_size(tuple(image_size), patch_size, tuple(stride))
        self.module = Network(
            backbone, num_classes, tokens, cluster, parts_visible, bn_groups
        )
        self.standardise = partial(standardise, mean=tuple(mean), std=tuple(std))
        self.label_smoothing = label_smoothing
        self.margin = margin
        self.feature = feature
        self.mining_groups = mining_groups

    def init(self, rng: jax.Array, batch: method.Batch) -> method.Variables:
        """Fresh variables; the pretrained Transformer is loaded over them."""
        images = jnp.zeros((1, *batch["image"].shape[1:]))
        parts = jnp.zeros(images.shape[:3], jnp.uint8)
        subsets = self._subsets(images.shape[1:3], parts)
        return self.module.init(rng, images, subsets, train=False)

    def _subsets(
        self, image_size: tuple[int, int], parts: jax.Array | None
    ) -> jax.Array | None:
        """The patches of each part where the network does not find them itself."""
        vit = self.module.backbone
        if self.partition == "stripes":
            grid = grid_size(image_size, vit.patch_size, vit.stride)
            return jnp.asarray(masks.stripes(grid, self.granularities))
        if self.partition == "parsing":
            if parts is None:
                raise UserError(
                    "assignment='parsing' needs part labels with the images: take a "
                    "data set that has them, or another assignment"
                )
            return masks.semantics(
                parts, self.part_groups, patch_size=vit.patch_size, stride=vit.stride
            )
        return None

    # III-C. Objective function.

    def objective(
        self,
        variables: method.Variables,
        batch: method.Batch,
        *,
        rng: jax.Array,
        epoch: jax.Array,
        stage: str,
    ) -> tuple[jax.Array, dict[str, jax.Array], method.Variables]:
        """Eqs 6-8; metrics are their terms and the accuracy of CLS."""
        del epoch, stage
        labels = batch["label"]
        outputs, collections = self.module.apply(
            variables,
            self.standardise(batch["image"]),
            self._subsets(batch["image"].shape[1:3], batch.get("parts")),
            train=True,
            mutable=["batch_stats"],
            rngs={"drop_path": rng},
        )
        identity = self._identity_loss(outputs["logits"], labels)
        triplet = self._triplet_loss(outputs["before"], labels)
        loss = identity + triplet  # Eq. 8
        metrics = {
            "loss_id": identity,
            "loss_triplet": triplet,
            "accuracy": accuracy(outputs["logits"][:, 0], labels),
        }
        return loss, metrics, collections

    def _identity_loss(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """Eq. 6: the mean over CLS and PARTs, [B, P + 1, num_classes]."""
        per_token = jax.vmap(
            partial(cross_entropy, smoothing=self.label_smoothing), in_axes=(1, None)
        )(logits, labels)
        return per_token.mean()

    def _triplet_loss(self, features: jax.Array, labels: jax.Array) -> jax.Array:
        """Eq. 7: CLS, and the concatenated PARTs, each with its own mining."""
        triplet = partial(
            batch_hard_triplet, margin=self.margin, groups=self.mining_groups
        )
        whole = triplet(features[:, 0], labels)
        if features.shape[1] == 1:
            return whole
        parts = features[:, 1:].reshape(features.shape[0], -1)
        return (whole + triplet(parts, labels)) / 2

    # III-C, last paragraph: CLS and PARTs are concatenated to represent a person.

    def embed(
        self,
        variables: method.Variables,
        images: jax.Array,
        camera: jax.Array | None = None,
        parts: jax.Array | None = None,
    ) -> method.Embedding:
        """`vector` [B, (P + 1) * D] of unit norm, every token with the same weight."""
        del camera
        tokens = normalise(self._test(variables, images, parts)[self.feature])
        return {"vector": normalise(tokens.reshape(tokens.shape[0], -1))}

    def distance(self, query: method.Embedding, gallery: method.Embedding) -> jax.Array:
        """Euclidean (section IV-A)."""
        return euclidean(query["vector"], gallery["vector"])

    def _test(
        self, variables: method.Variables, images: jax.Array, parts: jax.Array | None
    ) -> dict[str, Any]:
        subsets = self._subsets(images.shape[1:3], parts)
        return self.module.apply(
            variables, self.standardise(images), subsets, train=False
        )

    # IV-C, Figure 5.

    def pictures(
        self, variables: method.Variables, batch: method.Batch
    ) -> dict[str, method.Maps | method.Segments]:
        """Which patches each part takes, and how PARTs attend to them (Figure 5)."""
        network, vit, counts = self.module, self.module.backbone, self.granularities
        if network.tokens in ("none", "cls"):
            return {}
        images, parts = batch["image"], batch.get("parts")
        size = images.shape[1:3]
        shape = (len(images), -1, *grid_size(size, vit.patch_size, vit.stride))
        names = tuple(f"part {i + 1} of {n}" for n in counts for i in range(n))
        pictures, about = {}, ""
        if network.tokens == "part":
            outputs = jax.jit(self._test)(variables, images, parts)
            index = min(PICTURE_LAYER, vit.depth - 1)
            about = f"layer {index + 1} of {vit.depth}, head {PICTURE_HEAD + 1}"
            layer = outputs["layers"][index]
            subsets = layer["subsets"][:, PICTURE_HEAD]
            weights = layer["weights"][:, PICTURE_HEAD]
            values = masks.relative_weights(weights, subsets).reshape(shape)
            scale = "attention, 0 to each part's own maximum"
            pictures["attention"] = method.Maps(
                values, names, scale=scale, about=f"{about}: patches of each part"
            )
        else:
            subsets = self._subsets(size, parts)
            patches = subsets.shape[-2:]
            subsets = jnp.broadcast_to(subsets, (len(images), *patches))
        # Parts of different granularity are different groups.
        first = np.cumsum([0, *counts[:-1]])[:, None]
        indices = masks.partition_indices(subsets, counts)
        segments = jnp.where(indices < 0, -1, indices + first).reshape(shape)
        titles = tuple(f"{count} parts" for count in counts)
        pictures["parts"] = method.Segments(segments, titles, names, about=about)
        return pictures


def _check(
    tokens: str, assignment: str, feature: str, granularities: Sequence[int]
) -> None:
    """Refuses values and combinations that have no meaning."""
    check_choices(
        tokens=(tokens, ("part", "pool", "cls", "none")),
        assignment=(assignment, ("ot", "nn", "stripes", "parsing")),
        feature=(feature, ("after", "before")),
    )
    if tokens == "pool" and assignment in ("ot", "nn"):
        raise UserError(
            f"tokens='pool' has no part tokens for assignment={assignment!r} to match "
            "patches with: use assignment='stripes' or 'parsing', or tokens='part'"
        )
    if not granularities or min(granularities) < 1:
        raise UserError(
            f"granularities={tuple(granularities)} must name at least one partition "
            "of at least one part each, as (2, 3)"
        )
