"""AAformer: part tokens that are aligned with image patches inside self-attention.

Kuan Zhu, Haiyun Guo, Shiliang Zhang, Yaowei Wang, Jing Liu, Jinqiao Wang, Ming Tang:
"AAformer: Auto-Aligned Transformer for Person Re-Identification", IEEE Transactions
on Neural Networks and Learning Systems, 2023. The authors published no code.

Implemented: the Multi-head Auto-Alignment layer and network (section III-B), the
objective (III-C), and every row of its own in Tables II to VI (`:row=NAME`):

  row                 fields
  table2-vit          tokens="none"
  table2-aaformer     the defaults
  table3-vit          tokens="none"
  table3-aaformer     the defaults
  table4-vit          tokens="none"
  table4-pool-pcb     tokens="pool", assignment="stripes", granularities=(6,)
  table4-pool-mgn     tokens="pool", assignment="stripes"
  table4-pool-spreid  tokens="pool", assignment="parsing"
  table4-pt-pcb       assignment="stripes", granularities=(6,)
  table4-pt-mgn       assignment="stripes"
  table4-pt-spreid    assignment="parsing"
  table4-6cls         tokens="cls"
  table4-aaformer     the defaults
  table5-nn           assignment="nn"
  table5-ot           the defaults
  table6-4            granularities=(4,)
  table6-5            granularities=(5,)
  table6-6            granularities=(6,)
  table6-23           the defaults
  table6-34           granularities=(3, 4)
  table6-234          granularities=(2, 3, 4)

Deviations from the text, and what it leaves open:

III-A
- Eqs 1 and 2 scale by sqrt(D); here by sqrt(D / heads), which the pretrained weights
  were trained with and which the text means per head.
- The rest of the Transformer is ViT-B/16 as published: biases, exact GELU, epsilon of
  1e-6 in each LayerNorm, one more LayerNorm behind the last layer. "Pre-trained on
  ImageNet" is ImageNet-21k, then ImageNet; position embeddings are resized bilinearly.
  Stochastic depth of 0.1, as the sibling systems with this backbone.

III-B
- PARTs start from a normal distribution of 0.02 and have own position embeddings.
- CLS and patches attend to the whole sequence, PARTs included, as Eq. 1 reads
  literally; `parts_visible=False` hides the PARTs from them. A PART sees patches
  only, and patches alone are clustered.
- Queries and keys are L2-normalised for the assignment only. Eqs 3 and 5 are raw; raw
  inner products over epsilon = 0.05 overflow the exponential and leave three
  iterations far from balance. SwAV, which the paper builds on, normalises, too.
  `normalise_scores=False` is the literal form; it stays finite in the log domain.
- Each granularity is clustered by itself, in every layer and head (section IV-C,
  "in parallel"): P of Eqs 3 to 5 is its number of PARTs, and a patch belongs to one
  PART of each granularity.
- "A rounding procedure" is the arg-max over the PARTs of each patch, and no gradient
  flows through the assignment: it reaches queries and keys through Eq. 2.
- N / P patches for each PART are a constraint on Y*; three iterations meet it nearly,
  and rounding need not keep it: a PART may be left without patches. Its alignment is
  then zero.
- 0.46 ms are for 576 patches, which 256 x 128 pixels do not have.
  `benchmarks/assignment.py` measures any number of them.

III-C
- BNNeck as in BoT, which the paper follows: triplet before, identity loss and test
  after the normalisation (`feature="before"` tests with the other). Distances of the
  triplets are Euclidean, of features as they are; losses are means over the batch.
- Label smoothing is 0.1, as in BoT (`label_smoothing`).
- 6*CLS and the rows with pooling are trained as PARTs are: each token has a head of its
  own in Eq. 6, and all but the first CLS are concatenated for the second half of Eq. 7.
  With no such tokens Eq. 7 is the global triplet alone, with weight 1.
- Whether lengths are changed before Euclidean distances is not said. Here each token is
  scaled to unit length and they are concatenated then, so that CLS and PARTs weigh the
  same. `vector` has the other forms: "unit_vector" concatenates first, as BoT and
  TransReID would, "raw" changes no length, and "cls" is CLS alone.

IV-A, where the text has no number BoT's or TransReID's, in fields outside `model`
- The warm-up and the cosine go by steps; the cosine ends at 0.002 of the rate. An epoch
  is that of BoT's sampler. Weight decay is PyTorch's, of every parameter; biases have
  the same rate as all else.
- Images are resized bilinearly, without antialiasing. A flip has a probability of 0.5;
  the random crop is of the image padded by 10 black pixels; erasing takes 0.02 to 0.4
  of the area, with height / width of 0.3 to 3.33, and fills in ImageNet's mean. The
  channels' mean and deviation are 0.5 (`mean`, `std`), as the pretrained weights had.
- MSMT17 has 1041 training identities (Table I) with and without its validation images.
  Here they are trained on, too, 32,621 images in all, as is usual;
  dataset=msmt17_noval leaves them out. CUHK03(L) is dataset=cuhk03np_labeled.

IV-C
- SPReID's five regions are the foreground, head, upper body, lower body and shoes.
  Their labels are a parser's of LIP's twenty classes (`part_kind="lip"`); which class
  is in which region is our choice.
- Pooling is the mean of the last layer's patches; a region that is absent gives zeros.
- Stripes of a granularity are equal and do not overlap. Section II-A has MGN's overlap,
  but not by how much.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.backbones.attention import Attend, attention
from reid_jax.backbones.fused_attention import fused_attention
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
from reid_jax.retrieval.distances import normalise
from reid_jax.retrieval.tokens import FORMS, join
from reid_jax.retrieval.tokens import distance as token_distance

PICTURE_LAYER, PICTURE_HEAD = 2, 0
"""Figure 5 shows the first head of the third layer."""

SPREID_REGIONS = {
    "parts": ((1, 2, 3, 4, 5, 6, 7, 8), (1,), (2, 3, 4), (5, 6), (7, 8)),
    "hpnet": ((1, 2, 3, 4, 5, 6, 7), (1,), (2, 3, 4), (5, 6), (7,)),
    "lip": (
        (*range(1, 20),),
        (1, 2, 4, 13),
        (3, 5, 6, 7, 10, 11, 14, 15),
        (8, 9, 12, 16, 17),
        (18, 19),
    ),
}
"""Kind of part labels -> classes of the foreground, head, upper body, lower body and
shoes."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Fields of `config.model`, in the order of the paper; defaults are its setting.

    Raises:
      UserError: for values and combinations that have no meaning.
    """

    # The Transformer: side of a patch; rows and columns between patches, (16, 16) or a
    # sliding window such as (12, 12); its size.
    patch_size: int = 16
    stride: Sequence[int] = (16, 16)
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4
    drop_path: float = 0.1

    # What carries part features: "part" (PARTs), "pool" (means of the last layer's
    # patches over the same subsets), "cls" (as many more CLS tokens), or "none" (the
    # ViT baseline).
    tokens: str = "part"
    # Of patches to parts, for "part" and "pool": "ot" (optimal transport), "nn"
    # (nearest neighbour), "stripes" or "parsing".
    assignment: str = "ot"
    # Parts of each partition; "parsing" has regions instead.
    granularities: Sequence[int] = (2, 3)
    # epsilon and the iterations of Eqs 3 to 5; whether PARTs and patches are compared
    # by direction.
    epsilon: float = 0.05
    sinkhorn_iterations: int = 3
    normalise_scores: bool = True
    # Whether CLS and patches attend to the PARTs.
    parts_visible: bool = True
    # For "parsing": the kind of part labels, and the classes of each region in its
    # numbers; () is SPReID's regions.
    part_kind: str = "lip"
    part_groups: Sequence[Sequence[int]] = ()

    # Of Eqs 6 and 7.
    label_smoothing: float = 0.1
    margin: float = 0.3
    # Statistics and triplet mining per group of rows, as on that many GPUs.
    bn_groups: int = 1
    mining_groups: int = 1

    # To test with: features "after" or "before" BNNeck's normalisation, and what is
    # made of them: "unit_tokens", "unit_vector", "raw" or "cls", see
    # `retrieval.tokens.join`.
    feature: str = "after"
    vector: str = "unit_tokens"

    # Of the channels, in units of the full range.
    mean: Sequence[float] = (0.5, 0.5, 0.5)
    std: Sequence[float] = (0.5, 0.5, 0.5)
    # "float32" or "bfloat16", of the matrix products.
    dtype: str = "float32"
    # Of the attention, the same up to rounding: with PARTs (Eqs 1 and 2) "einsum" or
    # "pallas" (TPUs), without them "xla" and "cudnn" (NVIDIA GPUs, bfloat16), too.
    attention_implementation: str = "einsum"
    # Whether the Transformer's blocks are computed again for their gradients: less
    # memory on accelerators, about a third more arithmetic.
    remat: bool = False
    # Whether they are a loop, which is compiled in a fraction of the time: the same
    # results.
    scan_blocks: bool = False

    def __post_init__(self) -> None:
        check_choices(
            tokens=(self.tokens, ("part", "pool", "cls", "none")),
            assignment=(self.assignment, ("ot", "nn", "stripes", "parsing")),
            feature=(self.feature, ("after", "before")),
            vector=(self.vector, FORMS),
        )
        if self.tokens == "pool" and self.partition is None:
            raise UserError(
                f"tokens='pool' has no part tokens for assignment={self.assignment!r} "
                "to match patches with: use assignment='stripes' or 'parsing', or "
                "tokens='part'"
            )
        if not self.granularities or min(self.granularities) < 1:
            raise UserError(
                f"granularities={tuple(self.granularities)} must name at least one "
                "partition of at least one part each, as (2, 3)"
            )
        own = ("einsum", "pallas")
        if self.tokens == "part" and self.attention_implementation not in own:
            raise UserError(
                f"attention_implementation={self.attention_implementation!r}: with "
                "tokens='part' the attention is AAformer's own; only 'einsum' and "
                "'pallas' have it"
            )
        if self.partition == "parsing" and not self.regions:
            raise UserError(
                f"part_kind={self.part_kind!r}: which of its classes make up SPReID's "
                "regions is known for "
                f"{', '.join(SPREID_REGIONS)}; name them in part_groups"
            )

    @property
    def partition(self) -> str | None:
        """The rule that fixes the patches of each part in advance, if one does."""
        fixed = self.assignment in ("stripes", "parsing")
        return self.assignment if fixed and self.tokens in ("part", "pool") else None

    @property
    def regions(self) -> tuple[tuple[int, ...], ...]:
        """The part classes of each region; () where they are not known."""
        groups = self.part_groups or SPREID_REGIONS.get(self.part_kind, ())
        return tuple(map(tuple, groups))

    @property
    def counts(self) -> tuple[int, ...]:
        """Parts of each partition."""
        if self.partition == "parsing":
            return (len(self.regions),)
        return tuple(self.granularities)


# III-B. [PART]s: each sees only its subset of patches.


def align(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    subsets: jax.Array,
    *,
    parts_visible: bool = True,
    fused: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """The attention of one layer over the sequence CLS, P PARTs, N patches.

    Args:
      query, key, value: [B, 1 + P + N, heads, d].
      subsets: bool, broadcastable to [B, heads, P, N]: the patches of each PART.
      parts_visible: whether CLS and patches attend to the PARTs.
      fused: by `fused_attention`.

    Returns:
      The output [B, 1 + P + N, heads, d], and the PARTs' weights over the patches
      [B, heads, P, N].
    """
    parts, patches = subsets.shape[-2:]
    border = 1 + parts
    position = np.arange(border + patches)
    is_part = (position >= 1) & (position < border)
    # A PART sees its subset alone (Eq. 2), all others see everything (Eq. 1). One
    # product for both: the rows of either apart would be copies of queries and keys.
    if fused:
        shape = len(query), query.shape[2], parts, patches
        own = jnp.pad(jnp.broadcast_to(subsets, shape), [*[(0, 0)] * 3, (border, 0)])
        found = fused_attention(query, key, value, own, parts_visible=parts_visible)
        _, weights = attention(query[:, 1:border], key, value, own)
        return found, weights[..., border:]
    own = jnp.pad(subsets, [(0, 0)] * (subsets.ndim - 2) + [(1, patches), (border, 0)])
    mask = jnp.where(is_part[:, None], own, parts_visible | ~is_part)
    output, weights = attention(query, key, value, mask)
    return output, weights[..., 1:border, border:]


def auto_assignment(options: Options, queries: jax.Array, keys: jax.Array) -> jax.Array:
    """Clusters an image's patches with the PARTs as prototypes, head by head.

    Args:
      options: of the method: "ot" is Eqs 3 to 5, "nn" the nearest neighbour of Table V.
      queries: [B, P, heads, d] of the PARTs.
      keys: [B, N, heads, d] of the patches.

    Returns:
      bool [B, heads, P, N]: the subsets, without gradient.
    """
    queries, keys = jax.lax.stop_gradient((queries, keys))
    if options.normalise_scores:
        queries, keys = normalise(queries), normalise(keys)
    scores = jnp.einsum(  # the inner products of Eq. 3
        "bphd,bnhd->bhpn",
        queries.astype(jnp.float32),
        keys.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )
    balance = partial(
        sinkhorn, epsilon=options.epsilon, iterations=options.sinkhorn_iterations
    )
    subsets = []
    for group in jnp.split(scores, np.cumsum(options.counts)[:-1], axis=2):
        balanced = balance(group) if options.assignment == "ot" else group  # Eq. 5
        subsets.append(assign(balanced))
    return jnp.concatenate(subsets, axis=2)


def auto_alignment(
    options: Options, given: jax.Array | None = None, *, train: bool
) -> Attend:
    """Multi-head Auto-Alignment as the attention of a layer.

    Args:
      options: of the method.
      given: bool [P, N] or [B, P, N], the patches of each PART; None assigns them.
      train: whether the kernel is used, where one is chosen.
    """
    border = 1 + sum(options.counts)
    fused = train and options.attention_implementation == "pallas"

    def attend(
        query: jax.Array, key: jax.Array, value: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        if given is None:
            subsets = auto_assignment(options, query[:, 1:border], key[:, border:])
        else:
            subsets = given[..., None, :, :]  # the same in every head
        output, weights = align(
            query,
            key,
            value,
            subsets,
            parts_visible=options.parts_visible,
            fused=fused,
        )
        subsets = jnp.broadcast_to(subsets, weights.shape)
        return output, {"subsets": subsets, "weights": weights}

    return attend


class Network(nn.Module):
    """The Transformer with its PARTs and re-ID heads.

    Attributes:
      backbone: the Transformer; its extra tokens are the PARTs, or further CLS tokens.
      num_classes: training identities.
    """

    backbone: VisionTransformer
    options: Options
    num_classes: int

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
        options, attend = self.options, None
        if options.tokens == "part":
            attend = auto_alignment(options, subsets, train=train)
        features = self.backbone(images, train=train, attend=attend)
        outputs = jnp.concatenate([features["cls"][:, None], features["extra"]], axis=1)
        if options.tokens == "pool":
            pooled = masks.masked_mean(features["patches"], subsets)
            outputs = jnp.concatenate([outputs, pooled], axis=1)
        head = BNNeck(self.num_classes, options.bn_groups, name="heads")
        heads = token_heads(head, outputs, train=train)  # not shared (III-C)
        return {**heads, "layers": features["layers"]}


class Method(method.Method):
    """AAformer and the rows of its tables.

    Args:
      num_classes: training identities.
      image_size: height and width.
      **fields: of `Options`.
    """

    def __init__(
        self, num_classes: int, image_size: tuple[int, int] = (256, 128), **fields: Any
    ):
        self.options = options = Options(**fields)
        self.part_kind = options.part_kind
        if options.partition == "parsing":
            self.train_inputs = self.embed_inputs = ("parts",)
        extra = sum(options.counts) if options.tokens in ("part", "cls") else 0
        backbone = VisionTransformer(
            image_size=tuple(image_size),
            patch_size=options.patch_size,
            stride=tuple(options.stride),
            width=options.width,
            depth=options.depth,
            heads=options.heads,
            mlp_ratio=options.mlp_ratio,
            drop_path=options.drop_path,
            extra_tokens=extra,
            dtype=options.dtype,
            attention_implementation=(
                "einsum"
                if options.tokens == "part"
                else options.attention_implementation
            ),
            remat=options.remat,
            scan_blocks=options.scan_blocks,
        )
        self.module = Network(backbone, options, num_classes)
        self.position_grid = grid_size(
            backbone.image_size, backbone.patch_size, backbone.stride
        )
        self.standardise = partial(
            standardise, mean=tuple(options.mean), std=tuple(options.std)
        )

    def init(self, rng: jax.Array, batch: method.Batch) -> method.Variables:
        """Fresh variables; the pretrained Transformer is loaded over them."""
        images = jnp.zeros((1, *batch["image"].shape[1:]))
        parts = jnp.zeros(images.shape[:3], jnp.uint8)
        subsets = self.given_subsets(images.shape[1:3], parts)
        return self.module.init(rng, images, subsets, train=False)

    def given_subsets(
        self, image_size: tuple[int, int], parts: jax.Array | None = None
    ) -> jax.Array | None:
        """The patches of each part where the network does not find them itself."""
        vit, options = self.module.backbone, self.options
        if options.partition == "stripes":
            grid = grid_size(image_size, vit.patch_size, vit.stride)
            return jnp.asarray(masks.stripes(grid, options.counts))
        if options.partition == "parsing":
            if parts is None:
                raise UserError(
                    "assignment='parsing' needs part labels with the images: take a "
                    "data set that has them, or another assignment"
                )
            return masks.semantics(
                parts, options.regions, patch_size=vit.patch_size, stride=vit.stride
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
    ) -> method.Outcome:
        """Eqs 6-8; metrics are their terms and the accuracy of CLS."""
        del epoch, stage
        labels = batch["label"]
        outputs, collections = self.module.apply(
            variables,
            self.standardise(batch["image"]),
            self.given_subsets(batch["image"].shape[1:3], batch.get("parts")),
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
        loss = partial(cross_entropy, smoothing=self.options.label_smoothing)
        return jax.vmap(loss, in_axes=(1, None))(logits, labels).mean()

    def _triplet_loss(self, features: jax.Array, labels: jax.Array) -> jax.Array:
        """Eq. 7: CLS, and the concatenated PARTs, each with its own mining."""
        triplet = partial(
            batch_hard_triplet,
            margin=self.options.margin,
            groups=self.options.mining_groups,
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
        """What `vector` makes of CLS and PARTs, see `retrieval.tokens.join`."""
        del camera
        tokens = self._test(variables, images, parts)[self.options.feature]
        return join(tokens, self.options.vector)

    def distance(self, query: method.Embedding, gallery: method.Embedding) -> jax.Array:
        """Euclidean (section IV-A)."""
        return token_distance(query, gallery)

    def _test(
        self, variables: method.Variables, images: jax.Array, parts: jax.Array | None
    ) -> dict[str, Any]:
        subsets = self.given_subsets(images.shape[1:3], parts)
        return self.module.apply(
            variables, self.standardise(images), subsets, train=False
        )

    # IV-C, Figure 5.

    def pictures(
        self, variables: method.Variables, batch: method.Batch
    ) -> dict[str, method.Maps | method.Segments]:
        """Which patches each part takes, and how PARTs attend to them (Figure 5)."""
        options, vit, counts = self.options, self.module.backbone, self.options.counts
        if options.tokens in ("none", "cls"):
            return {}
        images, parts = batch["image"], batch.get("parts")
        size = images.shape[1:3]
        shape = (len(images), -1, *grid_size(size, vit.patch_size, vit.stride))
        names = tuple(f"part {i + 1} of {n}" for n in counts for i in range(n))
        pictures, about = {}, ""
        if options.tokens == "part":
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
            subsets = self.given_subsets(size, parts)
            patches = subsets.shape[-2:]
            subsets = jnp.broadcast_to(subsets, (len(images), *patches))
        # Parts of different granularity are different groups.
        first = np.cumsum([0, *counts[:-1]])[:, None]
        indices = masks.partition_indices(subsets, counts)
        segments = jnp.where(indices < 0, -1, indices + first).reshape(shape)
        titles = tuple(f"{count} parts" for count in counts)
        pictures["parts"] = method.Segments(segments, titles, names, about=about)
        return pictures
