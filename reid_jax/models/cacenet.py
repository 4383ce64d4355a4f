"""CACE-Net: images compared in pairs, through a graph of corresponding places.

Fufu Yu, Xinyang Jiang, Yifei Gong, Shizhen Zhao, Xiaowei Guo, Wei-Shi Zheng, Feng
Zheng, Xing Sun: "Devil's in the Details: Aligning Visual Clues for Conditional
Embedding in Person Re-Identification", 2020 (arXiv 2009.05250).

Implemented: the three stages of section 3 with inference by re-ranking (3.5), and every
row of Tables 1 to 3. The graph of a pair (Eqs 2 to 7) is in `layers/pair_graph.py`, on
top of `layers/graph.py`; the losses of pairs (Eq. 8) are in `losses/pairs.py`.

  row                               fields
  Table 1, individual               graph="none", align="none"
    + visual clue alignment         graph="none"
    + individual-GCN                graph="individual"
    + pairwise-GCN (normal)         graph="normal"
    + pairwise-GCN (discrepancy)    the defaults
  Table 2, no alignment             graph="none", align="none"
    part, top-K similarity          align="part", "similarity"
    fully connected, semantic       align="full", "semantic"
    correspondence attention        the defaults
  Table 3, cross entropy            alpha=1.0
    mix-up                          alpha=0.95, 0.9 (the default), 0.8, 0.7, 0.6

Deviations from the text, and what it leaves open:

- Eq. 1 lacks the sign of the logarithm and divides by the number of classes: it is
  the usual cross-entropy here. Losses are means, where Eq. 8 writes a sum, and have
  weight 1 each.
- Eqs 5 to 7 write D^-1/2 A D^1/2, which is not symmetric; the Laplacian they name has
  D^-1/2 on both sides, and so has the code.
- S (Eqs 2 and 3) compares L2-normalised features, and W and W' start at 1, so that it
  begins as a cosine. Raw inner products of 2048 channels would make degrees enormous.
  The nodes of Eq. 7 are the features as they are.
- A place is its own neighbour, as Eq. 2 has it. A degree below 1e-3 counts as 1.
- theta of Eq. 7 is a 1 x 1 map without bias, activation or shortcut. The average of
  (L X theta) over places is then (column means of L) X theta: it is computed so, and
  conditional maps exist in pictures only.
- By the same algebra "part" and "full" leave the difference of both images' mean
  features, and half of it: after batch normalisation the two rows are one system, where
  Table 2 has 78.39 and 80.19 mAP. Maximum pooling (below) tells them apart.
- The encoder is average pooling, a 1 x 1 convolution to 768 and batch normalisation;
  the conditional features have one of their own. Triplet loss, classifier and test take
  its output; margin 0.3, features not normalised, no label smoothing.
- The conditional triplet loss takes |f(u|v) - f(v|u)| as the distance of a pair.
- Top-K similarity: joined are each place and the most similar one of the other image
  (section 4.3.2), from either side. "part" and "similarity" join no places of one
  image; "semantic" joins all places that share a body part, of one image and of two.
- Visual clue alignment without a graph: similarity is the mean cosine of joined places,
  weighted by A; it learns by the triplet loss of 1 - similarity.
- SGD has the momentum of 0.9 of the authors' code; the schedule counts steps.
- Individual-GCN: f(u|v) is the same for every v; Eq. 8 stands as it is.
- K of the re-ranking is not given: 100; 0 leaves it away. The nearest K are sorted by
  the conditional distance, the others stay behind them in their order. That distance
  is 1 - cos(f(u|v), f(v|u)); `pair_metric="euclidean"` is the one that training
  compares. In discrepancies the two features nearly oppose each other, because what
  u has and v has not enters them with opposite signs.

The authors' published code differs, and evaluates no conditional features at all. Its
design is in switches, all set by `configs/cacenet.py:mode=code`: non-local blocks
(`non_local`); A from the cosines of one shared 128-channel embedding without the
diagonal, D^-1/2 without gradient (`adjacency="embedded"`); X + expand(L project(X))
in place of L X theta (`update="residual"`); average and maximum pooling (`pool`), one
encoder for all features (`shared_encoder`), ReLU and dropout before the classifiers
(`dropout`), triplet losses of unit features (`unit_triplet`) with margin 0.5, label
smoothing 0.1 for individual features, and test features averaged over the image and
its mirror image (`flip_test`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.backbones.resnet import ResNet
from reid_jax.errors import UserError, check_choices
from reid_jax.layers import masks
from reid_jax.layers.all_pairs import by_images, by_offset
from reid_jax.layers.graph import inverse_norms
from reid_jax.layers.norm import BatchNorm
from reid_jax.layers.pair_graph import (
    FAN_OUT,
    Arrays,
    PairGraph,
    mean,
    mean_and_maximum,
    strongest,
)
from reid_jax.layers.pixels import standardise
from reid_jax.losses.identity import accuracy, cross_entropy
from reid_jax.losses.pairs import mixup_cross_entropy, pair_distances, pair_triplet
from reid_jax.losses.triplet import batch_hard_triplet
from reid_jax.models import method
from reid_jax.retrieval.distances import euclidean, normalise

BODY_PARTS = ((1,), (2,), (3, 4), (5, 6), (7, 8))
"""Part classes of the head, torso, arms, legs and feet."""

PICTURED_CORRESPONDENCES = 10

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


class Classifier(nn.Module):
    """Logits of features; with dropout, after a ReLU and it.

    Attributes:
      num_classes: training identities.
      dropout: share of the channels that are dropped.
    """

    num_classes: int
    dropout: float

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool) -> jax.Array:
        """[..., width] to [..., num_classes]."""
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


class Network(nn.Module):
    """The backbone, the graph of pairs, and the encoders of both features.

    Attributes:
      backbone: ends with layer4.
      num_classes: training identities.
      pairs: the graph of a pair.
      embed_width, graph_width, shared_encoder, dropout, pair_block, pair_metric: as of
        `Method`.
    """

    backbone: ResNet
    num_classes: int
    pairs: PairGraph
    embed_width: int
    graph_width: int
    shared_encoder: bool
    dropout: float
    pair_block: int
    pair_metric: str

    def setup(self) -> None:
        """Modules, and the graph's weights as plain arrays for `jax.vmap`."""
        self.encoder = Encoder(self.embed_width)
        self.classifier = Classifier(self.num_classes, self.dropout)
        channels = 32 * self.backbone.width
        self.weights = {
            name: self.param(name, *how)
            for name, how in self.pairs.shapes(channels, self.graph_width).items()
        }
        if self.pairs.graph != "none":
            if not self.shared_encoder:
                self.own_pair_encoder = Encoder(self.embed_width)
            self.pair_classifier = Classifier(self.num_classes, self.dropout)

    @property
    def pair_encoder(self) -> Encoder:
        """The encoder of conditional features."""
        return self.encoder if self.shared_encoder else self.own_pair_encoder

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
        nodes = self.nodes(maps, parts)
        if self.pairs.graph == "none":
            alignment = partial(self.pairs.alignment, self.weights)
            gaps = by_images(*by_offset(alignment, nodes, block=self.pair_block))
            return {**outputs, "pair_distance": gaps}
        reduced = self.all_reduced(nodes)
        paired = self.pair_encoder.normalised(reduced, train=train)
        logits = self.pair_classifier(paired, train=train)
        return {**outputs, "pair_feature": paired, "pair_logits": logits}

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

        The pairs' pooled vectors are reduced while they still lie as they were
        computed, split over the devices.
        """
        pooled = partial(self.pairs.pooled, self.weights)
        if self.pairs.graph == "individual":
            alone, _ = jax.vmap(pooled)(nodes, nodes)
            reduced = self.pair_encoder.reduced(alone)
            return jnp.broadcast_to(reduced[:, None], (len(alone), *reduced.shape))
        found = by_offset(pooled, nodes, block=self.pair_block)
        return by_images(*map(self.pair_encoder.reduced, found))

    # 3.5. Inference on pairs.

    def pair_maps(self, images: jax.Array, parts: jax.Array | None) -> Arrays:
        """What two images are compared by, with leading axis B.

        The nodes but for their norms; of an individual graph its feature, [B, E].
        """
        nodes = self.nodes(self.maps(images, train=False), parts)
        if self.pairs.graph == "individual":
            alone, _ = jax.vmap(partial(self.pairs.pooled, self.weights))(nodes, nodes)
            return {"feature": self.pair_encoder(alone, train=False)}
        del nodes["norms"]  # of little use in float16, where 1 / 1e-5 is infinite
        return nodes

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
        if self.pair_metric == "euclidean":
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
      graph: "discrepancy" (Eq. 7) or "normal" (Eq. 6) convolution over the graph of a
        pair, "individual" (Eq. 7 over each image's own graph), or "none".
      align: what joins places: "correspondence" attention, "part" (the same place),
        "similarity" (the most similar place), "full" (all), "semantic" (body parts)
        or "none".
      alpha: weight of an image's own identity in the mix-up loss, Eq. 8.
      top_k: gallery images per query that conditional features re-rank; 0 for none.
      pair_metric: "cosine" or "euclidean" distance of two conditional features.
      map_dtype: "float32", "float16" or "bfloat16", of the maps that are stored for
        re-ranking.
      blocks, width, last_stride, non_local: of the ResNet.
      embed_width: channels of individual and conditional features.
      graph_width: channels of the authors' embedding and projection of places.
      adjacency: "diagonal" (Eqs 2 and 3) or "embedded", for align="correspondence".
      update: "linear" (theta of Eq. 7) or "residual".
      pool: "avg" or "avg_max".
      shared_encoder: individual and conditional features have one encoder.
      dropout: before the classifiers, after a ReLU; 0 leaves both away.
      label_smoothing: for individual features.
      margin: of both triplet losses.
      unit_triplet: scale features to unit length for the triplet losses.
      flip_test: average the test feature over the image and its mirror image.
      pair_block: training compares every image with this many others at a time.
      part_groups: part classes of each body part, for align="semantic".
      part_kind: the kind of labels that these numbers are of: "parts", "pifpaf" or
        "hpnet".
      mean, std: of the channels, in units of the full range.
      dtype: "float32" or "bfloat16", of convolutions and maps.
      remat: compute the ResNet's blocks again for their gradients.
    """

    def __init__(
        self,
        num_classes: int,
        image_size: tuple[int, int] = (384, 128),
        *,
        graph: str = "discrepancy",
        align: str = "correspondence",
        alpha: float = 0.9,
        top_k: int = 100,
        pair_metric: str = "cosine",
        map_dtype: str = "float16",
        blocks: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        last_stride: int = 1,
        non_local: bool = False,
        embed_width: int = 768,
        graph_width: int = 128,
        adjacency: str = "diagonal",
        update: str = "linear",
        pool: str = "avg",
        shared_encoder: bool = False,
        dropout: float = 0.0,
        label_smoothing: float = 0.0,
        margin: float = 0.3,
        unit_triplet: bool = False,
        flip_test: bool = False,
        pair_block: int = 1,
        part_groups: Sequence[Sequence[int]] = BODY_PARTS,
        part_kind: str = "parts",
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        dtype: str = "float32",
        remat: bool = False,
    ):
        _check_names(graph, align, adjacency, update, pool, pair_metric, map_dtype)
        _check_numbers(blocks, top_k, pair_block, alpha)
        self.semantic = align == "semantic"
        if self.semantic:
            self.train_inputs = ("parts",)
        self.part_groups = tuple(map(tuple, part_groups))
        self.part_kind = part_kind
        self.module = Network(
            backbone=ResNet(
                blocks=tuple(blocks),
                width=width,
                last_stride=last_stride,
                non_local=non_local,
                dtype=dtype,
                remat=remat,
            ),
            num_classes=num_classes,
            pairs=PairGraph(graph, align, adjacency, update, pool),
            embed_width=embed_width,
            graph_width=graph_width,
            shared_encoder=shared_encoder,
            dropout=dropout,
            pair_block=pair_block,
            pair_metric=pair_metric,
        )
        self.cell = 16 * last_stride
        if self.semantic and any(side % self.cell for side in image_size):
            raise UserError(
                f"align='semantic' needs images whose sides are multiples of "
                f"{self.cell}, not {image_size[0]} x {image_size[1]}"
            )
        self.standardise = partial(standardise, mean=tuple(mean), std=tuple(std))
        self.alpha = alpha
        self.top_k = top_k
        self.map_dtype = jnp.dtype(map_dtype)
        self.label_smoothing = label_smoothing
        self.margin = margin
        self.unit_triplet = unit_triplet
        self.flip_test = flip_test

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
        return masks.semantics(
            parts, self.part_groups, patch_size=self.cell, stride=stride
        )

    # 3.2 and 3.4.2. Losses.

    def objective(
        self,
        variables: method.Variables,
        batch: method.Batch,
        *,
        rng: jax.Array,
        epoch: jax.Array,
        stage: str,
    ) -> tuple[jax.Array, dict[str, jax.Array], method.Variables]:
        """The sum of all losses; metrics are its terms and accuracies."""
        del epoch, stage
        labels = batch["label"]
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
                outputs["logits"], labels, smoothing=self.label_smoothing
            ),
            "loss_triplet": batch_hard_triplet(
                self._compared(outputs["feature"]), labels, margin=self.margin
            ),
            **self._pair_losses(outputs, labels),
        }
        metrics = {**losses, "accuracy": accuracy(outputs["logits"], labels)}
        return sum(losses.values()), metrics, collections

    def _pair_losses(
        self, outputs: dict[str, jax.Array], labels: jax.Array
    ) -> dict[str, jax.Array]:
        losses = {}
        distances = outputs.get("pair_distance")
        if "pair_logits" in outputs:
            losses["loss_pair_id"] = mixup_cross_entropy(  # Eq. 8
                outputs["pair_logits"], labels, alpha=self.alpha
            )
            distances = pair_distances(self._compared(outputs["pair_feature"]))
        if distances is not None:
            losses["loss_pair_triplet"] = pair_triplet(
                distances, labels, margin=self.margin
            )
        return losses

    def _compared(self, features: jax.Array) -> jax.Array:
        return normalise(features) if self.unit_triplet else features

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

        vector = feature(images)
        if self.flip_test:
            vector = normalise(vector + feature(images[:, :, ::-1]))
        return {"vector": vector}

    def distance(self, query: method.Embedding, gallery: method.Embedding) -> jax.Array:
        """Euclidean."""
        return euclidean(query["vector"], gallery["vector"])

    def pair_scorer(self, stage: str) -> method.PairScorer | None:
        """Conditional features of the nearest `top_k`; None without pairs or with 0."""
        del stage
        if self.module.pairs.align == "none" or not self.top_k:
            return None
        return Scorer(self)


class Scorer(method.PairScorer):
    """Sorts each query's nearest gallery images by conditional features (3.5)."""

    def __init__(self, owner: Method):
        self.top_k = owner.top_k
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
        return jax.tree.map(lambda x: x.astype(owner.map_dtype), maps)

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
        """Stored maps in the dtypes that the network computes in, with their norms."""
        dtype = jnp.dtype(self._module.backbone.dtype)
        nodes = {
            name: jnp.asarray(x).astype(jnp.float32 if name in _WIDE else dtype)
            for name, x in maps.items()
        }
        if "map" in nodes:
            *images, height, width = nodes["map"].shape[:-1]
            norms = inverse_norms(nodes["map"])
            nodes["norms"] = norms.reshape(*images, height * width)
        return nodes

    def fuse(
        self, distances: jax.Array, candidates: jax.Array, scores: jax.Array
    ) -> jax.Array:
        """Candidates in the order of their scores, before all others in theirs.

        A candidate's key is its place among the candidates, minus their number; equal
        scores have equal keys. The distances of the others, not negative, stay.
        """
        smaller = (scores[:, None, :] < scores[:, :, None]).sum(-1)
        keys = (smaller - scores.shape[1]).astype(distances.dtype)
        keys = jnp.where(jnp.isnan(scores), jnp.nan, keys)
        rows = jnp.arange(distances.shape[0])[:, None]
        return distances.at[rows, candidates].set(keys)

    def pictures(
        self, variables: method.Variables, query_maps: Arrays, candidate_maps: Arrays
    ) -> dict[str, method.PairPicture]:
        """Figures 4 and 5: conditional maps, and the strongest correspondences."""
        pairs = self._module.pairs
        maps = self.unpacked(query_maps), self.unpacked(candidate_maps)

        def draw(name: str) -> tuple[jax.Array, ...]:
            apply = jax.jit(partial(self._module.apply, method=name))
            return apply(variables, *maps)

        pictures: dict[str, method.PairPicture] = {}
        if pairs.graph != "individual":
            found = draw("correspondences")
            pictures["correspondences"] = method.Correspondences(*found)
        if pairs.graph in ("discrepancy", "normal"):
            norms = draw("conditional_norms")
            pictures["conditional"] = method.PairMaps(*norms)
        return pictures


_WIDE = ("own", "feature")
"""Of what is stored of an image, that which is float32 whatever the maps are."""

_NAMES = {
    "graph": ("discrepancy", "normal", "individual", "none"),
    "align": ("correspondence", "part", "similarity", "full", "semantic", "none"),
    "adjacency": ("diagonal", "embedded"),
    "update": ("linear", "residual"),
    "pool": ("avg", "avg_max"),
    "pair_metric": ("cosine", "euclidean"),
    "map_dtype": ("float32", "float16", "bfloat16"),
}


def _check_names(*values: str) -> None:
    """Refuses values and combinations that have no meaning; values as `_NAMES`."""
    fields = zip(_NAMES.items(), values, strict=True)
    check_choices(**{name: (value, known) for (name, known), value in fields})
    graph, align = values[:2]
    if align == "none" and graph != "none":
        raise UserError(f"graph={graph!r} needs an alignment: align is 'none'")
    if graph == "individual" and align in ("part", "similarity"):
        raise UserError(
            f"align={align!r} joins no places of one image, so graph='individual' "
            "has nothing to work on: take align='correspondence'"
        )


def _check_numbers(
    blocks: Sequence[int], top_k: int, pair_block: int, alpha: float
) -> None:
    if len(blocks) != 4:
        raise UserError(f"blocks={tuple(blocks)} must have four numbers")
    if top_k < 0:
        raise UserError(f"top_k={top_k} must be at least 0")
    if pair_block < 1:
        raise UserError(f"pair_block={pair_block} must be at least 1")
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha={alpha} must be between 0 and 1")
