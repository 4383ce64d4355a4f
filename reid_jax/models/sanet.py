"""SANet: features at the scale that each image needs, compared by visible parts.

Hongyu Chen, Bingliang Jiao, Liying Gao, Peng Wang: "Scale Adaptive Network for Partial
Person Re-identification: Counteracting Scale Variance", BMVC 2023. The announced code
holds a README only; the paper builds on HPNet (Huang et al., "Human Parsing Based
Alignment with Multi-Task Learning for Occluded Person Re-Identification", ICME 2020)
and on dynamic routing (Li et al., CVPR 2020).

Implemented: adaptive feature enhancement, AFE (section 3.1), multi-branch feature
extension, MFE (3.2), training and test (3.3), Figure 4 (4.5), and every row of Tables 3
and 4, by `row=` of the config; SANet itself is the defaults:

  row                fields
  table3-hpnet       enhancement="none", global_branch=False
  table3-global      enhancement="none"
  table3-fixed       enhancement="fixed"
  table4-3-layers    layers=3
  table4-7-layers    layers=7
  table4-1x1         operation=1
  table4-5x5         operation=5

The file has the paper's order: 3.1 `Cell` and `Enhancement`, 3.2 `Branch` and
`Network`, 3.3 `Method`, and in it 4.5 `pictures`.

Deviations from the text, and what it leaves open. Section 3.1:

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
- Eq. 1 is the default, but its gates need not see scale: the differences between exits
  that all images share can outgrow both the Gumbel noise and what an image adds, and
  then one route serves all. `gate_norm` (`row=gate-norm`) normalises the result of
  MaxPool over the batch, each exit by itself, before GS; dynamic routing's gate has a
  batch normalisation, too. On a small task of `benchmarks/gates.py` routes then hold
  1.54 of the 1.58 bits of scale that there are, and none without; on people, in one
  run of the demo, they hold hardly any.
- The Gumbel-softmax has temperature 1; its samples are soft in training, as Eqs 1 to 3
  read, or one-hot with `straight_through`.
- "Fixed FE": all gates are constant, 1 / number of exits, in training and at test.

Section 3.2:

- The fourth stages have stride 1, as HPNet's.
- "The global branch is utilized as a residual path" says no more here than that it is
  a fifth branch, with the union of the parts as its label.
- The part labels' source, [12], is OpenPifPaf in the list of references and dynamic
  routing in the introduction: `labels=` of the config takes PifPaf's, HPNet's or LIP's.
- The two convolutions of a segmentation head are HPNet's: 3x3 to `mask_width` channels,
  with batch normalisation and ReLU, and 1x1 to the logit of the mask.
- Eq. 4 multiplies by the mask as it is; `binary_mask` is HPNet's, without gradient.
- Heads as HPNet's: batch normalisation without bias, then a linear classifier. The
  triplet loss sees features before, identity loss and test (`feature`) after it.

Section 3.3:

- Eq. 6 has a triplet loss per branch. Images in which the branch is not visible are no
  anchors, positives or negatives: Eq. 7 would not compare them. `triplet="joint"` is
  HPNet's single one, on the distance of Eq. 7.
- Eq. 6 has the identity loss of every image in every branch; `identity="visible"` is
  HPNet's, of images in which the branch is visible.
- Focal loss with HPNet's gamma, alpha and division by the number of positive places.
  DS takes the label at the centre of a place. Unlabelled places do not count.
- Features are scaled to unit length before Eq. 7, so that no branch outweighs others.
  Images without a common visible branch have a distance of 2, the most there is.

Section 4:

- Momentum, weight decay, margin, 16 x 4 images in a batch, "color improvement" and the
  random crop are HPNet's, and the rate falls at the same share of the epochs. HPNet's
  first epochs of parsing alone, if "before the training stage" means them, its
  alternate steps, its COCO batches and its double rate for new layers are left out.
- The baseline of Table 3, "HPNet", is here SANet without AFE and global branch. HPNet's
  own pooling, identity and triplet losses are the switches above.
- The batch is normalised as one; the paper's two GPUs are `bn_groups=2` and
  `mining_groups=2`.
- Figure 4 (b) compares two models; here it is one, before and after AFE.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.scipy.stats import rankdata

from reid_jax.backbones.resnet import ResNet, Stage, conv
from reid_jax.errors import UserError, check_choices
from reid_jax.layers.group_labels import group_masks, label_tables
from reid_jax.layers.heads import BNNeck
from reid_jax.layers.heat_maps import activation, relative
from reid_jax.layers.linear import Conv
from reid_jax.layers.norm import BatchNorm
from reid_jax.layers.pixels import standardise
from reid_jax.layers.pooling import weighted_max
from reid_jax.layers.routing import (
    Grid,
    choice,
    coarseness,
    gumbel_softmax,
    resized,
    run_if_active,
    scaled,
    sizes_of_scales,
    table,
)
from reid_jax.layers.segmentation import MaskHead
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


@dataclasses.dataclass(frozen=True)
class Options:
    """Fields of `config.model`, in the order of the paper; defaults are its setting.

    Raises:
      UserError: for values and combinations that have no meaning.
    """

    # AFE: "adaptive", "fixed" (all paths active) or "none".
    enhancement: str = "adaptive"
    # Layers of cells; side of the kernel of their base operation; their channels.
    layers: int = 5
    operation: int = 3
    enhancement_width: int = 256
    # Of the gates' Gumbel-softmax in training: soft samples, or one-hot ones with the
    # gradient of the soft.
    temperature: float = 1.0
    straight_through: bool = False
    # Batch normalisation of the gates' logits before it, see the header.
    gate_norm: bool = False

    # MFE: whether there is a branch for the whole body beside those of the parts.
    global_branch: bool = True
    # Part classes of each part, of which the first that names a class has it; captions;
    # and the kind of labels that they are of: "parts", "pifpaf", "hpnet" or "lip".
    part_groups: Sequence[Sequence[int]] = PART_GROUPS
    part_names: Sequence[str] = PART_NAMES
    part_kind: str = "parts"
    # Channels between the two convolutions of a segmentation head.
    mask_width: int = 256
    # Pool the features where the mask is greater than 1/2 (HPNet), instead of their
    # product with it.
    binary_mask: bool = False

    # A branch's identity loss is of "all" images, or of "visible" ones (HPNet).
    identity: str = "all"
    label_smoothing: float = 0.0
    # A triplet loss per "branch", or one "joint" one on Eq. 7's distance (HPNet).
    triplet: str = "branch"
    triplet_weight: float = 0.1
    margin: float = 0.3
    focal_gamma: float = 2.0
    focal_alpha: float = 0.25
    # The feature to test with: "after" or "before" the normalisation.
    feature: str = "after"

    # The ResNet, whose fourth stage each branch has; see there.
    blocks: Sequence[int] = (3, 4, 6, 3)
    width: int = 64
    last_stride: int = 1
    ibn: bool = False
    # Statistics and triplet mining per group of rows, as on that many GPUs.
    bn_groups: int = 1
    mining_groups: int = 1
    # Of the channels, in units of the full range.
    mean: Sequence[float] = (0.485, 0.456, 0.406)
    std: Sequence[float] = (0.229, 0.224, 0.225)
    # "float32" or "bfloat16", of the convolutions.
    dtype: str = "float32"
    # Whether the ResNet's blocks are computed again for their gradients: less memory
    # on accelerators, about a third more arithmetic.
    remat: bool = False

    def __post_init__(self) -> None:
        check_choices(
            enhancement=(self.enhancement, ("adaptive", "fixed", "none")),
            identity=(self.identity, ("all", "visible")),
            triplet=(self.triplet, ("branch", "joint")),
            feature=(self.feature, ("after", "before")),
        )
        if self.enhancement != "none" and self.layers < 2:
            raise UserError(
                f"layers={self.layers}: at least 2, as routes lead from layer to layer"
            )
        if self.operation < 1 or self.operation % 2 == 0:
            raise UserError(f"operation={self.operation}: give an odd side of a kernel")
        for name in ("enhancement_width", "mask_width", "width"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: at least 1")
        if not self.temperature > 0:
            raise UserError(f"temperature={self.temperature} must be more than 0")
        if len(self.blocks) != 4:
            raise UserError(
                f"blocks={tuple(self.blocks)}: give four stages' bottlenecks"
            )
        if len(self.part_names) != len(self.part_groups):
            raise UserError(
                f"part_names={tuple(self.part_names)} names {len(self.part_names)} "
                f"parts, but part_groups has {len(self.part_groups)}"
            )

    @property
    def grid(self) -> Grid:
        """Of the cells."""
        return Grid(self.layers, len(SCALES))

    @property
    def branch_names(self) -> tuple[str, ...]:
        """The parts, and the whole body where there is a branch for it."""
        return (*self.part_names, *["whole body"] * self.global_branch)


# 3.1. Adaptive feature extraction module.


class Cell(nn.Module):
    """One cell of the grid: gating mechanism and base operation, Figure 3 (b).

    Attributes:
      exits: number of scale transformations to choose from; 0 in the last layer.
      decide: makes the scores of the logits [B, exits] in test mode.
    """

    options: Options
    exits: int
    decide: Callable[[jax.Array], jax.Array] = choice

    @nn.compact
    def __call__(
        self, features: jax.Array, activity: jax.Array, *, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Runs aggregated features f [B, h, w, C] of a cell with activity [B].

        Returns:
          the refined features [B, h, w, C], and the scores of the exits
          [B, exits], float32.
        """
        options, width = self.options, features.shape[-1]
        alpha = self._gate(features, activity, train)
        operation = conv(
            width, options.operation, dtype=jnp.dtype(options.dtype), name="operation"
        )
        norm = BatchNorm(options.bn_groups, name="norm")
        refined = norm(operation(features), train=train, weights=activity)  # Eq. 2
        return jax.nn.relu(refined), alpha

    def _gate(self, features: jax.Array, activity: jax.Array, train: bool) -> jax.Array:
        """Eq. 1."""
        options = self.options
        if options.enhancement == "fixed" or not self.exits:
            shape = (features.shape[0], self.exits)
            return jnp.full(shape, 1 / max(self.exits, 1))
        logits = self._logits(features, activity, train)
        if not train:  # section 3.3: the path with the greatest probability
            return self.decide(logits)
        return gumbel_softmax(
            self.make_rng("gumbel"),
            logits,
            temperature=options.temperature,
            straight_through=options.straight_through,
        )

    def _logits(
        self, features: jax.Array, activity: jax.Array, train: bool
    ) -> jax.Array:
        """MaxPool(G(w, f)) [B, exits]."""
        gate = nn.Conv(self.exits, (1, 1), dtype=jnp.float32, name="gate")
        logits = self._pooled(gate(features))
        if not self.options.gate_norm:
            return logits
        norm = BatchNorm(self.options.bn_groups, name="gate_norm")
        return norm(logits, train=train, weights=activity)

    def _pooled(self, maps: jax.Array) -> jax.Array:
        return maps.max((1, 2))


class Enhancement(nn.Module):
    """The grid of cells, Figure 3 (a), as a residual block.

    Attributes:
      skip: leave cells out that a single image's route does not pass, in test mode.
      cell: makes a cell of options, number of exits and name.
    """

    options: Options
    skip: bool = True
    cell: Callable[..., Cell] = Cell

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
        grid, (rows, *size, channels) = self.options.grid, maps.shape
        sizes = sizes_of_scales(tuple(size), grid.scales)
        single = self.options.enhancement == "adaptive" and self.skip and not train
        run = partial(run_if_active, skip=single and not self.is_initializing())
        forward = partial(Cell.__call__, train=train)
        # By layer and scale; sums of what comes in, so they start at zero.
        arriving, activity, paths = defaultdict(int), defaultdict(int), {}
        arriving[0, 0], activity[0, 0] = self._reduced(maps, train), jnp.ones(rows)
        total = 0
        for layer, scale in grid.places():
            share, exits = activity[layer, scale], grid.exits(layer, scale)
            name = f"{layer + 1}_{scale + 1}"
            cell = self.cell(self.options, len(exits), name=f"cell{name}")
            refined, alpha = run(cell, share, forward, arriving[layer, scale], share)
            for index, target in enumerate(exits):
                path = paths[layer, scale, target] = share * alpha[:, index]
                if target > scale:
                    down = self._convolution(3, f"down{name}", stride=2)
                    moved = run(down, path, Conv.__call__, refined)
                else:  # keep or up
                    moved = resized(refined, sizes[target])
                arriving[layer + 1, target] += scaled(moved, path)  # Eq. 3
                activity[layer + 1, target] += path
            if not exits:  # the last layer
                total += resized(scaled(refined, share), sizes[0])
        layers, scales = grid.layers, grid.scales
        return maps + self._expanded(total, channels), {
            "activity": table(activity, (rows, layers, scales)),
            "paths": table(paths, (rows, layers - 1, scales, scales)),
        }

    def _reduced(self, maps: jax.Array, train: bool) -> jax.Array:
        """To the channels of the cells."""
        reduced = self._convolution(1, "reduce")(maps)
        norm = BatchNorm(self.options.bn_groups, name="reduce_bn")
        return jax.nn.relu(norm(reduced, train=train))

    def _expanded(self, total: jax.Array, channels: int) -> jax.Array:
        """Back from them; zero at first."""
        return Conv(
            channels,
            1,
            use_bias=False,
            dtype=jnp.dtype(self.options.dtype),
            kernel_init=nn.initializers.zeros,
            name="expand",
        )(total)

    def _convolution(self, side: int, name: str, stride: int = 1) -> Conv:
        options = self.options
        return conv(
            options.enhancement_width,
            side,
            stride=stride,
            dtype=jnp.dtype(options.dtype),
            name=name,
        )


# 3.2. Multi-branch feature extension module.


class Branch(nn.Module):
    """A fourth stage with the mask, feature, visibility and identity of one part.

    Attributes:
      num_classes: training identities.
    """

    options: Options
    num_classes: int

    @nn.compact
    def __call__(self, maps: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """Runs enhanced maps [B, h, w, C].

        Returns:
          mask_logits [B, h', w']; visible bool [B]; before, after [B, D], the feature
          before and after the normalisation; logits [B, num_classes]; activation
          [B, h', w'], the norm of the masked features. float32.
        """
        options = self.options
        maps = self._stage()(maps, train=train)
        segment = MaskHead(options.mask_width, options.bn_groups, name="mask")
        mask_logits = segment(maps, train=train)
        mask = jax.nn.sigmoid(mask_logits)
        weight = mask > VISIBLE if options.binary_mask else mask
        feature = weighted_max(maps, weight[..., None])[:, 0]  # Eq. 4
        visible = (mask > VISIBLE).any((1, 2))  # Eq. 5
        head = BNNeck(self.num_classes, options.bn_groups, use_bias=True, name="head")
        return {
            "mask_logits": mask_logits,
            "visible": visible,
            **head(feature, train=train),
            "activation": weight * activation(maps),
        }

    def _stage(self) -> Stage:
        options = self.options
        return Stage(
            blocks=options.blocks[3],
            width=8 * options.width,
            stride=options.last_stride,
            bn_groups=options.bn_groups,
            dtype=options.dtype,
            remat=options.remat,
            name="stage",
        )


class Network(nn.Module):
    """ResNet with AFE between its third and fourth stage, and MFE (Figure 2).

    Attributes:
      backbone: the first three stages.
      enhancement: AFE, or None.
      num_classes: training identities.
    """

    backbone: ResNet
    enhancement: Enhancement | None
    options: Options
    num_classes: int

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
            Branch(self.options, self.num_classes, name=f"branch{index}")(
                enhanced, train=train
            )
            for index in range(len(self.options.branch_names))
        ]
        joined = jax.tree.map(lambda *x: jnp.stack(x, axis=1), *outputs)
        return {**joined, "third": third, "enhanced": enhanced, "routes": routes}


class Method(method.Method):
    """SANet and the rows of its ablation tables.

    Args:
      num_classes: training identities.
      image_size: height and width; the network takes any.
      **fields: of `Options`.
    """

    train_inputs = ("parts",)

    def __init__(
        self, num_classes: int, image_size: tuple[int, int] = (384, 128), **fields: Any
    ):
        del image_size
        self.options = options = Options(**fields)
        backbone = ResNet(
            blocks=tuple(options.blocks[:3]),
            width=options.width,
            ibn=options.ibn,
            bn_groups=options.bn_groups,
            dtype=options.dtype,
            remat=options.remat,
        )
        afe = None if options.enhancement == "none" else Enhancement(options)
        self.module = Network(backbone, afe, options, num_classes)
        self.part_kind = options.part_kind
        self.tables = label_tables(options.part_groups)
        self.visibility_titles = options.branch_names
        self.pretrained_copies = {
            f"branch{index}/stage/layer4": "backbone/layer4"
            for index in range(len(options.branch_names))
        }
        self.standardise = partial(
            standardise, mean=tuple(options.mean), std=tuple(options.std)
        )

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
    ) -> method.Outcome:
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
        loss = identity + self.options.triplet_weight * triplet + parsing  # Eq. 6
        return loss, metrics, collections

    def _identity_loss(
        self, logits: jax.Array, visible: jax.Array, labels: jax.Array
    ) -> jax.Array:
        """Sum over branches, [B, K, num_classes], of the mean over images."""
        each = partial(cross_entropies, smoothing=self.options.label_smoothing)
        losses = jax.vmap(each, (1, None), 1)(logits, labels)
        some = self.options.identity == "visible"
        counts = visible if some else jnp.ones_like(visible)
        means = (losses * counts).sum(0) / jnp.maximum(counts.sum(0), 1)
        return means.sum()

    def _triplet_loss(
        self, features: jax.Array, visible: jax.Array, labels: jax.Array
    ) -> jax.Array:
        """Sum over branches, [B, K, D], or the one of their joint distance."""
        options = self.options
        triplet = partial(
            visible_triplet, margin=options.margin, groups=options.mining_groups
        )
        if options.triplet == "joint":
            return triplet(features, visible, labels)
        alone = features.swapaxes(0, 1)[:, :, None], visible.T[:, :, None]
        return jax.vmap(triplet, (0, 0, None))(*alone, labels).sum()

    def _parsing_loss(self, mask_logits: jax.Array, parts: jax.Array) -> jax.Array:
        """Sum over branches, [B, K, h, w]; part classes [B, H, W]."""
        options, (branches, *size) = self.options, mask_logits.shape[1:]
        focal = partial(
            focal_loss, gamma=options.focal_gamma, alpha=options.focal_alpha
        )
        masks, labelled = group_masks(parts, self.tables, size)  # DS(M)
        masks = masks[:, :branches]
        return jax.vmap(focal, (1, 1, None))(mask_logits, masks, labelled).sum()

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
            "parts": normalise(outputs[self.options.feature]),
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
        names = self.options.branch_names
        masks = jax.nn.sigmoid(outputs["mask_logits"])
        pictures: dict[str, method.Maps | method.Routes] = {
            "masks": method.Maps(masks, names)
        }
        third, enhanced = map(activation, (outputs["third"], outputs["enhanced"]))
        shape = (len(third), masks.shape[1], *third.shape[1:])
        maps = [jax.image.resize(outputs["activation"], shape, "bilinear")]
        if outputs["routes"]:
            maps = [third[:, None], enhanced[:, None], *maps]
            names = ("before AFE", "after AFE", *names)
            pictures["routes"] = self._routes(outputs["routes"], batch.get("parts"))
        values = relative(jnp.concatenate(maps, axis=1))
        scale = "each map's smallest to its largest value"
        pictures["relative_activation"] = method.Maps(values, names, scale=scale)
        return pictures

    def _routes(
        self, routes: dict[str, jax.Array], parts: jax.Array | None
    ) -> method.Routes:
        """With what they have to do with scale, where the labels [B, H, W] tell it.

        The fewer parts are seen, the larger they are: people fill their images.
        """
        coarse = coarseness(routes["activity"])
        about = f"mean scale of the cells {coarse.mean():.2f} (0: all at {SCALES[0]}"
        about += f", {len(SCALES) - 1}: all at {SCALES[-1]})"
        if parts is not None:
            masks, _ = group_masks(parts, self.tables, parts.shape[1:])
            unseen = (~masks[:, :-1].any((2, 3))).sum(1)
            correlation = jnp.corrcoef(rankdata(coarse), rankdata(unseen))[0, 1]
            known = f"{correlation:.2f}" if jnp.isfinite(correlation) else "none"
            about += f"; rank correlation with enlargement over these {len(coarse)}: "
            about += known
        return method.Routes(**routes, scales=SCALES, about=about)
