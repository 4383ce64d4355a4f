"""DROP: re-identification and human parsing on features of their own.

Shuguang Dou, Xiangyang Jiang, Yuanpeng Tu, Junyao Gao, Zefan Qu, Qingsong Zhao,
Cairong Zhao: "DROP: Decouple Re-Identification and Human Parsing with Task-specific
Features for Occluded Person Re-identification", 2023. The authors published no code;
what the text leaves open follows BPBreID (Somers et al., 2023), which it builds on.

Implemented: both branches (sections 3.2 and 3.3), the objective (3.4), Figures 3 and 5,
and every row of the ablations (4.3 and 8.1). What `:row=NAME` sets in `config.model`; a
field without a value depends on the labels or the backbone (`configs/drop.py`), and *
stands for anything:

  table4-baseline         decouple=False, position="none", triplet="part_average",
                          spatial_smoothing=0
  table4-decouple         position="none", triplet="part_average", spatial_smoothing=0
  table4-ppf              triplet="part_average", spatial_smoothing=0
  table4-pct              spatial_smoothing=0
  table4-ss               triplet="part_average"
  table4-all              the defaults
  table5-hct              triplet="hct", spatial_smoothing=0
  table5-part-average     triplet="part_average", spatial_smoothing=0
  table5-pct              spatial_smoothing=0
  table5-pcb-*            options, backbone="resnet50", regions="stripes",
                          embeddings=("parts",)
  table5-pcb-hct          triplet="hct"
  table5-pcb-part-*       triplet="part_average"
  table6-head             part_groups, part_names, embeddings=("head",)
  table6-torso            part_groups, part_names, embeddings=("torso",)
  table6-right-arm        part_groups, part_names, embeddings=("right arm",)
  table6-left-arm         part_groups, part_names, embeddings=("left arm",)
  table6-legs             part_groups, part_names, embeddings=("right leg", "left leg")
  table6-feet             part_groups, part_names,
                          embeddings=("right foot", "left foot")
  table6-g                embeddings=("global",)
  table6-f                embeddings=("foreground",)
  table6-p                embeddings=("parts",)
  table6-gf               embeddings=("global", "foreground")
  table6-fp               embeddings=("foreground", "parts")
  table6-gfp              embeddings=("global", "foreground", "parts")
  table7-resnet50         options, backbone="resnet50"
  table7-resnet50-ibn     options, backbone="resnet50_ibn_a"
  table7-hrnet            the defaults
  table8-*                part_groups, part_names
  table9-*                triplet="part_average", spatial_smoothing=0
  table9-none             position="none"
  table9-2d               position="2d"

Table 4's baseline is "HRNet-W32" in the text. It parses, too (section 4.3): it is taken
for the scheme of Figure 1 (a), both tasks on P_reid. Tables 5 and 9 repeat figures of
Table 4, where SS is off; those of Table 5 show that the rows without PCT have the
part-average loss. Table 6 is of testing alone. The code below is in the order of the
paper: options, 3.2, 3.3, the network, and the method with 3.4, the inference of 3.3 and
the pictures of 4.4.

Deviations from the text, and what it leaves open.

Section 3.2:

- Eq. 3 sums maps that are upsampled twofold, which their sizes do not allow, and ends
  at stage l - 1, while the text sums all four. Here each deeper map is upsampled to the
  next finer one and added to it, down to the finest; `upsampling="direct"` brings each
  to the finest at once. Interpolation is bilinear between the centres of pixels. A
  channel reduction is a 1x1 convolution to 128 channels, batch normalisation and ReLU.
- The four stages of HRNet are its classifier's widened streams (1920 channels in all);
  those of ResNet its four layers, with stride 1 in the last. As in section 4.3,
  ResNet's P_reid is layer4 alone, interpolated to the size of layer1.
- Positions are centres of rows (and columns), from 0 to 1. The two convolutions of the
  encoder are 1x1 and have as many channels as P_hp. Its last normalisation gives every
  channel the deviation 1 over the places of an image at the start, the scale of P_hp.
- f_hp is batch normalisation and a 1x1 convolution to K parts and the background, with
  a softmax. Gradients of the identity losses reach it through the pooling.

Section 3.3:

- WAMP (section 7) adds weighted average and weighted maximum, then comes the fully
  connected layer: to 512 channels, batch normalisation, ReLU, as BPBreID; parts share
  theirs. The global embedding has such a layer, too.
- The bank counts the current batch as one of its M. Rows that no batch has filled yet
  do not exist.
- Tested are the foreground (and global) embedding after BNNeck, the parts before it,
  each of unit length (BPBreID). A distance is the mean over what both images show, the
  foreground always included. Two images without anything in common (parts alone) are 2
  apart, the most that unit vectors can be; BPBreID puts them behind the farthest of the
  gallery at hand.

Section 3.4:

- L_reid sums the losses of the global and the foreground embedding and of the parts,
  concatenated; `identity="each"` is the mean over the parts, each with its BNNeck.
- Eqs 6 and 7 compare embeddings as they leave the layer after WAMP, not normalised; Avg
  is over parts, and the loss is the mean over anchors. All rows of the bank are
  anchors, as the text has it; two rows of earlier batches pass no gradient.
  `anchors="batch"` takes the current batch's only. Visibility plays no part.
- HCT (Table 5) is given by citation only; see `hard_center_triplet`.
- Eq. 8 is averaged over the labelled places: lambda = 0.4 means nothing beside a sum.
  Its B in q_k is the number of classes, and differences end at the border. Labels come
  as classes at the size of the image and are reduced to P_hp's by majority (BPBreID
  interpolates confidences).

Section 4.1:

- The backbone starts from ImageNet's weights, of which the text says nothing.
- Weight decay (5e-4), warm-up (from a hundredth of the rate, over 10 epochs), 16 x 4
  images in a batch and a tenth of the rate at each of the two epochs are BPBreID's; the
  numbers of random erasing are BoT's. A flipped image's left parts become right ones.
  Erased places are background. Half of Occluded-REID is a draw of our own.
- The groups of 3 to 8 parts are BPBreID's three_v, four_v, five_v, six_new, seven_new
  and eight (`data_pipelines/part_labels/groupings.py`).
- The batch is normalised as one; the paper's two GPUs are `bn_groups=2`.

Section 4.3:

- PCB* (Table 5), "our framework without parsing branch", has PCB's ResNet-50 and six
  stripes in place of the parts, and is tested by the stripes alone. The global and the
  foreground embedding, then one of the whole image, keep their identity losses.

Figure 3 is `probabilities_answers.png`; Figure 5's accuracies are the metrics
`parsing_accuracy` and `accuracy` (of the foreground embedding) of the training images,
which `benchmarks/curves.py` draws for runs of table4-baseline and table4-decouple.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.backbones.hrnet import HRNet
from reid_jax.backbones.options import check_options
from reid_jax.backbones.resnet import ResNet, conv
from reid_jax.errors import UserError, check_choices
from reid_jax.layers import gradients, masks, memory_bank, pooling
from reid_jax.layers.heads import BNNeck, PixelClassifier, Reduction, token_heads
from reid_jax.layers.norm import BatchNorm
from reid_jax.layers.pixels import standardise
from reid_jax.layers.routing import resized
from reid_jax.losses.identity import accuracy, cross_entropy
from reid_jax.losses.parsing import parsing_accuracy, parsing_loss, part_targets
from reid_jax.losses.part_triplet import hard_center_triplet, part_average_triplet
from reid_jax.models import method
from reid_jax.retrieval.distances import normalise
from reid_jax.retrieval.visible_parts import visible_euclidean

BACKBONES: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "hrnet_w32": (HRNet, {}),
    "resnet50": (ResNet, {}),
    "resnet50_ibn_a": (ResNet, {"ibn": True}),
}
"""Name: the backbone, and its fixed arguments."""

EIGHT_PARTS = (
    *("head", "torso", "left arm", "right arm"),
    *("left leg", "right leg", "left foot", "right foot"),
)
"""Names of the classes 1 to 8 of the library's own part labels."""

Streams = Sequence[jax.Array]
"""Feature maps of the four stages, the finest first."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Fields of `config.model`, in the order of the paper; defaults are its setting.

    Raises:
      UserError: for values and combinations that have no meaning.
    """

    # Parse features of its own (3.2), not those of the re-ID branch.
    decouple: bool = True
    # How these are upsampled (Eq. 3, see above), "cascade" or "direct"; their channels.
    upsampling: str = "cascade"
    parsing_width: int = 128
    # What the position encoder adds to them: "none", "1d" (the height) or "2d".
    position: str = "1d"
    # Part classes of each of the K parts, of which the first that names a class has it;
    # what the parts are called; the kind of labels that the classes are numbered in.
    part_groups: Sequence[Sequence[int]] = tuple((c,) for c in range(1, 9))
    part_names: Sequence[str] = EIGHT_PARTS
    part_kind: str = "parts"

    # What parts are pooled from: the "parsing", or so many "stripes" of the map, which
    # is PCB with the rest of this framework.
    regions: str = "parsing"
    stripes: int = 6
    # Channels of every embedding.
    width: int = 512
    # What images are compared by: any of "global", "foreground", "parts", and the names
    # of single parts.
    embeddings: Sequence[str] = ("foreground", "parts")
    # A part is visible where its greatest probability is above this.
    visible_above: float = 0.4

    # Identity loss of the parts: all "joint", or "each" by itself.
    identity: str = "joint"
    # "pct", "part_average" or "hct".
    triplet: str = "pct"
    margin: float = 0.3
    # M, the batches that PCT compares, the current one included; its anchors: "all"
    # rows of the bank, or the current "batch".
    bank_batches: int = 4
    anchors: str = "all"
    # Of Eq. 5 (lambda) and Eq. 8 (gamma).
    parsing_weight: float = 0.4
    spatial_smoothing: float = 0.5
    # Of the identity losses and the parsing loss.
    label_smoothing: float = 0.1

    # One of `BACKBONES`.
    backbone: str = "hrnet_w32"
    # Batch statistics per group of rows, as on that many GPUs.
    bn_groups: int = 1
    # Of the channels, in units of the full range.
    mean: Sequence[float] = (0.485, 0.456, 0.406)
    std: Sequence[float] = (0.229, 0.224, 0.225)
    # "float32" or "bfloat16", of the convolutions and their maps.
    dtype: str = "float32"
    # Whether blocks of the backbone are computed again for their gradients: less
    # memory on accelerators, about a third more arithmetic.
    remat: bool = False

    def __post_init__(self) -> None:
        check_choices(
            backbone=(self.backbone, tuple(BACKBONES)),
            upsampling=(self.upsampling, ("cascade", "direct")),
            position=(self.position, ("none", "1d", "2d")),
            regions=(self.regions, ("parsing", "stripes")),
            identity=(self.identity, ("joint", "each")),
            triplet=(self.triplet, ("pct", "part_average", "hct")),
            anchors=(self.anchors, ("all", "batch")),
        )
        if self.position != "none" and not self.decouple:
            raise UserError(
                f"position={self.position!r} belongs to the parsing branch, which "
                "decouple=False does not have: use position='none'"
            )
        if len(self.part_names) != len(self.part_groups):
            raise UserError(
                f"{len(self.part_groups)} part_groups have "
                f"{len(self.part_names)} part_names: set both together"
            )
        for name in ("bank_batches", "stripes"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: at least 1")
        if not self.parts:
            raise UserError("part_groups=(): name at least one part")
        self._check_embeddings()

    def _check_embeddings(self) -> None:
        known = ("parts", "global", "foreground", *self.parts)
        for name in self.embeddings:
            if name not in known:
                raise UserError(
                    f"embeddings: there is no {name!r}; known: {', '.join(known)}"
                )
        if not self.embeddings:
            raise UserError(f"embeddings=() names none of {', '.join(known)}")
        if len({*self.tokens}) < len(self.tokens):
            raise UserError(
                f"embeddings={tuple(self.embeddings)} names one twice; 'parts' are all "
                f"of {', '.join(self.parts)}"
            )

    @property
    def parts(self) -> tuple[str, ...]:
        """What the K parts are called."""
        if self.regions == "parsing":
            return tuple(self.part_names)
        return tuple(f"stripe {number}" for number in range(1, self.stripes + 1))

    @property
    def tokens(self) -> np.ndarray:
        """Which of global, foreground and the parts `embeddings` names, int [T]."""
        known = ("global", "foreground", *self.parts)
        every = range(2, len(known))
        named = [
            every if name == "parts" else [known.index(name)]
            for name in self.embeddings
        ]
        return np.array([token for tokens in named for token in tokens], int)


# 3.2. Human position-aware parsing branch.


class DetailPreservingUpsampling(nn.Module):
    """Eq. 3: low-channel features at the finest stage's resolution.

    Attributes:
      width: channels of the result.
      cascade: each stage is upsampled to the next finer one, not to the finest.
      bn_groups, dtype: see `Bottleneck`.
    """

    width: int
    cascade: bool
    bn_groups: int
    dtype: Any

    @nn.compact
    def __call__(self, stages: Streams, *, train: bool) -> jax.Array:
        """Maps the four stages to P_hp [B, h, w, width]."""
        reduced = []
        for number, features in enumerate(stages, start=1):
            layer = conv(self.width, 1, dtype=self.dtype, name=f"reduce{number}")
            norm = BatchNorm(self.bn_groups, name=f"reduce{number}_bn")
            reduced.append(jax.nn.relu(norm(layer(features), train=train)))
        size = reduced[0].shape[1:3]
        joined = reduced[-1]
        for finer in reduced[-2::-1]:
            target = finer.shape[1:3] if self.cascade else size
            joined = resized(joined, target) + resized(finer, target)
        return joined


class PositionEncoder(nn.Module):
    """Pedestrian position encoder: Conv-BN-ReLU-Conv-BN on coordinates.

    Attributes:
      width: channels of the embedding.
      axes: 1 for the height alone, 2 for height and width.
    """

    width: int
    axes: int

    @nn.compact
    def __call__(self, size: tuple[int, int], *, train: bool) -> jax.Array:
        """The embedding of every place, float32 [1, h, w, width]."""
        centres = [(jnp.arange(length) + 0.5) / length for length in size]
        grid = jnp.stack(jnp.meshgrid(*centres, indexing="ij"), axis=-1)
        # The same for every image: one is enough, also for the batch statistics.
        features = grid[None, ..., : self.axes]
        for number in (1, 2):
            layer = conv(self.width, 1, dtype=jnp.float32, name=f"conv{number}")
            features = BatchNorm(name=f"bn{number}")(layer(features), train=train)
            features = jax.nn.relu(features) if number == 1 else features
        return features


# 3.3. Parsing guided ReID branch.


def pool(features: jax.Array, weights: jax.Array) -> jax.Array:
    """WAMP without its layer: [B, h, w, C], [B, h, w, K] to float32 [B, K, C]."""
    average = pooling.weighted_average(features, weights)
    return average + pooling.weighted_max(features, weights)


class Network(nn.Module):
    """Backbone, parsing branch and re-ID branch.

    Attributes:
      backbone: HRNet or ResNet.
      num_classes: training identities.
    """

    backbone: nn.Module
    options: Options
    num_classes: int

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[str, Any]:
        """Runs standardised images [B, H, W, 3].

        Returns:
          heads: of "global", "foreground" and "parts", see `token_heads`, with T = 1,
            but T = K for the parts where each has its own; parts [B, K, D], before
            their heads; maps [B, h, w, 1 + K], the weights of foreground and parts;
            parsing [B, h, w, K + 1], the logits, the background first (None with
            stripes). All float32.
        """
        stages, features = self._features(images, train)
        parsing, maps = self._parts(stages, features, train)
        foreground = maps.max(-1, keepdims=True)
        maps = jnp.concatenate([foreground, maps], axis=-1)
        tokens = self._embeddings(features, maps, train)
        parts = tokens["parts"]
        if self.options.identity == "joint":
            tokens["parts"] = parts.reshape(parts.shape[0], 1, -1)
        heads = {}
        for name, values in tokens.items():
            head = BNNeck(self.num_classes, self.options.bn_groups, name=f"{name}_head")
            heads[name] = token_heads(head, values, train=train)
        return {"heads": heads, "parts": parts, "maps": maps, "parsing": parsing}

    def _features(self, images: jax.Array, train: bool) -> tuple[Streams, jax.Array]:
        """P_1 to P_4 of the backbone, and P_reid [B, h, w, C] at the size of P_1."""
        outputs = self.backbone(images, train=train)
        if isinstance(self.backbone, HRNet):
            stages = joined = outputs["incre"]
        else:
            stages = [outputs[f"layer{number}"] for number in (1, 2, 3, 4)]
            joined = stages[-1:]
        size = stages[0].shape[1:3]
        return stages, jnp.concatenate([resized(m, size) for m in joined], axis=-1)

    def _parts(
        self, stages: Streams, features: jax.Array, train: bool
    ) -> tuple[jax.Array | None, jax.Array]:
        """Logits of the parsing, if there is one, and weights [B, h, w, K]."""
        options, count = self.options, len(self.options.parts)
        batch, *size, _ = features.shape
        if options.regions == "stripes":
            stripes = masks.stripes(tuple(size), (count,)).T
            maps = stripes.reshape(1, *size, count).astype(np.float32)
            return None, jnp.broadcast_to(maps, (batch, *size, count))
        if options.decouple:
            features = self._parsing_features(stages, train)
        classifier = PixelClassifier(count + 1, options.bn_groups, name="parsing")
        logits = classifier(features, train=train)
        return logits, jax.nn.softmax(logits)[..., 1:]

    def _parsing_features(self, stages: Streams, train: bool) -> jax.Array:
        """The argument of f_hp in Eq. 4."""
        options = self.options
        features = DetailPreservingUpsampling(
            options.parsing_width,
            options.upsampling == "cascade",
            options.bn_groups,
            stages[0].dtype,
            name="upsampling",
        )(stages, train=train)
        if options.position != "none":
            axes = int(options.position[0])
            encoder = PositionEncoder(options.parsing_width, axes, name="position")
            embedding = encoder(features.shape[1:3], train=train)
            embedding = gradients.cast(embedding, features.dtype)
            features = gradients.plus(features, embedding)
        return features

    def _embeddings(
        self, features: jax.Array, maps: jax.Array, train: bool
    ) -> dict[str, jax.Array]:
        """Global, foreground [B, 1, D] and parts [B, K, D], before their heads."""
        pooled = pool(features, maps)
        tokens = {
            "global": features.astype(jnp.float32).mean((1, 2))[:, None],
            "foreground": pooled[:, :1],
            "parts": pooled[:, 1:],
        }
        width, groups = self.options.width, self.options.bn_groups
        return {
            name: Reduction(width, groups, name=f"{name}_reduction")(
                values, train=train
            )
            for name, values in tokens.items()
        }


class Method(method.Method):
    """DROP and the rows of its ablation tables.

    Args:
      num_classes: training identities.
      image_size: height and width.
      options: arguments of the backbone's module.
      **fields: of `Options`.
    """

    def __init__(
        self,
        num_classes: int,
        image_size: tuple[int, int] = (256, 128),
        *,
        options: Mapping[str, Any] | None = None,
        **fields: Any,
    ):
        del image_size
        self.options = chosen = Options(**fields)
        trunk, fixed = BACKBONES[chosen.backbone]
        hint = f"{chosen.backbone} needs its own, as row=table7-resnet50 has a ResNet's"
        check_options(trunk, options or {}, hint=hint)
        given = {**fixed, **(options or {})}
        given |= {n: getattr(chosen, n) for n in ("bn_groups", "dtype", "remat")}
        self.module = Network(trunk(**given), chosen, num_classes)
        self.standardise = partial(
            standardise, mean=tuple(chosen.mean), std=tuple(chosen.std)
        )
        self.part_kind = chosen.part_kind
        if chosen.regions == "parsing":
            self.train_inputs = ("parts",)
        titles = ("", "", *chosen.parts)
        self.visibility_titles = tuple(titles[token] for token in chosen.tokens)
        if chosen.triplet == "pct":
            self.row_axes = {"bank": 1}

    def init(self, rng: jax.Array, batch: method.Batch) -> method.Variables:
        """Fresh variables, and an empty bank for batches of this size."""
        size, *shape = batch["image"].shape
        variables = self.module.init(rng, jnp.zeros((1, *shape)), train=False)
        if self.options.triplet != "pct":
            return variables
        bank = memory_bank.empty(
            batches=self.options.bank_batches,
            batch_size=size,
            parts=len(self.options.parts),
            width=self.options.width,
        )
        return {**variables, "bank": bank}

    # 3.4. Optimization.

    def objective(
        self,
        variables: method.Variables,
        batch: method.Batch,
        *,
        rng: jax.Array,
        epoch: jax.Array,
        stage: str,
    ) -> method.Outcome:
        """Eq. 5; metrics are its terms, and the accuracies of Figure 5."""
        del rng, epoch, stage
        labels = batch["label"]
        outputs, collections = self.module.apply(
            _network(variables),
            self.standardise(batch["image"]),
            train=True,
            mutable=["batch_stats"],
        )
        logits = {name: head["logits"] for name, head in outputs["heads"].items()}
        identity = sum(self._identity_loss(x, labels) for x in logits.values())
        triplet, memory = self._triplet_loss(variables, outputs["parts"], labels)
        metrics = {
            "loss_id": identity,
            "loss_triplet": triplet,
            "accuracy": accuracy(logits["foreground"][:, 0], labels),
        }
        loss = identity + triplet
        if self.options.regions == "parsing":
            metrics |= self._parsing_metrics(outputs["parsing"], batch["parts"])
            loss += self.options.parsing_weight * metrics["loss_parsing"]
        return loss, metrics, {**collections, **memory}

    def _identity_loss(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """Mean over the T tokens of one kind, [B, T, num_classes]."""
        loss = partial(cross_entropy, smoothing=self.options.label_smoothing)
        return jax.vmap(loss, in_axes=(1, None))(logits, labels).mean()

    def _triplet_loss(
        self, variables: method.Variables, parts: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, method.Variables]:
        """L_pct or a rival of Table 5, and the bank after the step, if there is one."""
        triplet, margin = self.options.triplet, self.options.margin
        if triplet == "hct":
            return hard_center_triplet(parts, labels, margin=margin), {}
        if triplet == "part_average":
            return part_average_triplet(parts, labels, margin=margin), {}
        rows, bank = memory_bank.remember(variables["bank"], parts, labels)
        anchors = rows.newest if self.options.anchors == "batch" else None
        loss = part_average_triplet(  # Eq. 7
            rows.features, rows.labels, margin=margin, anchors=anchors
        )
        return loss, {"bank": bank}

    def _parsing_metrics(
        self, logits: jax.Array, parts: jax.Array
    ) -> dict[str, jax.Array]:
        """L_hp as `loss_parsing`, and what share of the labels is found."""
        size = logits.shape[1:3]
        targets = part_targets(parts, self.options.part_groups, size)
        loss = parsing_loss(  # Eq. 8
            logits,
            targets,
            smoothing=self.options.label_smoothing,
            spatial=self.options.spatial_smoothing,
        )
        return {"loss_parsing": loss, **parsing_accuracy(logits, targets)}

    # 3.3, Inference.

    def embed(
        self,
        variables: method.Variables,
        images: jax.Array,
        camera: jax.Array | None = None,
        parts: jax.Array | None = None,
    ) -> method.Embedding:
        """`parts` float32 [B, T, D] of unit norm and their `visibility` bool [B, T].

        T counts what `embeddings` names; global and foreground are always visible.
        """
        del camera, parts
        outputs = self._test(variables, images)
        whole = [outputs["heads"][name]["after"] for name in ("global", "foreground")]
        tokens = jnp.concatenate([*whole, outputs["parts"]], axis=1)
        greatest = outputs["maps"][..., 1:].max((1, 2))
        seen = greatest > self.options.visible_above
        always = jnp.ones((images.shape[0], 2), bool)
        visible = jnp.concatenate([always, seen], axis=1)
        chosen = self.options.tokens
        return {
            "parts": normalise(tokens[:, chosen]),
            "visibility": visible[:, chosen],
        }

    def distance(self, query: method.Embedding, gallery: method.Embedding) -> jax.Array:
        """Mean Euclidean distance over what both images show."""
        return visible_euclidean(
            query["parts"],
            query["visibility"],
            gallery["parts"],
            gallery["visibility"],
        )

    def _test(self, variables: method.Variables, images: jax.Array) -> dict[str, Any]:
        images = self.standardise(images)
        return self.module.apply(_network(variables), images, train=False)

    # 4.4, Figure 3.

    def pictures(
        self, variables: method.Variables, batch: method.Batch
    ) -> dict[str, method.Picture]:
        """The predicted parts, and how likely the network thinks each place is one."""
        if self.options.regions == "stripes":
            return {}
        outputs = jax.jit(self._test)(variables, batch["image"])
        parts = jnp.argmax(outputs["parsing"], axis=-1) - 1  # -1 is the background
        names = self.options.parts
        return {
            "parts": method.Segments(parts[:, None], ("parts",), names),
            "probabilities": method.Maps(
                outputs["maps"].transpose(0, 3, 1, 2), ("foreground", *names)
            ),
        }


def _network(variables: method.Variables) -> method.Variables:
    """The variables without the bank."""
    return {name: variables[name] for name in ("params", "batch_stats")}
