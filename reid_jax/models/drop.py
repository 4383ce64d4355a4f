"""DROP: re-identification and human parsing on features of their own.

Shuguang Dou, Xiangyang Jiang, Yuanpeng Tu, Junyao Gao, Zefan Qu, Qingsong Zhao,
Cairong Zhao: "DROP: Decouple Re-Identification and Human Parsing with Task-specific
Features for Occluded Person Re-identification", 2023. The authors published no code;
what the text leaves open follows BPBreID (Somers et al., 2023), which it builds on.

Implemented: both branches (sections 3.2 and 3.3), the objective (3.4), and every row of
the ablations (4.3 and 8.1, Tables 4 to 9):

  row                       fields
  Table 4, baseline         decouple=False, position="none", triplet="part_average",
                            spatial_smoothing=0: BPBreID's scheme, both tasks on P_reid
    + Decouple              the same with decouple=True
    + PPF                   and position="1d"
    + PCT                   and triplet="pct"
    + SS                    spatial_smoothing=0.5
  Table 5                   triplet="hct", "part_average", "pct"; without SS, whose
                            figures they are; PCB* also regions="stripes" on ResNet-50
  Table 6                   embeddings=("foreground", "parts"), ("global",),
                            ("left leg", "right leg"), ...: when testing only
  Table 7                   backbone="resnet50", "resnet50_ibn_a"
  Table 8                   part_groups and part_names of 3 to 8 parts
  Table 9                   position="none", "1d", "2d"; without PCT and SS

Deviations from the text, and what it leaves open:

- Eq. 3 sums maps that are upsampled twofold, which their sizes do not allow. Here each
  deeper map is upsampled to the next finer one and added to it, down to the finest;
  `upsampling="direct"` brings each to the finest at once. Interpolation is bilinear
  between the centres of pixels. A channel reduction is a 1x1 convolution to 128
  channels, batch normalisation and ReLU.
- The four stages of HRNet are its classifier's widened streams (1920 channels in all);
  those of ResNet its four layers, with stride 1 in the last. As in section 4.3,
  ResNet's P_reid is layer4 alone, interpolated to the size of layer1.
- Positions are centres of rows (and columns), from 0 to 1. The two convolutions of the
  encoder are 1x1 and have as many channels as P_hp.
- f_hp is batch normalisation and a 1x1 convolution to K parts and the background, with
  a softmax. Gradients of the identity losses reach it through the pooling.
- WAMP adds weighted average and weighted maximum, then comes the fully connected
  layer: to 512 channels, batch normalisation, ReLU, as BPBreID; parts share theirs.
- L_reid sums the losses of the global and the foreground embedding and of the parts,
  concatenated; `identity="each"` is the mean over the parts, each with its BNNeck.
- The bank of Eqs 6 and 7 counts the current batch as one of its M. All its rows are
  anchors, as the text has it; two rows of earlier batches pass no gradient.
  `anchors="batch"` takes the current batch's only. Visibility plays no part.
- HCT is given by citation only; see `hard_center_triplet`.
- Eq. 8 is averaged over the labelled places: lambda = 0.4 means nothing beside a sum.
  Its B in q_k is the number of classes. Labels come as classes at the size of the
  image and are reduced to P_hp's by majority (BPBreID interpolates confidences).
- Tested are the global and foreground embeddings after BNNeck, the parts before it,
  each of unit length (BPBreID). A distance is the mean over what both images show. Two
  images without a common part are 2 apart, the most that unit vectors can be; BPBreID
  puts them behind the farthest of the gallery at hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.backbones.hrnet import HRNet
from reid_jax.backbones.resnet import ResNet, conv
from reid_jax.errors import UserError, check_choices
from reid_jax.layers import masks, memory_bank, pooling
from reid_jax.layers.heads import BNNeck, token_heads
from reid_jax.layers.norm import BatchNorm
from reid_jax.layers.pixels import standardise
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


def interpolate(features: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Bilinear upsampling of [B, h, w, C] to `size`."""
    shape = (features.shape[0], *size, features.shape[-1])
    return jax.image.resize(features, shape, "bilinear")


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
            joined = interpolate(joined, target) + interpolate(finer, target)
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


class PixelClassifier(nn.Module):
    """f_hp of Eq. 4: scores of the background and K parts for every place."""

    parts: int
    bn_groups: int

    @nn.compact
    def __call__(self, features: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, h, w, C] to float32 logits [B, h, w, K + 1]."""
        features = BatchNorm(self.bn_groups, name="bn")(features, train=train)
        init = nn.initializers.normal(0.001)
        return nn.Dense(self.parts + 1, kernel_init=init, name="classifier")(
            features.astype(jnp.float32)
        )


# 3.3. Parsing guided ReID branch.


class Reduction(nn.Module):
    """The fully connected layer after pooling, with normalisation and ReLU."""

    width: int
    bn_groups: int

    @nn.compact
    def __call__(self, pooled: jax.Array, *, train: bool) -> jax.Array:
        """Maps float32 [B, ..., C] to [B, ..., width]."""
        init = nn.initializers.normal(0.01)
        layer = nn.Dense(self.width, use_bias=False, kernel_init=init, name="fc")
        norm = BatchNorm(self.bn_groups, name="bn")
        return jax.nn.relu(norm(layer(pooled), train=train))


def pool(features: jax.Array, weights: jax.Array) -> jax.Array:
    """WAMP without its layer: [B, h, w, C], [B, h, w, K] to float32 [B, K, C]."""
    average = pooling.weighted_average(features, weights)
    return average + pooling.weighted_max(features, weights)


class Network(nn.Module):
    """Backbone, parsing branch and re-ID branch.

    Attributes:
      backbone: HRNet or ResNet.
      num_classes: training identities.
      parts: K.
      the others: as of `Method`.
    """

    backbone: nn.Module
    num_classes: int
    parts: int
    regions: str
    decouple: bool
    upsampling: str
    position: str
    parsing_width: int
    width: int
    identity: str
    bn_groups: int

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
        stages = self._stages(images, train)
        size = stages[0].shape[1:3]
        joined = stages if isinstance(self.backbone, HRNet) else stages[-1:]
        features = jnp.concatenate([interpolate(m, size) for m in joined], axis=-1)
        parsing, maps = self._parts(stages, features, train)
        foreground = maps.max(-1, keepdims=True)
        maps = jnp.concatenate([foreground, maps], axis=-1)
        pooled = pool(features, maps)
        whole = features.astype(jnp.float32).mean((1, 2))

        def reduce(name: str, values: jax.Array) -> jax.Array:
            layer = Reduction(self.width, self.bn_groups, name=f"{name}_reduction")
            return layer(values, train=train)

        parts = reduce("parts", pooled[:, 1:])
        tokens = {
            "global": reduce("global", whole[:, None]),
            "foreground": reduce("foreground", pooled[:, :1]),
            "parts": parts,
        }
        if self.identity == "joint":
            tokens["parts"] = parts.reshape(parts.shape[0], 1, -1)
        heads = {}
        for name, values in tokens.items():
            head = BNNeck(self.num_classes, self.bn_groups, name=f"{name}_head")
            heads[name] = token_heads(head, values, train=train)
        return {"heads": heads, "parts": parts, "maps": maps, "parsing": parsing}

    def _parts(
        self, stages: Streams, features: jax.Array, train: bool
    ) -> tuple[jax.Array | None, jax.Array]:
        """Logits of the parsing, if there is one, and weights [B, h, w, K]."""
        batch, *size, _ = features.shape
        if self.regions == "stripes":
            stripes = masks.stripes(tuple(size), (self.parts,)).T
            shape = (batch, *size, self.parts)
            maps = stripes.reshape(1, *shape[1:]).astype(np.float32)
            return None, jnp.broadcast_to(maps, shape)
        if self.decouple:
            features = self._parsing_features(stages, train)
        classifier = PixelClassifier(self.parts, self.bn_groups, name="parsing")
        logits = classifier(features, train=train)
        return logits, jax.nn.softmax(logits)[..., 1:]

    def _stages(self, images: jax.Array, train: bool) -> Streams:
        """P_1 to P_4 of the backbone."""
        outputs = self.backbone(images, train=train)
        if isinstance(self.backbone, HRNet):
            return outputs["incre"]
        return [outputs[f"layer{number}"] for number in (1, 2, 3, 4)]

    def _parsing_features(self, stages: Streams, train: bool) -> jax.Array:
        """The argument of f_hp in Eq. 4."""
        features = DetailPreservingUpsampling(
            self.parsing_width,
            self.upsampling == "cascade",
            self.bn_groups,
            stages[0].dtype,
            name="upsampling",
        )(stages, train=train)
        if self.position != "none":
            encoder = PositionEncoder(
                self.parsing_width, int(self.position[0]), name="position"
            )
            embedding = encoder(features.shape[1:3], train=train)
            features += embedding.astype(features.dtype)
        return features


class Method(method.Method):
    """DROP and the rows of its ablation tables.

    Args:
      num_classes: training identities.
      image_size: height and width.
      backbone: one of `BACKBONES`.
      options: arguments of the backbone's module.
      decouple: parse features of its own (3.2), not those of the re-ID branch.
      upsampling: of these features, "cascade" or "direct".
      position: what the position encoder adds to them: "none", "1d" or "2d".
      parsing_width: their channels.
      width: channels of every embedding.
      regions: what parts are pooled from: "parsing", or "stripes" of the map, as PCB.
      stripes: their number.
      part_groups: part classes of each of the K parts, for the parsing.
      part_names: what these parts are called.
      part_kind: the kind of labels that the classes are numbered in.
      identity: classify the parts' embeddings joined ("joint") or "each" by itself.
      triplet: "pct", "part_average" or "hct".
      bank_batches: M, the batches that PCT compares, the current one included.
      anchors: of PCT: "all" rows of the bank, or the current "batch".
      margin: of the triplet loss.
      label_smoothing: of identity and parsing loss.
      parsing_weight: lambda of Eq. 5.
      spatial_smoothing: gamma of Eq. 8.
      embeddings: what images are compared by: any of "global", "foreground", "parts",
        and the names of single parts.
      visible_above: a part is visible where its greatest probability is above this.
      bn_groups: batch statistics per group of rows, as on that many GPUs.
      mean, std: of the channels, in units of the full range.
      dtype: "float32" or "bfloat16", of the convolutions and their maps.
      remat: compute the backbone's blocks again for their gradients.
    """

    def __init__(
        self,
        num_classes: int,
        image_size: tuple[int, int] = (256, 128),
        *,
        backbone: str = "hrnet_w32",
        options: Mapping[str, Any] | None = None,
        decouple: bool = True,
        upsampling: str = "cascade",
        position: str = "1d",
        parsing_width: int = 128,
        width: int = 512,
        regions: str = "parsing",
        stripes: int = 6,
        part_groups: Sequence[Sequence[int]] = tuple((c,) for c in range(1, 9)),
        part_names: Sequence[str] = EIGHT_PARTS,
        part_kind: str = "parts",
        identity: str = "joint",
        triplet: str = "pct",
        bank_batches: int = 4,
        anchors: str = "all",
        margin: float = 0.3,
        label_smoothing: float = 0.1,
        parsing_weight: float = 0.4,
        spatial_smoothing: float = 0.5,
        embeddings: Sequence[str] = ("foreground", "parts"),
        visible_above: float = 0.4,
        bn_groups: int = 1,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        dtype: str = "float32",
        remat: bool = False,
    ):
        del image_size
        check_choices(
            backbone=(backbone, tuple(BACKBONES)),
            upsampling=(upsampling, ("cascade", "direct")),
            position=(position, ("none", "1d", "2d")),
            regions=(regions, ("parsing", "stripes")),
            identity=(identity, ("joint", "each")),
            triplet=(triplet, ("pct", "part_average", "hct")),
            anchors=(anchors, ("all", "batch")),
        )
        if position != "none" and not decouple:
            raise UserError(
                f"position={position!r} belongs to the parsing branch, which "
                "decouple=False does not have: use position='none'"
            )
        self.part_groups = tuple(map(tuple, part_groups))
        self.part_names = tuple(part_names)
        self.part_kind = part_kind
        self.regions = regions
        if regions == "stripes":
            self.part_names = tuple(f"stripe {i + 1}" for i in range(stripes))
        else:
            self.train_inputs = ("parts",)
            if len(self.part_names) != len(self.part_groups):
                raise UserError(
                    f"{len(self.part_groups)} part_groups have "
                    f"{len(self.part_names)} part_names: set both together"
                )
        self.embeddings = _tokens(embeddings, self.part_names)
        titles = ("", "", *self.part_names)
        self.visibility_titles = tuple(titles[token] for token in self.embeddings)
        if triplet == "pct":
            if bank_batches < 1:
                raise UserError(f"bank_batches={bank_batches}: M is at least 1")
            self.row_axes = {"bank": 1}
        trunk, fixed = BACKBONES[backbone]
        given = {**fixed, **(options or {}), "bn_groups": bn_groups, "dtype": dtype}
        given["remat"] = remat
        self.module = Network(
            trunk(**given),
            num_classes,
            parts=len(self.part_names),
            regions=regions,
            decouple=decouple,
            upsampling=upsampling,
            position=position,
            parsing_width=parsing_width,
            width=width,
            identity=identity,
            bn_groups=bn_groups,
        )
        self.standardise = partial(standardise, mean=tuple(mean), std=tuple(std))
        self.triplet = triplet
        self.bank_batches = bank_batches
        self.anchors = anchors
        self.margin = margin
        self.label_smoothing = label_smoothing
        self.parsing_weight = parsing_weight
        self.spatial_smoothing = spatial_smoothing
        self.visible_above = visible_above

    def init(self, rng: jax.Array, batch: method.Batch) -> method.Variables:
        """Fresh variables, and an empty bank for batches of this size."""
        size, *shape = batch["image"].shape
        variables = self.module.init(rng, jnp.zeros((1, *shape)), train=False)
        if self.triplet != "pct":
            return variables
        bank = memory_bank.empty(
            batches=self.bank_batches,
            batch_size=size,
            parts=self.module.parts,
            width=self.module.width,
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
    ) -> tuple[jax.Array, dict[str, jax.Array], method.Variables]:
        """Eq. 5; metrics are its terms, and what share of labels is found."""
        del rng, epoch, stage
        labels = batch["label"]
        network = {name: variables[name] for name in ("params", "batch_stats")}
        outputs, collections = self.module.apply(
            network,
            self.standardise(batch["image"]),
            train=True,
            mutable=["batch_stats"],
        )
        identity = sum(
            self._identity_loss(head["logits"], labels)
            for head in outputs["heads"].values()
        )
        triplet, memory = self._triplet_loss(variables, outputs["parts"], labels)
        metrics = {
            "loss_id": identity,
            "loss_triplet": triplet,
            "accuracy": accuracy(
                outputs["heads"]["foreground"]["logits"][:, 0], labels
            ),
        }
        loss = identity + triplet
        if self.regions == "parsing":
            logits = outputs["parsing"]
            targets = part_targets(batch["parts"], self.part_groups, logits.shape[1:3])
            metrics["loss_parsing"] = parsing_loss(
                logits,
                targets,
                smoothing=self.label_smoothing,
                spatial=self.spatial_smoothing,
            )
            metrics |= parsing_accuracy(logits, targets)
            loss += self.parsing_weight * metrics["loss_parsing"]
        return loss, metrics, {**collections, **memory}

    def _identity_loss(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """Mean over the T tokens of one kind, [B, T, num_classes]."""
        loss = partial(cross_entropy, smoothing=self.label_smoothing)
        return jax.vmap(loss, in_axes=(1, None))(logits, labels).mean()

    def _triplet_loss(
        self, variables: method.Variables, parts: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, method.Variables]:
        """L_pct or a rival of Table 5, and the bank after the step, if there is one."""
        if self.triplet == "hct":
            return hard_center_triplet(parts, labels, margin=self.margin), {}
        if self.triplet == "part_average":
            return part_average_triplet(parts, labels, margin=self.margin), {}
        rows, bank = memory_bank.remember(variables["bank"], parts, labels)
        loss = part_average_triplet(  # Eq. 7
            rows.features,
            rows.labels,
            margin=self.margin,
            anchors=rows.newest if self.anchors == "batch" else None,
        )
        return loss, {"bank": bank}

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
        always = jnp.ones((images.shape[0], 2), bool)
        visible = jnp.concatenate([always, greatest > self.visible_above], axis=1)
        return {
            "parts": normalise(tokens[:, self.embeddings]),
            "visibility": visible[:, self.embeddings],
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
        network = {name: variables[name] for name in ("params", "batch_stats")}
        return self.module.apply(network, self.standardise(images), train=False)

    # 4.4, Figure 3.

    def pictures(
        self, variables: method.Variables, batch: method.Batch
    ) -> dict[str, method.Picture]:
        """The predicted parts, and how likely the network thinks each place is one."""
        if self.regions == "stripes":
            return {}
        outputs = jax.jit(self._test)(variables, batch["image"])
        parts = jnp.argmax(outputs["parsing"], axis=-1) - 1  # -1 is the background
        return {
            "parts": method.Segments(parts[:, None], ("parts",), self.part_names),
            "probabilities": method.Maps(
                outputs["maps"].transpose(0, 3, 1, 2), ("foreground", *self.part_names)
            ),
        }


def _tokens(embeddings: Sequence[str], part_names: tuple[str, ...]) -> np.ndarray:
    """Which of global, foreground and the parts are named, int [T]."""
    known = ("global", "foreground", *part_names)
    chosen: list[int] = []
    for name in embeddings:
        if name != "parts" and name not in known:
            raise UserError(
                f"embeddings: there is no {name!r}; known: parts, {', '.join(known)}"
            )
        chosen += range(2, len(known)) if name == "parts" else [known.index(name)]
    if not chosen or len(set(chosen)) < len(chosen):
        raise UserError(f"embeddings={tuple(embeddings)} must name each of some once")
    return np.array(chosen)
