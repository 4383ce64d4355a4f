"""SANet: features at the scale that each image needs, compared by visible parts.

Hongyu Chen, Bingliang Jiao, Liying Gao, Peng Wang: "Scale Adaptive Network for Partial
Person Re-identification: Counteracting Scale Variance", BMVC 2023. The announced code
holds a README only; the paper builds on HPNet (Huang et al., "Human Parsing Based
Alignment with Multi-Task Learning for Occluded Person Re-Identification", ICME 2020)
and on dynamic routing (Li et al., CVPR 2020).

Implemented: adaptive feature enhancement, AFE (section 3.1), multi-branch feature
extension, MFE (3.2), training and test (3.3), and every row of Tables 3 and 4:

  row                        fields
  HPNet                      enhancement="none", global_branch=False
  + Global Branch            enhancement="none"
  + Fixed FE                 enhancement="fixed"
  SANet                      the defaults
  Table 4, layer number      layers=3, 5, 7
  Table 4, cell operation    operation=1, 3, 5

Deviations from the text, and what it leaves open:

- The width of the grid is not given. A 1x1 convolution with batch normalisation takes
  the 1024 channels to `enhancement_width`, the same at all scales; another takes them
  back, is added to the map of the third stage, and starts at zero, so that pretrained
  fourth stages begin with what they were trained on. Cells of 1024 channels would have
  five times the parameters of the whole ResNet.
- The scales are 1, 1/2 and 1/4 of the third stage's map. Routes enter at scale 1, and
  only cells that they can reach exist: 1, 2, 3, 3, 3 of five layers. Cells of the last
  layer lead nowhere; their outputs are resized to scale 1 and summed.
- A cell's operation is followed by batch normalisation and ReLU. "Up" is bilinear
  resizing, "down" a 3x3 convolution with stride 2. Gates pool over all places.
- Eq. 3 is used with the share of the route that enters the cell: a cell's activity is
  the sum of what comes in, 1 at the entry, and a path carries activity times alpha.
  A layer's activities sum to 1; with one-hot gates one cell of it is active, as in
  Figure 4 (a). The activity also weights the cell's batch statistics: a zeroed input
  alone would not silence it, since the normalisation's bias makes something of nothing.
- The Gumbel-softmax has temperature 1; its samples are soft in training, as Eqs 1 to 3
  read, or one-hot with `straight_through`.
- "Fixed FE": all gates are constant, 1 / number of exits, in training and at test.
- Eq. 4 multiplies by the mask as it is; `binary_mask` is HPNet's, without gradient.
- Heads as HPNet's: batch normalisation without bias, then a linear classifier. The
  triplet loss sees features before, identity loss and test (`feature`) after it.
- Eq. 6 has a triplet loss per branch. Images in which the branch is not visible are no
  anchors, positives or negatives: Eq. 7 would not compare them. `triplet="joint"` is
  HPNet's single one, on the distance of Eq. 7.
- Eq. 6 has the identity loss of every image in every branch; `identity="visible"` is
  HPNet's, of images in which the branch is visible.
- Focal loss with HPNet's gamma, alpha and division by the number of positive places.
- Features are scaled to unit length before Eq. 7, so that no branch outweighs others.
  Images without a common visible branch have a distance of 2, the most there is.
- The label of the whole body is the union of its parts'. Unlabelled places do not
  count.
- The batch is normalised as one; the paper's two GPUs are `bn_groups=2` and
  `mining_groups=2`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.backbones.resnet import ResNet, Stage, conv
from reid_jax.errors import UserError, check_choices
from reid_jax.layers.group_labels import group_masks, label_tables
from reid_jax.layers.heat_maps import activation, relative
from reid_jax.layers.norm import BatchNorm
from reid_jax.layers.pixels import standardise
from reid_jax.layers.pooling import weighted_max
from reid_jax.layers.routing import (
    Grid,
    choice,
    gumbel_softmax,
    resized,
    run_if_active,
    scaled,
    sizes_of_scales,
    table,
)
from reid_jax.losses.focal import focal_loss
from reid_jax.losses.identity import accuracy, cross_entropies
from reid_jax.losses.visible_triplet import visible_triplet
from reid_jax.models import method
from reid_jax.retrieval.distances import normalise
from reid_jax.retrieval.visible_parts import visible_euclidean

SCALES = ("1", "1/2", "1/4")
"""Of the cells, relative to the map of the third stage."""

VISIBLE = 0.5
"""A place belongs to a part where its mask is greater (Eq. 5)."""

PART_GROUPS = ((1,), (2, 3, 4), (5, 6), (7, 8))
PART_NAMES = ("head", "upper body", "lower body", "feet")
"""Section 3.2's parts in the library's own classes."""


# 3.1. Adaptive feature extraction module.


class Cell(nn.Module):
    """One cell of the grid: gating mechanism and base operation, Figure 3 (b).

    Attributes:
      exits: number of scale transformations to choose from; 0 in the last layer.
      operation: side of the base operation's kernel.
      adaptive: whether the gate chooses; otherwise all exits have the same score.
      temperature, straight_through: of the gate's samples in training.
      bn_groups: see `BatchNorm.groups`.
      dtype: of the operation.
    """

    exits: int
    operation: int = 3
    adaptive: bool = True
    temperature: float = 1.0
    straight_through: bool = False
    bn_groups: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, features: jax.Array, activity: jax.Array, *, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Runs aggregated features f [B, h, w, C] of a cell with activity [B].

        Returns:
          the refined features [B, h, w, C], and the scores of the exits
          [B, exits], float32.
        """
        width, size = features.shape[-1], self.operation
        operation = conv(width, size, dtype=self.dtype, name="operation")
        norm = BatchNorm(self.bn_groups, name="norm")
        refined = norm(operation(features), train=train, weights=activity)  # Eq. 2
        return jax.nn.relu(refined), self._gate(features, train)

    def _gate(self, features: jax.Array, train: bool) -> jax.Array:
        """Eq. 1."""
        if not self.adaptive or not self.exits:
            shape = (features.shape[0], self.exits)
            return jnp.full(shape, 1 / max(self.exits, 1))
        gate = nn.Conv(self.exits, (1, 1), dtype=jnp.float32, name="gate")
        logits = gate(features).max((1, 2))
        if not train:  # section 3.3: the path with the greatest probability
            return choice(logits)
        return gumbel_softmax(
            self.make_rng("gumbel"),
            logits,
            temperature=self.temperature,
            straight_through=self.straight_through,
        )


class Enhancement(nn.Module):
    """The grid of cells, Figure 3 (a), as a residual block.

    Attributes:
      grid: its layers and scales.
      cell: makes a cell, given its number of exits and its name.
      width: channels within the grid.
      bn_groups: see `BatchNorm.groups`.
      dtype: of the convolutions.
      skip: leave cells out that a single image's route does not pass, in test mode.
    """

    grid: Grid
    cell: Callable[..., Cell] = Cell
    width: int = 256
    bn_groups: int = 1
    dtype: Any = jnp.float32
    skip: bool = True

    @nn.compact
    def __call__(
        self, maps: jax.Array, *, train: bool
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Enhances `maps` [B, h, w, C].

        Returns:
          maps of the same shape, and the routes: `activity` [B, L, S] of the cells
          and `paths` [B, L - 1, S, S] from scale to scale, float32, NaN where there
          is no cell or path.
        """
        grid, (rows, *size, channels) = self.grid, maps.shape
        idle = self.skip and not train and not self.is_initializing()
        run = partial(run_if_active, skip=idle)
        sizes = sizes_of_scales(tuple(size), grid.scales)
        # By layer and scale; sums of what comes in, so they start at zero.
        arriving, activity = defaultdict(int), defaultdict(int)
        arriving[0, 0], activity[0, 0] = self._reduced(maps, train), jnp.ones(rows)
        paths, last, total = {}, grid.layers - 1, 0
        for layer, scale in grid.places():
            share = activity[layer, scale]
            exits = grid.exits(layer, scale)
            cell = self.cell(len(exits), name=f"cell{layer + 1}_{scale + 1}")
            forward = partial(Cell.__call__, train=train)
            features = arriving[layer, scale]  # f^L
            refined, alpha = run(cell, share, forward, features, share)
            for index, target in enumerate(exits):
                path = paths[layer, scale, target] = share * alpha[:, index]
                if target > scale:
                    down = self._down(f"down{layer + 1}_{scale + 1}")
                    moved = run(down, path, nn.Conv.__call__, refined)
                else:  # keep or up
                    moved = resized(refined, sizes[target])
                arriving[layer + 1, target] += scaled(moved, path)  # Eq. 3
                activity[layer + 1, target] += path
            if layer == last:
                total += resized(scaled(refined, share), sizes[0])
        zeros = nn.initializers.zeros
        expand = nn.Conv(
            channels,
            (1, 1),
            use_bias=False,
            dtype=self.dtype,
            kernel_init=zeros,
            name="expand",
        )
        scales = grid.scales
        return maps + expand(total), {
            "activity": table(activity, (rows, grid.layers, scales)),
            "paths": table(paths, (rows, last, scales, scales)),
        }

    def _reduced(self, maps: jax.Array, train: bool) -> jax.Array:
        reduced = conv(self.width, 1, dtype=self.dtype, name="reduce")(maps)
        norm = BatchNorm(self.bn_groups, name="reduce_bn")
        return jax.nn.relu(norm(reduced, train=train))

    def _down(self, name: str) -> nn.Conv:
        return conv(self.width, 3, stride=2, dtype=self.dtype, name=name)


# 3.2. Multi-branch feature extension module.


class Branch(nn.Module):
    """A fourth stage with the mask, feature, visibility and identity of one part.

    Attributes:
      stage: makes the fourth stage, given its name.
      num_classes: training identities.
      mask_width: channels between the two convolutions of the segmentation head.
      binary_mask, bn_groups: as of `Method`.
    """

    stage: Callable[..., Stage]
    num_classes: int
    mask_width: int
    binary_mask: bool
    bn_groups: int

    @nn.compact
    def __call__(self, maps: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """Runs enhanced maps [B, h, w, C].

        Returns:
          mask_logits [B, h', w']; visible bool [B]; before, after [B, D], the feature
          before and after the normalisation; logits [B, num_classes]; activation
          [B, h', w'], the norm of the masked features. float32.
        """
        maps = self.stage(name="stage")(maps, train=train)
        mask_logits = self._segment(maps, train)
        mask = jax.nn.sigmoid(mask_logits)
        visible = (mask > VISIBLE).any((1, 2))  # Eq. 5
        weight = mask > VISIBLE if self.binary_mask else mask
        before = weighted_max(maps, weight[..., None])[:, 0]  # Eq. 4
        norm = BatchNorm(self.bn_groups, use_bias=False, name="bn")
        after = norm(before, train=train)
        classifier = nn.Dense(
            self.num_classes,
            kernel_init=nn.initializers.normal(0.001),
            name="classifier",
        )
        return {
            "mask_logits": mask_logits,
            "visible": visible,
            "before": before,
            "after": after,
            "logits": classifier(after),
            "activation": weight * activation(maps),
        }

    def _segment(self, maps: jax.Array, train: bool) -> jax.Array:
        """The segmentation head: two convolutions."""
        layer = partial(
            nn.Conv, dtype=maps.dtype, kernel_init=nn.initializers.normal(0.001)
        )
        hidden = layer(
            self.mask_width, (3, 3), padding=1, use_bias=False, name="mask_conv1"
        )(maps)
        norm = BatchNorm(self.bn_groups, name="mask_bn")
        hidden = jax.nn.relu(norm(hidden, train=train))
        logits = layer(1, (1, 1), name="mask_conv2")(hidden)
        return logits[..., 0].astype(jnp.float32)


class Network(nn.Module):
    """ResNet with AFE between its third and fourth stage, and MFE.

    Attributes:
      backbone: the first three stages.
      enhancement: AFE, or None.
      branch: makes a branch, given its name.
      branches: their number.
    """

    backbone: ResNet
    enhancement: Enhancement | None
    branch: Callable[..., Branch]
    branches: int

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> dict[str, Any]:
        """Runs standardised images [B, H, W, 3].

        Returns:
          what `Branch` returns, with an axis of the K branches after that of the
          batch; third and enhanced [B, h, w, C], the maps before and after AFE; and
          routes as of `Enhancement`, empty without it.
        """
        third = self.backbone(images, train=train)["layer3"]
        enhanced, routes = third, {}
        if self.enhancement is not None:
            enhanced, routes = self.enhancement(third, train=train)
        outputs = [
            self.branch(name=f"branch{index}")(enhanced, train=train)
            for index in range(self.branches)
        ]
        joined = jax.tree.map(lambda *x: jnp.stack(x, axis=1), *outputs)
        return {**joined, "third": third, "enhanced": enhanced, "routes": routes}


class Method(method.Method):
    """SANet and the rows of its ablation tables.

    Args:
      num_classes: training identities.
      image_size: height and width.
      enhancement: "adaptive" (AFE), "fixed" (all paths active) or "none".
      layers, operation: layers of cells; side of their kernels.
      enhancement_width: channels of the cells.
      temperature, straight_through: of the Gumbel-softmax in training.
      global_branch: a branch for the whole body beside those of the parts.
      part_groups: part classes of each part; the first that names a class has it.
      part_names: captions of the parts.
      part_kind: the kind of labels that the classes are of: "parts", "pifpaf" or
        "hpnet".
      mask_width: channels within the segmentation heads.
      binary_mask: pool the features where the mask is greater than 1/2, instead of
        their product with it.
      blocks, width, last_stride, ibn: of the ResNet, whose fourth stage each branch
        has; see there.
      identity: "all" images, or "visible" ones, count in a branch's identity loss.
      label_smoothing: of the identity loss.
      triplet: one per "branch", or one "joint" triplet loss on Eq. 7's distance.
      triplet_weight, margin: of it.
      focal_gamma, focal_alpha: of the parsing loss.
      feature: the feature to test with: "after" or "before" the normalisation.
      bn_groups, mining_groups: statistics and mining per group of rows, as on that
        many GPUs.
      mean, std: of the channels, in units of the full range.
      dtype: "float32" or "bfloat16", of the convolutions.
      remat: compute the ResNet's blocks, in all four stages, again for their gradients.
    """

    train_inputs = ("parts",)

    def __init__(
        self,
        num_classes: int,
        image_size: tuple[int, int] = (384, 128),
        *,
        enhancement: str = "adaptive",
        layers: int = 5,
        operation: int = 3,
        enhancement_width: int = 256,
        temperature: float = 1.0,
        straight_through: bool = False,
        global_branch: bool = True,
        part_groups: Sequence[Sequence[int]] = PART_GROUPS,
        part_names: Sequence[str] = PART_NAMES,
        part_kind: str = "parts",
        mask_width: int = 256,
        binary_mask: bool = False,
        blocks: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        last_stride: int = 1,
        ibn: bool = False,
        identity: str = "all",
        label_smoothing: float = 0.0,
        triplet: str = "branch",
        triplet_weight: float = 0.1,
        margin: float = 0.3,
        focal_gamma: float = 2.0,
        focal_alpha: float = 0.25,
        feature: str = "after",
        bn_groups: int = 1,
        mining_groups: int = 1,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        dtype: str = "float32",
        remat: bool = False,
    ):
        del image_size
        check_choices(
            enhancement=(enhancement, ("adaptive", "fixed", "none")),
            identity=(identity, ("all", "visible")),
            triplet=(triplet, ("branch", "joint")),
            feature=(feature, ("after", "before")),
        )
        if operation < 1 or operation % 2 == 0:
            raise UserError(f"operation={operation}: give an odd side of a kernel")
        if not temperature > 0:
            raise UserError(f"temperature={temperature} must be more than 0")
        if len(blocks) != 4:
            raise UserError(f"blocks={tuple(blocks)}: give four stages' bottlenecks")
        self.part_groups = tuple(map(tuple, part_groups))
        self.part_kind = part_kind
        self.tables = label_tables(self.part_groups)
        if len(part_names) != len(self.part_groups):
            raise UserError(
                f"part_names={tuple(part_names)} names {len(part_names)} parts, but "
                f"part_groups has {len(self.part_groups)}"
            )
        self.branch_names = (*part_names, "whole body")[
            : len(self.part_groups) + global_branch
        ]
        self.visibility_titles = self.branch_names
        common = {"bn_groups": bn_groups, "dtype": dtype}
        backbone = ResNet(
            blocks=tuple(blocks[:3]), width=width, ibn=ibn, remat=remat, **common
        )
        # Makers, not modules: a module that is handed on is shared by its users.
        cell = partial(
            Cell,
            operation=operation,
            adaptive=enhancement == "adaptive",
            temperature=temperature,
            straight_through=straight_through,
            **common,
        )
        afe = Enhancement(
            Grid(layers, len(SCALES)),
            cell,
            enhancement_width,
            skip=enhancement == "adaptive",
            **common,
        )
        branch = partial(
            Branch,
            partial(
                Stage,
                blocks=blocks[3],
                width=8 * width,
                stride=last_stride,
                remat=remat,
                **common,
            ),
            num_classes,
            mask_width,
            binary_mask,
            bn_groups,
        )
        self.module = Network(
            backbone,
            None if enhancement == "none" else afe,
            branch,
            len(self.branch_names),
        )
        self.pretrained_copies = {
            f"branch{index}/stage/layer4": "backbone/layer4"
            for index in range(len(self.branch_names))
        }
        self.standardise = partial(standardise, mean=tuple(mean), std=tuple(std))
        self.identity = identity
        self.cross_entropies = partial(cross_entropies, smoothing=label_smoothing)
        self.triplet = triplet
        self.triplet_weight = triplet_weight
        self.visible_triplet = partial(
            visible_triplet, margin=margin, groups=mining_groups
        )
        self.focal = partial(focal_loss, gamma=focal_gamma, alpha=focal_alpha)
        self.feature = feature

    def init(self, rng: jax.Array, batch: method.Batch) -> method.Variables:
        """Fresh variables; pretrained stages are loaded over them."""
        images = jnp.zeros((1, *batch["image"].shape[1:]))
        return self.module.init(rng, images, train=False)

    # 3.3. Training and test.

    def objective(
        self,
        variables: method.Variables,
        batch: method.Batch,
        *,
        rng: jax.Array,
        epoch: jax.Array,
        stage: str,
    ) -> tuple[jax.Array, dict[str, jax.Array], method.Variables]:
        """Eq. 6; metrics are its terms, the accuracy and share of visible branches."""
        del epoch, stage
        outputs, collections = self.module.apply(
            variables,
            self.standardise(batch["image"]),
            train=True,
            mutable=["batch_stats"],
            rngs={"gumbel": rng},
        )
        visible, labels = outputs["visible"], batch["label"]
        identity = self._identity_loss(outputs["logits"], visible, labels)
        triplet = self._triplet_loss(outputs["before"], visible, labels)
        parsing = self._parsing_loss(outputs["mask_logits"], batch["parts"])
        right = jax.vmap(accuracy, in_axes=(1, None))(outputs["logits"], labels)
        metrics = {
            "loss_id": identity,
            "loss_triplet": triplet,
            "loss_parsing": parsing,
            "accuracy": right.mean(),
            "visible": visible.mean(dtype=jnp.float32),
        }
        loss = identity + self.triplet_weight * triplet + parsing  # Eq. 6
        return loss, metrics, collections

    def _identity_loss(
        self, logits: jax.Array, visible: jax.Array, labels: jax.Array
    ) -> jax.Array:
        """Sum over branches, [B, K, num_classes], of the mean over images."""
        losses = jax.vmap(self.cross_entropies, (1, None), 1)(logits, labels)
        counts = visible if self.identity == "visible" else jnp.ones_like(visible)
        means = (losses * counts).sum(0) / jnp.maximum(counts.sum(0), 1)
        return means.sum()

    def _triplet_loss(
        self, features: jax.Array, visible: jax.Array, labels: jax.Array
    ) -> jax.Array:
        """Sum over branches, [B, K, D], or the one of their joint distance."""
        if self.triplet == "joint":
            return self.visible_triplet(features, visible, labels)
        alone = features.swapaxes(0, 1)[:, :, None], visible.T[:, :, None]
        return jax.vmap(self.visible_triplet, (0, 0, None))(*alone, labels).sum()

    def _parsing_loss(self, mask_logits: jax.Array, parts: jax.Array) -> jax.Array:
        """Sum over branches, [B, K, h, w]; part classes [B, H, W]."""
        branches, *size = mask_logits.shape[1:]
        masks, labelled = group_masks(parts, self.tables, size)  # DS(M)
        masks = masks[:, :branches]
        return jax.vmap(self.focal, (1, 1, None))(mask_logits, masks, labelled).sum()

    def embed(
        self,
        variables: method.Variables,
        images: jax.Array,
        camera: jax.Array | None = None,
        parts: jax.Array | None = None,
    ) -> method.Embedding:
        """`parts` [B, K, D] of unit norm, and `visibility` [B, K] of 0 or 1."""
        del camera, parts
        outputs = self._test(variables, images)
        return {
            "parts": normalise(outputs[self.feature]),
            "visibility": outputs["visible"].astype(jnp.float32),
        }

    def distance(self, query: method.Embedding, gallery: method.Embedding) -> jax.Array:
        """Eq. 7: the mean over branches that are visible in both images."""
        return visible_euclidean(
            query["parts"],
            query["visibility"] > 0,
            gallery["parts"],
            gallery["visibility"] > 0,
        )

    def _test(self, variables: method.Variables, images: jax.Array) -> dict[str, Any]:
        return self.module.apply(variables, self.standardise(images), train=False)

    # 4.5. Qualitative analysis, Figure 4.

    def pictures(
        self, variables: method.Variables, batch: method.Batch
    ) -> dict[str, method.Maps | method.Routes]:
        """Routes through the grid (a), activation and part masks (b)."""
        outputs = jax.jit(self._test)(variables, batch["image"])
        masks = jax.nn.sigmoid(outputs["mask_logits"])
        pictures: dict[str, method.Maps | method.Routes] = {
            "masks": method.Maps(masks, self.branch_names)
        }
        third, enhanced = map(activation, (outputs["third"], outputs["enhanced"]))
        shape = (len(third), masks.shape[1], *third.shape[1:])
        branches = jax.image.resize(outputs["activation"], shape, "bilinear")
        maps, titles = [branches], self.branch_names
        if outputs["routes"]:
            maps = [third[:, None], enhanced[:, None], *maps]
            titles = ("before AFE", "after AFE", *titles)
            pictures["routes"] = method.Routes(**outputs["routes"], scales=SCALES)
        values = relative(jnp.concatenate(maps, axis=1))
        pictures["relative_activation"] = method.Maps(values, titles)
        return pictures
