"""CACE-Net: images compared in pairs, through a graph of corresponding places.

Fufu Yu, Xinyang Jiang, Yifei Gong, Shizhen Zhao, Xiaowei Guo, Wei-Shi Zheng, Feng
Zheng, Xing Sun: "Devil's in the Details: Aligning Visual Clues for Conditional
Embedding in Person Re-Identification", 2020 (arXiv 2009.05250).

Implemented: the three stages of section 3 with inference by re-ranking (3.5), and every
row of Tables 1 to 3. The graph of a pair (Eqs 2 to 7) is in `layers/pair_graph.py`, on
top of `layers/graph.py`; the losses of pairs (Eq. 8) are in `losses/pairs.py`. Below
are the fields, the network (3.2 to 3.4, then its share of 3.5), the losses and the test
(`Method`), and the second look at pairs (`Scorer`).

  row                     fields
  table1-individual       graph="none", align="none"
  table1-alignment        graph="none"
  table1-individual-gcn   graph="individual"
  table1-normal           graph="normal"
  table1-discrepancy      graph="discrepancy"
  table2-none             graph="none", align="none"
  table2-part             align="part"
  table2-similarity       align="similarity"
  table2-full             align="full"
  table2-semantic         align="semantic"
  table2-correspondence   align="correspondence"
  table3-cross-entropy    alpha=1.0
  table3-0.95             alpha=0.95
  table3-0.9              alpha=0.9
  table3-0.8              alpha=0.8
  table3-0.7              alpha=0.7
  table3-0.6              alpha=0.6
  attention-ones          start="ones"
  attention-normal        start="normal"
  attention-centred       centred=True
  attention-threshold     threshold=0.3
  rerank-cosine           pair_metric="cosine"
  rerank-euclidean        pair_metric="euclidean"

Deviations from the text, and what it leaves open:

- 3.2. The last stride of the ResNet is 1, as in the code, so that X is 24 x 8 x 2048.
  The encoder has batch normalisation behind average pooling and a 1 x 1 convolution to
  768; triplet loss, classifier and test take its output. The conditional features have
  an encoder and a classifier of their own.
- Eq. 1 lacks the sign of the logarithm and divides by the number of classes: it is
  the usual cross-entropy here, without label smoothing.
- 3.3 gives A as many rows as an image has places; Eq. 4 and the code have both images'.
- S (Eqs 2 and 3) compares L2-normalised features, and W and W' start at 1, so that it
  begins as a cosine. Raw inner products of 2048 channels would make degrees enormous.
  The nodes of Eq. 7 are the features as they are. A place is its own neighbour, as
  Eq. 2 has it.
- The ReLU of Eq. 4 selects nothing here. "Region pairs with positive importance" are
  all of them, because features behind a ReLU and weights near 1 have positive products.
  After training a small network (docs/results.md) no edge is zero, W' is within 0.92
  and 1.06, the pooled conditional vector has a cosine of 0.996 with that of
  align="full", and a query's conditional maps correlate by 0.99 between candidates.
  Three fields change that: weights of both signs (`start="normal"`, which cuts 40 % of
  the edges there; as all places have much in common, which share is cut is the draw's),
  features less their mean over the image's places (`centred`, 58 %), and a `threshold`
  in place of 0 (0.8 cuts all). The text names none of them, and over five seeds each
  gained less than its own form (0.5 to 0.7 points of mAP against 2.0 on people dressed
  alike), so that is the default; benchmarks/look_alikes.py compares them.
- Eqs 5 to 7 write D^-1/2 A D^1/2, which is not symmetric; the Laplacian they name has
  D^-1/2 on both sides, and so has the code. A degree below 1e-3 counts as 1.
- theta of Eq. 7 is a 1 x 1 map without bias, activation or shortcut. The average of
  (L X theta) over places is then (column means of L) X theta: it is computed so, and
  conditional maps exist in pictures only.
- By the same algebra "part" and "full" leave the difference of both images' mean
  features, and half of it: after batch normalisation the two rows are one system, where
  Table 2 has 78.39 and 80.19 mAP. Maximum pooling (below) tells them apart.
- 3.4.2. Losses are means, where Eq. 8 writes a sum, and have weight 1 each. Triplet
  losses have margin 0.3 and take features as they are; the conditional one takes
  |f(u|v) - f(v|u)| as the distance of a pair.
- 3.5. K is not given: 100; 0 leaves re-ranking away. The nearest K are sorted by the
  conditional distance, the others stay behind them in their order. Individual features
  are ranked at unit length, and trained as they are. "Similarity" is the Euclidean
  distance that training compares. A cosine (`pair_metric="cosine"`, what unit features
  in the code come to) sees what is left of that here: where all places are joined,
  f(u|v) is -f(v|u) but for batch normalisation, by the algebra above, and after
  training 1 - cos of all pairs was between 1.98 and 2. Both re-rank in docs/results.md.
- 4.2. SGD has the momentum of 0.9 of the code; the schedule counts steps. Padding
  before the crop (10 pixels), area, shape and colour of what is erased are BoT's.
- 4.3.1. Visual clue alignment without a graph: similarity is the mean cosine of joined
  places, weighted by A; it learns by the triplet loss of 1 - similarity. For the
  individual GCN f(u|v) is the same for every v; Eq. 8 stands as it is.
- 4.3.2. Top-K similarity: joined are each place and the most similar one of the other
  image, from either side. "part" and "similarity" join no places of one image;
  "semantic" joins all places that share a body part, of one image and of two.

The authors' published code differs, and evaluates no conditional features at all. Its
design is in fields, all set by `configs/cacenet.py:mode=code`: non-local blocks
(`non_local`); A from the cosines of one shared 128-channel embedding without the
diagonal, D^-1/2 without gradient (`adjacency="embedded"`), where a place without
neighbours has a row of zeros in the Laplacian, not of the identity; X + expand(L
project(X)) in place of L X theta (`update="residual"`); average and maximum pooling
(`pool`), one encoder for all features (`shared_encoder`), whose running averages see
all pairs twice; ReLU and dropout before the classifiers (`dropout`); Eq. 8 for either
image of every ordered pair, which is twice its mean (`mixup_weight`); triplet losses of
unit features (`unit_triplet`, `pair_metric`), margin 0.5; label smoothing 0.1 for
individual features; and test features averaged over both mirror images (`flip_test`).
Left out: a second dropout mask for f(u|v) as the other image of the pair; that the ReLU
of the PyTorch version works in place, so that its triplet losses compare features
behind it; the learnt power mean that its file for MSMT17 pools with; that training
discards identities with fewer than four images; order and colour of its augmentation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.backbones.resnet import ResNet
from reid_jax.errors import UserError, check_choices
from reid_jax.layers import masks
from reid_jax.layers.all_pairs import all_pairs
from reid_jax.layers.heads import DropoutClassifier
from reid_jax.layers.heat_maps import strongest
from reid_jax.layers.norm import BatchNorm
from reid_jax.layers.pair_graph import Arrays, PairGraph, mean, mean_and_maximum
from reid_jax.layers.parameters import FAN_OUT
from reid_jax.layers.pixels import standardise
from reid_jax.losses.identity import accuracy, cross_entropy
from reid_jax.losses.pairs import mixup_cross_entropy, pair_distances, pair_triplet
from reid_jax.losses.triplet import batch_hard_triplet
from reid_jax.models import method
from reid_jax.retrieval import packing
from reid_jax.retrieval.distances import euclidean, normalise
from reid_jax.retrieval.expansion import mirror, with_mirrored
from reid_jax.retrieval.fusion import sort_candidates

BODY_PARTS = ((1,), (2,), (3, 4), (5, 6), (7, 8))
"""Part classes of the head, torso, arms, legs and feet."""

PICTURED_CORRESPONDENCES = 10

_WIDE = ("own", "feature")
"""Of what is stored of an image, that which is float32 whatever the maps are."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Fields of `config.model`, in the order of the paper; defaults are its setting.

    Raises:
      UserError: for values and combinations that have no meaning.
    """

    # 3.2. The ResNet, and the channels of individual and conditional features.
    blocks: Sequence[int] = (3, 4, 6, 3)
    width: int = 64
    last_stride: int = 1
    embed_width: int = 768

    # 3.3. What joins places: "correspondence" attention, or what Table 2 compares it
    # with: "part" (the same place), "similarity" (the most similar place), "full"
    # (all), "semantic" (body parts), "none".
    align: str = "correspondence"
    # W and W' of Eqs 2 and 3 start as "ones", or "normal": N(0, 1), of both signs.
    start: str = "ones"
    # Whether S compares features less their mean over the image's places.
    centred: bool = False
    # What a pair's importance must exceed to be an edge, Eq. 4: ReLU(S - threshold).
    threshold: float = 0.0
    # For align="semantic": the part classes of each body part, and the kind of labels
    # that these numbers are of: "parts", "pifpaf", "hpnet" or "lip".
    part_groups: Sequence[Sequence[int]] = BODY_PARTS
    part_kind: str = "parts"

    # 3.4.1. Convolution over the graph of a pair, by "discrepancy" (Eq. 7) or "normal"
    # (Eq. 6), Eq. 7 over each image's own graph ("individual"), or "none".
    graph: str = "discrepancy"
    # 3.4.2. Weight of an image's own identity in Eq. 8, and of Eq. 8 beside the other
    # losses; of the triplet losses the margin.
    alpha: float = 0.9
    mixup_weight: float = 1.0
    margin: float = 0.3
    # Training compares every image with this many others at a time: less is less
    # memory, more is fewer steps.
    pair_block: int = 1

    # 3.5. Gallery images per query that conditional features re-rank, 0 for none; their
    # "euclidean" or "cosine" distance; "float32", "float16" or "bfloat16" for the maps
    # that are stored.
    top_k: int = 100
    pair_metric: str = "euclidean"
    map_dtype: str = "float16"

    # What the authors' code has and the paper has not. Non-local blocks in the ResNet.
    non_local: bool = False
    # A by Eqs 2 and 3 ("diagonal"), or from the cosines of "embedded" places.
    adjacency: str = "diagonal"
    # theta of Eq. 7 ("linear"), or a "residual": X + expand(L project(X)).
    update: str = "linear"
    # Channels of embedded and of projected places.
    graph_width: int = 128
    # Maps are pooled by "avg", or by both: "avg_max".
    pool: str = "avg"
    # Whether individual and conditional features have one encoder.
    shared_encoder: bool = False
    # Before the classifiers, after a ReLU; 0 leaves both away.
    dropout: float = 0.0
    # For individual features.
    label_smoothing: float = 0.0
    # Whether the triplet losses compare features at unit length.
    unit_triplet: bool = False
    # Whether the test feature is averaged over the image and its mirror image.
    flip_test: bool = False

    # Of the channels, in units of the full range.
    mean: Sequence[float] = (0.485, 0.456, 0.406)
    std: Sequence[float] = (0.229, 0.224, 0.225)
    # "float32" or "bfloat16", of convolutions and maps.
    dtype: str = "float32"
    # Whether the ResNet's blocks are computed again for their gradients: less memory on
    # accelerators, about a third more arithmetic.
    remat: bool = False

    def __post_init__(self) -> None:
        check_choices(
            **{name: (getattr(self, name), known) for name, known in _CHOICES.items()}
        )
        if self.align == "none" and self.graph != "none":
            raise UserError(f"graph={self.graph!r} needs an alignment: align is 'none'")
        if self.graph == "individual" and self.align in ("part", "similarity"):
            raise UserError(
                f"align={self.align!r} joins no places of one image, so "
                "graph='individual' has nothing to work on: take align='correspondence'"
            )
        usual = tuple(map(tuple, self.part_groups)) == BODY_PARTS
        if self.align == "semantic" and self.part_kind != "parts" and usual:
            raise UserError(
                f"part_groups has the numbers of part_kind='parts', not of "
                f"{self.part_kind!r}: give both (data_pipelines/part_labels/kinds.py "
                "has each kind's classes)"
            )
        if len(self.blocks) != 4:
            raise UserError(f"blocks={tuple(self.blocks)} must have four numbers")
        for name, least in (("top_k", 0), ("pair_block", 1), ("mixup_weight", 0)):
            if getattr(self, name) < least:
                raise UserError(
                    f"{name}={getattr(self, name)} must be at least {least}"
                )
        if not 0 <= self.alpha <= 1:
            raise UserError(f"alpha={self.alpha} must be between 0 and 1")


_CHOICES = {
    "align": ("correspondence", "part", "similarity", "full", "semantic", "none"),
    "start": ("ones", "normal"),
    "graph": ("discrepancy", "normal", "individual", "none"),
    "pair_metric": ("cosine", "euclidean"),
    "map_dtype": packing.DTYPES,
    "adjacency": ("diagonal", "embedded"),
    "update": ("linear", "residual"),
    "pool": ("avg", "avg_max"),
}


# 3.2 and 3.4. Individual and conditional features.


class Encoder(nn.Module):
    """From pooled maps to a feature: 1 x 1 convolution and batch normalisation.

    Attributes:
      width: of the feature.
    """

    width: int

    def setup(self) -> None:
        """Both layers."""
        self.reduce = nn.Dense(self.width, use_bias=False, kernel_init=FAN_OUT)
        self.bn = BatchNorm()

    def __call__(self, pooled: jax.Array, *, train: bool) -> jax.Array:
        """Features [B, width], float32, of pooled maps [B, D]."""
        return self.normalised(self.reduced(pooled), train=train)

    def reduced(self, pooled: jax.Array) -> jax.Array:
        """The convolution alone, of pooled maps [..., D]."""
        return self.reduce(pooled)

    def normalised(self, reduced: jax.Array, *, train: bool) -> jax.Array:
        """The normalisation alone, over all leading axes of [..., width]."""
        return self.bn(reduced, train=train)


class Network(nn.Module):
    """The backbone, the graph of pairs, and the encoders of both features.

    Attributes:
      backbone: ends with layer4.
      num_classes: training identities.
      pairs: the graph of a pair.
      options: of the method.
    """

    backbone: ResNet
    num_classes: int
    pairs: PairGraph
    options: Options

    def setup(self) -> None:
        """Modules, and the graph's weights as plain arrays for `jax.vmap`."""
        options = self.options
        self.encoder = Encoder(options.embed_width)
        self.classifier = DropoutClassifier(self.num_classes, options.dropout)
        shapes = self.pairs.shapes(32 * self.backbone.width, options.graph_width)
        self.weights = {name: self.param(name, *how) for name, how in shapes.items()}
        if self.pairs.graph != "none":
            if not options.shared_encoder:
                self.own_pair_encoder = Encoder(options.embed_width)
            self.pair_classifier = DropoutClassifier(self.num_classes, options.dropout)

    @property
    def pair_encoder(self) -> Encoder:
        """The encoder of conditional features."""
        return self.encoder if self.options.shared_encoder else self.own_pair_encoder

    def __call__(
        self, images: jax.Array, parts: jax.Array | None, *, train: bool
    ) -> dict[str, jax.Array]:
        """Runs standardised images [B, H, W, 3] and all their pairs.

        Args:
          images: float32.
          parts: bool [B, P, N], see `PairGraph.nodes`.
          train: training mode of normalisation and dropout.

        Returns:
          feature [B, E] and logits [B, C]; with a graph, pair_feature [B, B, E] and
          pair_logits [B, B, C] of the first image given the second; with an alignment
          alone, pair_distance [B, B].
        """
        maps = self.maps(images, train=train)
        feature = self.individual(maps, train=train)
        outputs = {
            "feature": feature,
            "logits": self.classifier(feature, train=train),
        }
        if self.pairs.align == "none":
            return outputs
        return outputs | self.of_pairs(self.nodes(maps, parts), train=train)

    def of_pairs(self, nodes: Arrays, *, train: bool) -> dict[str, jax.Array]:
        """The outputs of `__call__` for all pairs."""
        if self.pairs.graph == "none":
            return {"pair_distance": self._all_pairs(self.pairs.alignment, nodes)}
        reduced = self.all_reduced(nodes)
        paired = self.pair_encoder.normalised(reduced, train=train)
        if self.options.shared_encoder and train:
            # The authors normalise first and second images of all pairs one after the
            # other: the same statistics, which the running averages see twice.
            self.pair_encoder.normalised(reduced, train=True)
        logits = self.pair_classifier(paired, train=train)
        return {"pair_feature": paired, "pair_logits": logits}

    def maps(self, images: jax.Array, *, train: bool) -> jax.Array:
        """The feature maps X, [B, h, w, D]."""
        return self.backbone(images, train=train)["layer4"]

    def individual(self, maps: jax.Array, *, train: bool) -> jax.Array:
        """f(I) of section 3.2, [B, E]."""
        batch, height, width, channels = maps.shape
        places = maps.reshape(batch, height * width, channels)
        pool = mean_and_maximum if self.pairs.pool == "avg_max" else mean
        return self.encoder(pool(places), train=train)

    def nodes(self, maps: jax.Array, parts: jax.Array | None) -> dict[str, jax.Array]:
        """What pairs need of each image, see `PairGraph.nodes`."""
        make = partial(self.pairs.nodes, self.weights)
        return jax.vmap(make)(maps, parts)

    def all_reduced(self, nodes: Arrays) -> jax.Array:
        """f(u|v) of all pairs before normalisation, [B, B, E].

        Pairs are pooled one by one; what follows is linear, and a product of all.
        """
        if self.pairs.graph == "individual":
            pooled = partial(self.pairs.pooled, self.weights)
            alone, _ = jax.vmap(pooled)(nodes, nodes)
            reduced = self.pair_encoder.reduced(alone)
            return jnp.broadcast_to(reduced[:, None], (len(alone), *reduced.shape))
        found = self._all_pairs(self.pairs.gathered, nodes)
        dtype = nodes["map"].dtype
        pooled = self.pairs.projected(self.weights, found, dtype)
        return self.pair_encoder.reduced(pooled)

    def _all_pairs(self, function: Callable[..., Any], nodes: Arrays) -> Any:
        weights = self.pairs.of_pairs(self.weights)
        return all_pairs(function, weights, nodes, block=self.options.pair_block)

    # 3.5. Inference on pairs.

    def pair_maps(self, images: jax.Array, parts: jax.Array | None) -> Arrays:
        """What two images are compared by, with leading axis B.

        See `PairGraph.stored`; of an individual graph its feature, [B, E].
        """
        nodes = self.nodes(self.maps(images, train=False), parts)
        if self.pairs.graph == "individual":
            alone, _ = jax.vmap(partial(self.pairs.pooled, self.weights))(nodes, nodes)
            return {"feature": self.pair_encoder(alone, train=False)}
        return self.pairs.stored(nodes)

    def pair_distance(self, query: Arrays, candidates: Arrays) -> jax.Array:
        """Conditional distances [Q, K] of nodes [Q, ...] and [Q, K, ...]."""
        if self.pairs.graph == "individual":
            return self._distance(query["feature"][:, None], candidates["feature"])
        if self.pairs.graph == "none":
            return self._over_pairs(self.pairs.alignment, query, candidates)[0]
        pooled = jnp.stack(self._over_pairs(self.pairs.pooled, query, candidates))
        mine, theirs = self.pair_encoder(pooled, train=False)
        return self._distance(mine, theirs)

    def _distance(self, mine: jax.Array, theirs: jax.Array) -> jax.Array:
        """Distances of features [..., E]."""
        if self.options.pair_metric == "euclidean":
            return jnp.linalg.norm(mine - theirs, axis=-1)
        return 1 - (normalise(mine) * normalise(theirs)).sum(-1)

    def _over_pairs(
        self, function: Callable[..., Any], query: Arrays, candidates: Arrays
    ) -> Any:
        """A function of weights and a pair, over Q queries and K candidates each."""
        one = partial(function, self.weights)
        return jax.vmap(jax.vmap(one, in_axes=(None, 0)))(query, candidates)

    def correspondences(
        self, query: Arrays, candidates: Arrays
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Figure 5: the strongest places of a query with their partners."""
        grid = query["map"].shape[1:3]
        strengths = self._over_pairs(self.pairs.strengths, query, candidates)
        return strongest(strengths, grid, count=PICTURED_CORRESPONDENCES)

    def conditional_norms(
        self, query: Arrays, candidates: Arrays
    ) -> tuple[jax.Array, jax.Array]:
        """Figure 4: both images' conditional maps as [Q, K, h, w] in [0, 1]."""
        grid = query["map"].shape[1:3]
        norms = self._over_pairs(self._map_norms, query, candidates)
        return tuple(n.reshape(*n.shape[:2], *grid) for n in norms)

    def _map_norms(
        self, weights: Arrays, u: Arrays, v: Arrays
    ) -> tuple[jax.Array, jax.Array]:
        """Norms of the conditional maps' features, [N], from least 0 to largest 1."""
        maps = self.pairs.conditional_maps(weights, u, v)
        norms = [jnp.linalg.norm(places, axis=-1) for places in maps]
        return tuple(
            (n - n.min()) / jnp.maximum(n.max() - n.min(), 1e-12) for n in norms
        )


class Method(method.Method):
    """CACE-Net and the rows of its ablation tables.

    Args:
      num_classes: training identities.
      image_size: height and width, multiples of 16 for align="semantic".
      **fields: of `Options`.
    """

    def __init__(
        self, num_classes: int, image_size: tuple[int, int] = (384, 128), **fields: Any
    ):
        self.options = options = Options(**fields)
        self.semantic = options.align == "semantic"
        if self.semantic:
            self.train_inputs = ("parts",)
        self.part_kind = options.part_kind
        self.module = Network(
            backbone=ResNet(
                blocks=tuple(options.blocks),
                width=options.width,
                last_stride=options.last_stride,
                non_local=options.non_local,
                dtype=options.dtype,
                remat=options.remat,
            ),
            num_classes=num_classes,
            pairs=PairGraph.of(options),
            options=options,
        )
        self.cell = 16 * options.last_stride
        if self.semantic and any(side % self.cell for side in image_size):
            raise UserError(
                f"align='semantic' needs images whose sides are multiples of "
                f"{self.cell}, not {image_size[0]} x {image_size[1]}"
            )

    def init(self, rng: jax.Array, batch: method.Batch) -> method.Variables:
        """Fresh variables; the pretrained ResNet is loaded over them."""
        images = jnp.zeros((1, *batch["image"].shape[1:]))
        parts = self.places(jnp.zeros(images.shape[:3], jnp.uint8))
        return self.module.init(rng, images, parts, train=False)

    def places(self, parts: jax.Array | None) -> jax.Array | None:
        """Places of each body part, bool [B, P, N], where the alignment reads them."""
        if not self.semantic:
            return None
        if parts is None:
            raise UserError(
                "align='semantic' needs part labels with the images: take a data set "
                "that has them, or another alignment"
            )
        stride = (self.cell, self.cell)
        groups = tuple(map(tuple, self.options.part_groups))
        return masks.semantics(parts, groups, patch_size=self.cell, stride=stride)

    def standardise(self, images: jax.Array) -> jax.Array:
        """The network's input, of uint8 images."""
        return standardise(images, tuple(self.options.mean), tuple(self.options.std))

    # 3.2 and 3.4.2. Losses.

    def objective(
        self,
        variables: method.Variables,
        batch: method.Batch,
        *,
        rng: jax.Array,
        epoch: jax.Array,
        stage: str,
    ) -> method.Outcome:
        """The sum of all losses; metrics are its terms and accuracies."""
        del epoch, stage
        options, labels = self.options, batch["label"]
        outputs, collections = self.module.apply(
            variables,
            self.standardise(batch["image"]),
            self.places(batch.get("parts")),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": rng},
        )
        losses = {
            "loss_id": cross_entropy(
                outputs["logits"], labels, smoothing=options.label_smoothing
            ),
            "loss_triplet": batch_hard_triplet(
                self._compared(outputs["feature"]), labels, margin=options.margin
            ),
            **self.pair_losses(outputs, labels),
        }
        metrics = {**losses, "accuracy": accuracy(outputs["logits"], labels)}
        return sum(losses.values()), metrics, collections

    def pair_losses(
        self, outputs: dict[str, jax.Array], labels: jax.Array
    ) -> dict[str, jax.Array]:
        """The losses of `Network.of_pairs`, by name."""
        options, losses = self.options, {}
        distances = outputs.get("pair_distance")
        if "pair_logits" in outputs:
            losses["loss_pair_id"] = options.mixup_weight * mixup_cross_entropy(
                outputs["pair_logits"], labels, alpha=options.alpha
            )  # Eq. 8
            distances = pair_distances(self._compared(outputs["pair_feature"]))
        if distances is not None:
            losses["loss_pair_triplet"] = pair_triplet(
                distances, labels, margin=options.margin
            )
        return losses

    def _compared(self, features: jax.Array) -> jax.Array:
        return normalise(features) if self.options.unit_triplet else features

    # 3.5. Inference.

    def embed(
        self,
        variables: method.Variables,
        images: jax.Array,
        camera: jax.Array | None = None,
        parts: jax.Array | None = None,
    ) -> method.Embedding:
        """`vector` [B, embed_width] of unit norm, the individual feature."""
        del camera, parts

        def feature(images: jax.Array) -> jax.Array:
            def test(network: Network, images: jax.Array) -> jax.Array:
                maps = network.maps(images, train=False)
                return network.individual(maps, train=False)

            images = self.standardise(images)
            return normalise(self.module.apply(variables, images, method=test))

        embedding = {"vector": feature(images)}
        if self.options.flip_test:
            return with_mirrored(embedding, {"vector": feature(mirror(images))})
        return embedding

    def distance(self, query: method.Embedding, gallery: method.Embedding) -> jax.Array:
        """Euclidean."""
        return euclidean(query["vector"], gallery["vector"])

    def pair_scorer(self, stage: str) -> method.PairScorer | None:
        """Conditional features of the nearest `top_k`; None without pairs or with 0."""
        del stage
        if self.options.align == "none" or not self.options.top_k:
            return None
        return Scorer(self)


class Scorer(method.PairScorer):
    """Sorts each query's nearest gallery images by conditional features (3.5)."""

    def __init__(self, owner: Method):
        self.top_k = owner.options.top_k
        self.inputs = ("parts",) if owner.semantic else ()
        self._owner, self._module = owner, owner.module

    def pair_maps(
        self,
        variables: method.Variables,
        images: jax.Array,
        camera: jax.Array | None = None,
        parts: jax.Array | None = None,
    ) -> Arrays:
        """What two images are compared by, in `map_dtype`: see `PairGraph.nodes`.

        For 384 x 128 pixels X is 24 x 8 x 2048; an individual graph needs only its
        feature.
        """
        del camera
        owner = self._owner
        maps = self._module.apply(
            variables,
            owner.standardise(images),
            owner.places(parts),
            method="pair_maps",
        )
        return packing.packed(maps, owner.options.map_dtype)

    def score_pairs(
        self, variables: method.Variables, query_maps: Arrays, candidate_maps: Arrays
    ) -> jax.Array:
        """Conditional distances [Q, K], smaller for more alike."""
        return self._module.apply(
            variables,
            self.unpacked(query_maps),
            self.unpacked(candidate_maps),
            method="pair_distance",
        )

    def unpacked(self, maps: Arrays) -> Arrays:
        """Stored maps in the network's dtypes, and what follows of them."""
        nodes = packing.unpacked(maps, self._module.backbone.dtype, wide=_WIDE)
        if "map" in nodes:
            nodes |= self._module.pairs.derived(nodes["map"])
        return nodes

    def fuse(
        self, distances: jax.Array, candidates: jax.Array, scores: jax.Array
    ) -> jax.Array:
        """Candidates in the order of their scores, before all others in theirs."""
        return sort_candidates(distances, candidates, scores)

    def pictures(
        self, variables: method.Variables, query_maps: Arrays, candidate_maps: Arrays
    ) -> dict[str, method.PairPicture]:
        """Figures 4 and 5: conditional maps, and the strongest correspondences."""
        graph = self._owner.options.graph
        if graph == "individual":
            return {}
        score = jax.jit(self.score_pairs)(variables, query_maps, candidate_maps)
        maps = self.unpacked(query_maps), self.unpacked(candidate_maps)

        def draw(name: str) -> tuple[jax.Array, ...]:
            apply = jax.jit(partial(self._module.apply, method=name))
            return apply(variables, *maps)

        lines = method.Correspondences(*draw("correspondences"), score)
        pictures: dict[str, method.PairPicture] = {"correspondences": lines}
        if graph != "none":
            norms = draw("conditional_norms")
            pictures["conditional"] = method.PairMaps(*norms, score)
        return pictures
