"""CpaCol: attention that learns foreground by contrast, and correlation of image pairs.

Liying Gao, Bingliang Jiao, Yuzhou Long, Kai Niu, He Huang, Peng Wang, Yanning Zhang:
"Contrastive Pedestrian Attentive and Correlation Learning Network for Occluded Person
Re-Identification". The authors' code is at github.com/nwpugaoliying/CpaCol; "the code"
below means it.

Implemented: ContrastAttn (section III-B), CorreL (III-C), both training stages and the
inference (III-D), and every row of the ablations (IV-D): `ROWS` of `configs/cpacol.py`
names them and the fields they set. In the order of the paper:

  III-A                  `Network`, below
  III-B, Eqs 1, 2, 7     layers/contrast_attn.py
         Eqs 3 to 6      losses/contrastive.py
  III-C, Eq. 8           layers/correlation4d.py
         Eq. 9, Fig. 5   layers/correl.py
         Eq. 10          losses/verification.py
  III-D, Eqs 11 to 13    `Method.objective`, below; inference: `Method.embed`, `Scorer`
  IV-B                   `Options`, below, and configs/cpacol.py
  Figs 6, 7, 9           `pictures` of `Scorer` and `Method`

Deviations from the text, and what it leaves open. Section III-B:

- MLP_e and MLP_r are half as wide inside, MLP_r and the convolution of Eq. 1 (3 x 3)
  have no bias, that convolution starts at N(0, 2/9), and CLS passes a ContrastAttn
  layer as it is (the code). The sigmoids of Eqs 1 and 10 have no temperature.
- "Input features" are pooled says the text of Eq. 2, embedded ones its formula.
- Stripes are cut out of the one map of Eq. 1, as in Fig. 3 and the code; the text
  applies Eq. 1 within each stripe. They cover all rows (22 in 5, 6, 6, 5); the code
  drops the last two in Eq. 6.
- The contrastive losses are means over pairs and, Eq. 6, over images, summed over the
  ContrastAttn layers; similarities are clamped to [0.0005, 0.9995] before every
  logarithm (the code). Eqs 3-6 are sums without bounds.
- MLP_e sees features whose gradient is stopped, so that contrast shapes the attention
  and not the Transformer (the code; `attention_gradient`). It does not add the previous
  layer's embedding as the code does; `accumulate=True`.
- Whether f_l of Eq. 7 replaces the tokens or joins them is not said: they become
  x + w f_l with the code's w, which grows over the first 20 epochs. `residual=False`
  replaces them. At test w is full; the code leaves its epoch at 0 there, so that its
  ContrastAttn has no effect on the features it is tested with.
- Each attended mean has an identity loss behind a BNNeck (`auxiliary_weight`): it is in
  the code and in Table VI's parameters.

Section III-C:

- omega is a 3 x 3 convolution without bias and a batch normalisation; the kernels of
  the blocks, 4 groups of the GN, and an MLP of 128, 128 and 1 are the code's, too.
- CorreL compares what leaves a ContrastAttn layer, which with the residual is
  x + w f_l (the code). The text calls it f_l, which is the same where f_l replaces the
  tokens; f_l alone, `correlate="attended"` (`row=text-features`), learns far slower: in
  the demo it still guesses when stage two ends, where x + w f_l is right of 80 %.
- alpha multiplies the similarities at test, too, which the code omits.
- s_ij is a similarity, as in the text; the code learns a distance.
- Fig. 6 ranks places of the learned map, which has 6 x 6 of them. To draw lines between
  patches it weighs here the similarities alpha R that it was computed from, and each
  patch of the query starts at most one line.

Section III-D:

- The part features of Eq. 11 are means over runs of 60 patches, which a second copy of
  the last block and norm puts out; classifiers stand behind BNNecks, whose outputs are
  what is tested with; the triplet loss has the soft margin, and the identity loss no
  smoothing (the code, after TransReID).
- Both partners of an image are in its batch (the code); the text does not say where
  they are from.
- Eq. 10 has no sum, so a batch's is the mean over its pairs (`verification_reduction`),
  at the text's rate of 0.01; with the sum it would learn nothing at that rate
  (`benchmarks/verification.py`). The code has a tenth of the rate and the sum over the
  128 pairs of a GPU: steps 12.8 times as long.
- How s_ij joins the distance is not said: z-scores for each query, with weight 0.3 (the
  code, which takes the logit in place of s_ij: `fusion_score`). Parts weigh 1/4 in the
  vector, which is brought to unit length, and distances are squared (the code).

Section IV:

- Stage one has a tenth of the text's rate of 0.08, at which a ViT is likely to diverge
  (the code; `row=text-rates`). Epochs, the warm-up of 5 of them from a hundredth of the
  rate, the cosine's end at 0.002 of it, twice the rate for biases, drop path of 0.1 and
  a stride of 11 are the code's; padding of 10 and the erasing are BoT's. Stage two has
  batches of 64, too. Channels have mean and deviation 0.5 (the code, as the weights).
- What is trained on for Occluded-ReID is not said: Market-1501 (the code), as the text
  has it for the partial sets.
- The baseline of IV-D, "the TransReID model", is this one without ContrastAttn, which
  Table VI's figures fit: it has no camera embedding and no jigsaw. End to end (Table
  V), Eqs 12 and 13 are added.

`row=authors-code` also sets what is in the code and not in the text: rank weights
(`rank_decays`), half the weight of Eq. 11 (`base_weight`), no contrast in the first
epoch (`contrast_from`), and in stage two a margin between logits
(`verification_margin`), hard pairs by the CLS feature after 20 epochs (`mining`) and
batches of 128; two GPUs' statistics, pairs and mining (`bn_groups`, `mining_groups`);
camera embeddings on the Duke sets (`cameras`), and the noise of its erasing, clipped to
what a pixel can be. It leaves out: occluders pasted over images (the bank is not
published; a step of the config), bicubic resizing, half precision (`dtype`), images as
their own positives, a w that grows once more in stage two, a schedule in whole epochs
whose cosine begins with the warm-up, decay and statistics of the heads that go on in
stage two, running statistics of the first GPU alone, PyTorch's start of CorreL's MLP
and of biases, and what is named above as a deviation from the code (stripes, w and
alpha at test, similarity).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.backbones.patches import grid_size
from reid_jax.backbones.vit import VisionTransformer
from reid_jax.backbones.vit_parts import LocalBranch, runs
from reid_jax.errors import UserError, check_choices
from reid_jax.layers.contrast_attn import ContrastAttn
from reid_jax.layers.correl import CorreL
from reid_jax.layers.correlation4d import STACK
from reid_jax.layers.heads import BNNeck, token_heads
from reid_jax.layers.pair_blocks import in_blocks
from reid_jax.layers.pixels import standardise
from reid_jax.losses import verification
from reid_jax.losses.contrastive import inter_image, intra_image
from reid_jax.losses.identity import accuracy, cross_entropy
from reid_jax.losses.triplet import batch_hard_triplet
from reid_jax.models import method
from reid_jax.retrieval.distances import euclidean, normalise
from reid_jax.retrieval.fusion import fuse_z_scores

SHOWN_LINES = 10
"""Figure 6 shows the ten strongest correspondences; of these a picture draws the ones
that can be told apart."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Fields of `config.model`, in the order of the paper; defaults are its setting.

    Raises:
      UserError: for values and combinations that have no meaning.
    """

    # ContrastAttn: whether, and after which layers of the Transformer, from 1.
    attention: bool = True
    attention_layers: Sequence[int] = (3, 5, 7)
    # w of each of these layers, and the epochs over which it grows from 0.
    residual_weights: Sequence[float] = (0.5, 0.25, 0.1)
    ramp_epochs: float = 20.0
    # The tokens become x + w f_l; False: f_l.
    residual: bool = True
    # Whether the gradient of MLP_e's output reaches the features.
    attention_gradient: bool = False
    # Whether the embedding of the layer before is added to MLP_e's output.
    accumulate: bool = False
    # K of Eq. 6, and the stripes of alpha.
    stripes: int = 4
    # lambda_1 and lambda_2 of Eq. 12, and the epochs after which they count.
    inter_weight: float = 1.0
    intra_weight: float = 0.5
    contrast_from: float = 0.0
    # () or beta of the rank weights of focused, other and stripe features; the code
    # has (0.75, 0.05, 0.1).
    rank_decays: Sequence[float] = ()
    # Of the identity loss on attended means; 0 leaves its heads away.
    auxiliary_weight: float = 1.0

    # CorreL: whether, and whether with alpha.
    correlation: bool = True
    position_embedding: bool = True
    # What it compares: "tokens" (after the residual) or "attended" (f_l).
    correlate: str = "tokens"
    # C_r; (kernel, stride, channels) of the 4D convolutions.
    correlation_channels: int = 256
    correlation_blocks: Sequence[Sequence[int]] = STACK

    # K of Eq. 11, the equation's weight, and the losses in it; a margin of None is the
    # soft margin.
    parts: int = 4
    base_weight: float = 1.0
    label_smoothing: float = 0.0
    margin: float | None = None
    # CorreL is trained after the extractor (Table V).
    two_stage: bool = True
    # Eq. 10 of a batch: "mean" over its pairs, or "sum".
    verification_reduction: str = "mean"
    # Of a ranking loss of logits, added to Eq. 10; 0: without.
    verification_margin: float = 0.0
    # Pairs for verification: "random", or "hard" after so many epochs.
    mining: str = "random"
    mining_from: float = 20.0
    # Images whose two pairs are computed at once in training, over all devices; it
    # decides memory and speed, not results.
    pair_block: int = 16
    # What joins the distance: "similarity" (s_ij) or its "logit"; its weight; the
    # candidates to score, 0: the whole gallery.
    fusion_score: str = "similarity"
    fusion_weight: float = 0.3
    top_k: int = 0

    # The Transformer: camera embeddings (0: none), side of a patch, rows and columns
    # between patches, and its size.
    cameras: int = 0
    patch_size: int = 16
    stride: Sequence[int] = (11, 11)
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4
    drop_path: float = 0.1
    # Statistics, and what compares images with each other in training, per group of
    # rows, as on that many GPUs.
    bn_groups: int = 1
    mining_groups: int = 1
    # Of the channels, in units of the full range.
    mean: Sequence[float] = (0.5, 0.5, 0.5)
    std: Sequence[float] = (0.5, 0.5, 0.5)
    # "float32" or "bfloat16", of the matrix products.
    dtype: str = "float32"
    # Of the Transformer's self-attention, see there ("einsum", "xla", "cudnn" or
    # "pallas"); ContrastAttn is no such attention.
    attention_implementation: str = "einsum"
    # Whether the Transformer's blocks are computed again for their gradients: less
    # memory, about a third more arithmetic.
    remat: bool = False

    def __post_init__(self) -> None:
        check_choices(
            correlate=(self.correlate, ("tokens", "attended")),
            verification_reduction=(self.verification_reduction, ("mean", "sum")),
            mining=(self.mining, ("random", "hard")),
            fusion_score=(self.fusion_score, ("similarity", "logit")),
        )
        least = {"top_k": 0, "pair_block": 1, "stripes": 1, "parts": 1}
        for name, limit in least.items():
            if getattr(self, name) < limit:
                raise UserError(f"{name}={getattr(self, name)}: at least {limit}")
        if len(self.rank_decays) not in (0, 3):
            raise UserError(
                f"rank_decays={tuple(self.rank_decays)} is () or three numbers, for "
                "focused, other and stripe features"
            )
        blocks = self.correlation_blocks
        if not blocks or any(len(block) != 3 for block in blocks):
            raise UserError(
                f"correlation_blocks={tuple(map(tuple, blocks))} must name at least "
                "one layer, each by kernel, stride and channels, as (5, 2, 128)"
            )
        self._check_layers()

    def _check_layers(self) -> None:
        layers, depth = self.layers, self.depth
        if list(layers) != sorted({*layers}) or not all(0 < i <= depth for i in layers):
            raise UserError(
                f"attention_layers={layers} must rise from 1 to at most {depth}, the "
                "Transformer's depth"
            )
        if self.attention and len(self.residual_weights) != len(layers):
            raise UserError(
                f"residual_weights={tuple(self.residual_weights)} needs a number for "
                f"each of the attention_layers {layers}"
            )
        if self.correlation and not layers:
            raise UserError(
                "correlation compares the features of ContrastAttn layers: name some "
                "in attention_layers and set attention=True, or set correlation=False"
            )

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers of the Transformer that a ContrastAttn layer follows."""
        return tuple(self.attention_layers) if self.attention else ()

    def backbone(self, image_size: tuple[int, int]) -> VisionTransformer:
        """The Transformer for images of this height and width."""
        return VisionTransformer(
            image_size=tuple(image_size),
            patch_size=self.patch_size,
            stride=tuple(self.stride),
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            drop_path=self.drop_path,
            cameras=self.cameras,
            dtype=self.dtype,
            attention_implementation=self.attention_implementation,
            remat=self.remat,
        )

    def correl(self, grid: tuple[int, int]) -> CorreL | None:
        """CorreL for a grid of patches, if there is one."""
        if not self.correlation:
            return None
        return CorreL(
            grid,
            levels=len(self.layers),
            channels=self.correlation_channels,
            blocks=tuple(map(tuple, self.correlation_blocks)),
            position_embedding=self.position_embedding,
            stripes=self.stripes,
            bn_groups=self.bn_groups,
            dtype=self.dtype,
        )


# III-A. The whole network: III-B is in layers/contrast_attn.py, III-C in
# layers/correl.py.


class Network(nn.Module):
    """The extractor (Transformer, ContrastAttn, local branch, heads) and CorreL.

    Attributes:
      backbone: the Transformer.
      correl: None without CorreL.
      options: of the method.
      grid: rows and columns of the patches.
      num_classes: training identities.
    """

    backbone: VisionTransformer
    correl: CorreL | None
    options: Options
    grid: tuple[int, int]
    num_classes: int

    def setup(self) -> None:
        """Everything but the backbone and CorreL, which come from outside."""
        vit, options = self.backbone, self.options
        self.contrast_attn = [
            ContrastAttn(
                self.grid,
                stripes=options.stripes,
                num_classes=self.num_classes if options.auxiliary_weight else 0,
                gradient=options.attention_gradient,
                bn_groups=options.bn_groups,
                dtype=options.dtype,
            )
            for _ in options.layers
        ]
        self.local = LocalBranch(
            vit.heads,
            vit.mlp_ratio,
            vit.drop_path,
            vit.dtype,
            vit.attention_implementation,
            vit.remat,
        )
        self.heads = BNNeck(self.num_classes, options.bn_groups)

    def __call__(self, images: jax.Array) -> None:
        """Visits every parameter, for `init`."""
        outputs = self.extract(images, train=False)
        if self.correl is not None:
            maps = self.embed_levels(outputs["levels"], train=False)
            self.correl(maps, maps)

    def embed_levels(self, levels: Sequence[jax.Array], *, train: bool) -> jax.Array:
        """`CorreL.embed`, within the whole network's collections."""
        return self.correl.embed(levels, train=train)

    def extract(
        self,
        images: jax.Array,
        camera: jax.Array | None = None,
        *,
        train: bool,
        ramp: jax.Array | float = 1.0,
    ) -> dict[str, Any]:
        """Runs standardised images [B, H, W, 3].

        Args:
          images: float32.
          camera: int [B], where there are camera embeddings.
          train: training mode of stochastic depth and batch normalisation.
          ramp: multiplies the residual weights; 1 at test.

        Returns:
          before, after [B, 1 + K, D] and logits [B, 1 + K, num_classes], of CLS and
          parts; attention: what each ContrastAttn layer returned; levels: the
          features [B, H, W, D] that CorreL compares, one of each.
        """
        kept: list[dict[str, jax.Array]] = []
        levels: list[jax.Array] = []

        def between(index: int, tokens: jax.Array) -> jax.Array:
            if index + 1 not in self.options.layers:
                return tokens
            cls, patches = tokens[:, :1], tokens[:, 1:]
            patches, outputs, compared = self._attend(patches, kept, train, ramp)
            kept.append(outputs)
            levels.append(compared.reshape(compared.shape[0], *self.grid, -1))
            return jnp.concatenate([cls, patches], axis=1)

        outputs = self.backbone(images, train=train, camera=camera, between=between)
        local = self.local(outputs["before_last"], train=train)[:, 1:]
        part_features = runs(local, self.options.parts).mean(2)
        features = jnp.concatenate([outputs["cls"][:, None], part_features], axis=1)
        heads = token_heads(self.heads, features, train=train)
        return {**heads, "attention": tuple(kept), "levels": tuple(levels)}

    def _attend(
        self,
        patches: jax.Array,
        before: Sequence[dict[str, jax.Array]],
        train: bool,
        ramp: jax.Array | float,
    ) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
        """The next ContrastAttn layer, after those whose outputs are `before`.

        Returns:
          the tokens for the next layer of the Transformer, what ContrastAttn returned,
          and what CorreL compares; tokens are [B, HW, D].
        """
        options, number = self.options, len(before)
        previous = before[-1]["embedding"] if before and options.accumulate else 0.0
        outputs = self.contrast_attn[number](patches, previous, train=train)
        attended = outputs["attended"]
        if options.residual:
            patches = patches + ramp * options.residual_weights[number] * attended
        else:
            patches = attended
        compared = patches if options.correlate == "tokens" else attended
        return patches, outputs, compared


class Method(method.Method):
    """CpaCol and the rows of its ablations.

    Stages are `train` (stage I, or everything at once if not `two_stage`) and, with
    both CorreL and `two_stage`, `correlate` (stage II).

    Args:
      num_classes: training identities.
      image_size: height and width.
      **fields: of `Options`.
    """

    squared_distances = True

    def __init__(
        self, num_classes: int, image_size: tuple[int, int] = (256, 128), **fields: Any
    ):
        self.options = options = Options(**fields)
        backbone = options.backbone(image_size)
        grid = grid_size(backbone.image_size, backbone.patch_size, backbone.stride)
        self.module = Network(
            backbone=backbone,
            correl=options.correl(grid),
            options=options,
            grid=grid,
            num_classes=num_classes,
        )
        if options.correlation and options.two_stage:
            self.stages = ("train", "correlate")
        if options.cameras:
            self.embed_inputs = ("camera",)
        self.position_grid = grid
        self.pretrained_copies = {
            "local/block": f"backbone/blocks_{options.depth - 1}",
            "local/norm": "backbone/norm",
        }

    def init(self, rng: jax.Array, batch: method.Batch) -> method.Variables:
        """Fresh variables; the pretrained Transformer is loaded over them."""
        images = jnp.zeros((1, *batch["image"].shape[1:]))
        return self.module.init(rng, images)

    # III-D. Training.

    def frozen(self, stage: str) -> tuple[str, ...]:
        """CorreL waits in stage one; everything else is frozen in stage two."""
        if "correlate" not in self.stages:
            return ()
        return ("correl/",) if stage == "train" else ("(?!correl/)",)

    def objective(
        self,
        variables: method.Variables,
        batch: method.Batch,
        *,
        rng: jax.Array,
        epoch: jax.Array,
        stage: str,
    ) -> method.Outcome:
        """Eq. 12, Eq. 13 or, end to end, their sum; metrics are the terms."""
        drop_path, pairs = jax.random.split(rng)
        verify = partial(self._verify, labels=batch["label"], rng=pairs, epoch=epoch)
        if stage == "correlate":
            outputs = jax.lax.stop_gradient(self._extract(variables, batch))
            return verify(variables, outputs)
        growth = self.options.ramp_epochs
        outputs, collections = self._extract(
            variables,
            batch,
            train=True,
            ramp=jnp.clip(epoch / growth, 0, 1) if growth else 1.0,
            mutable=["batch_stats"],
            rngs={"drop_path": drop_path},
        )
        loss, metrics = self._extraction_loss(outputs, batch["label"], epoch)
        if self.module.correl is not None and "correlate" not in self.stages:
            variables = {**variables, **collections}
            further, figures, collections = verify(variables, outputs)
            loss, metrics = loss + further, metrics | figures
        return loss, metrics, collections

    def _extraction_loss(
        self, outputs: dict[str, Any], labels: jax.Array, epoch: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Eq. 12 and its terms."""
        options = self.options
        smoothed = partial(cross_entropy, smoothing=options.label_smoothing)
        triplet = partial(
            batch_hard_triplet, margin=options.margin, groups=options.mining_groups
        )
        metrics = {
            "loss_id": _cls_and_parts(smoothed, outputs["logits"], labels),
            "loss_triplet": _cls_and_parts(triplet, outputs["before"], labels),
        }
        loss = options.base_weight * sum(metrics.values())  # Eq. 11
        contrast = jnp.where(epoch >= options.contrast_from, 1.0, 0.0)
        weights = {
            "inter": contrast * options.inter_weight,
            "intra": contrast * options.intra_weight,
            "auxiliary": options.auxiliary_weight,
        }
        for name, value in self._attention_losses(outputs["attention"], labels).items():
            metrics[f"loss_{name}"] = value
            loss += weights[name] * value
        metrics["accuracy"] = accuracy(outputs["logits"][:, 0], labels)
        return loss, metrics

    def _attention_losses(
        self, layers: Sequence[dict[str, jax.Array]], labels: jax.Array
    ) -> dict[str, jax.Array]:
        """Losses of ContrastAttn that have a weight, each the sum over its layers.

        All layers at once: devices exchange features once then, not once a layer.
        """
        if not layers:
            return {}
        options = self.options
        *decays, stripe_decay = options.rank_decays or (0.0, 0.0, 0.0)
        inter = partial(inter_image, decays=tuple(decays), groups=options.mining_groups)
        intra = partial(intra_image, decay=stripe_decay)
        terms = {
            "inter": lambda a: inter(a["focused"], a["rest"], labels),  # Eq. 5
            "intra": lambda a: intra(a["stripes_focused"], a["stripes_rest"]),  # Eq. 6
            "auxiliary": lambda a: cross_entropy(a["logits"], labels),
        }
        stacked = jax.tree.map(lambda *layers: jnp.stack(layers), *layers)
        return {
            name: jax.vmap(term)(stacked).sum()
            for name, term in terms.items()
            if getattr(options, f"{name}_weight")
        }

    def _verify(
        self,
        variables: method.Variables,
        outputs: dict[str, Any],
        *,
        labels: jax.Array,
        rng: jax.Array,
        epoch: jax.Array,
    ) -> method.Outcome:
        """Eq. 13: each image with one image of its identity and one of another."""
        maps, new = self.module.apply(
            variables,
            outputs["levels"],
            train=True,
            mutable=["batch_stats"],
            method="embed_levels",
        )
        partners = self._partners(outputs["before"][:, 0], labels, rng, epoch)
        found = self._pair_logits(variables, maps, partners)
        loss, metrics = self._verification_loss(found)
        return loss, metrics, new

    def _verification_loss(
        self, logits: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Eq. 10 of logits [B, 2], and its terms."""
        options = self.options
        same = jnp.broadcast_to(jnp.array([True, False]), logits.shape)
        loss = verification.verification_loss(
            logits,
            same,
            reduction=options.verification_reduction,
            groups=options.mining_groups,
        )
        right = jnp.mean((logits > 0) == same, dtype=jnp.float32)
        metrics = {"loss_verification": loss, "pair_accuracy": right}
        if options.verification_margin:
            metrics["loss_ranking"] = verification.margin_ranking_loss(
                *logits.T, margin=options.verification_margin
            )
            loss += metrics["loss_ranking"]
        return loss, metrics

    def _partners(
        self, cls: jax.Array, labels: jax.Array, rng: jax.Array, epoch: jax.Array
    ) -> verification.Partners:
        """One positive and one negative for each image (the text's are random)."""
        groups = self.options.mining_groups
        drawn = verification.random_partners(labels, rng, groups=groups)
        if self.options.mining == "random":
            return drawn
        cls = jax.lax.stop_gradient(cls)
        hardest = verification.hardest_partners(
            labels, euclidean(cls, cls), groups=groups
        )
        late = epoch >= self.options.mining_from
        return jax.tree.map(partial(jnp.where, late), hardest, drawn)

    def _pair_logits(
        self,
        variables: method.Variables,
        maps: jax.Array,
        partners: verification.Partners,
    ) -> jax.Array:
        """Logits [B, 2] of each image with its positive and its negative."""
        params = {"params": variables["params"]["correl"]}

        def logits(
            image: jax.Array, positive: jax.Array, negative: jax.Array
        ) -> jax.Array:
            both = jnp.stack([positive, negative], axis=1)
            return self.module.correl.apply(params, image[:, None], both)

        return in_blocks(
            logits,
            maps,
            maps[partners.positive],
            maps[partners.negative],
            block=self.options.pair_block,
        )

    # III-D, last paragraph. Inference.

    def embed(
        self,
        variables: method.Variables,
        images: jax.Array,
        camera: jax.Array | None = None,
        parts: jax.Array | None = None,
    ) -> method.Embedding:
        """`vector` [B, (1 + K) * D] of unit norm; each part weighs 1 / K."""
        del parts
        outputs = self._extract(variables, {"image": images, "camera": camera})
        tokens = outputs["after"].at[:, 1:].divide(self.options.parts)
        return {"vector": normalise(tokens.reshape(tokens.shape[0], -1))}

    def distance(self, query: method.Embedding, gallery: method.Embedding) -> jax.Array:
        """Squared Euclidean, as the code."""
        return jnp.square(euclidean(query["vector"], gallery["vector"]))

    def pair_scorer(self, stage: str) -> Scorer | None:
        """CorreL, once it is trained."""
        if self.module.correl is None or stage != self.stages[-1]:
            return None
        return Scorer(self)

    def _extract(
        self,
        variables: method.Variables,
        batch: method.Batch,
        *,
        train: bool = False,
        **further: Any,
    ) -> Any:
        """`Network.extract` of a batch; in test mode unless said otherwise."""
        options = self.options
        images = standardise(batch["image"], options.mean, options.std)
        camera = batch["camera"] if options.cameras else None
        return self.module.apply(
            variables, images, camera, train=train, method="extract", **further
        )

    # IV-D, Figure 7.

    def pictures(
        self, variables: method.Variables, batch: method.Batch
    ) -> dict[str, method.Maps]:
        """The attention map of every ContrastAttn layer."""
        layers = self.options.layers
        if not layers:
            return {}
        outputs = jax.jit(self._extract)(variables, batch)
        values = jnp.stack([a["attention"] for a in outputs["attention"]], axis=1)
        titles = tuple(f"attention, layer {layer}" for layer in layers)
        return {"attention": method.Maps(values, titles)}


class Scorer(method.PairScorer):
    """s_ij of CorreL, and how it joins the distance."""

    def __init__(self, cpacol: Method):
        self._cpacol = cpacol
        self._options = cpacol.options
        self._correl = cpacol.module.correl
        self.top_k = cpacol.options.top_k or None
        self.inputs = cpacol.embed_inputs

    def pair_maps(
        self,
        variables: method.Variables,
        images: jax.Array,
        camera: jax.Array | None = None,
        parts: jax.Array | None = None,
    ) -> jax.Array:
        """omega of the three levels, [B, L, H, W, C_r]."""
        del parts
        outputs = self._cpacol._extract(variables, {"image": images, "camera": camera})
        return self._correl.apply(
            _of_correl(variables), outputs["levels"], train=False, method="embed"
        )

    def score_pairs(
        self,
        variables: method.Variables,
        query_maps: jax.Array,
        candidate_maps: jax.Array,
    ) -> jax.Array:
        """s_ij in [0, 1] or, by `fusion_score`, its logit; float32 [Q, K]."""
        logits = self._correl.apply(
            _of_correl(variables), query_maps[:, None], candidate_maps
        )
        if self._options.fusion_score == "logit":
            return logits
        return jax.nn.sigmoid(logits)

    def fuse(
        self, distances: jax.Array, candidates: jax.Array, scores: jax.Array
    ) -> jax.Array:
        """z-scores over the candidates; the others stay behind them."""
        weight = self._options.fusion_weight
        return fuse_z_scores(distances, candidates, scores, weight=weight)

    # Figures 6 and 9.

    def pictures(
        self,
        variables: method.Variables,
        query_maps: jax.Array,
        candidate_maps: jax.Array,
    ) -> dict[str, method.Correspondences]:
        """The strongest correspondences of each pair, and its s_ij."""
        find = partial(self._correl.apply, method="correspondences", count=SHOWN_LINES)
        *found, logits = jax.jit(find)(
            _of_correl(variables), query_maps[:, None], candidate_maps
        )
        score = jax.nn.sigmoid(logits)
        return {"correspondences": method.Correspondences(*found, score)}


def _cls_and_parts(loss: Any, values: jax.Array, labels: jax.Array) -> jax.Array:
    """The loss of CLS plus the mean over parts, of values [B, 1 + K, ...]."""
    losses = jax.vmap(loss, in_axes=(1, None))(values, labels)
    return losses[0] + losses[1:].mean()


def _of_correl(variables: method.Variables) -> method.Variables:
    """CorreL's own share of the collections."""
    return {name: variables[name]["correl"] for name in ("params", "batch_stats")}
