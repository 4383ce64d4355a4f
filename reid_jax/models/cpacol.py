"""CpaCol: attention that learns foreground by contrast, and correlation of image pairs.

Liying Gao, Bingliang Jiao, Yuzhou Long, Kai Niu, He Huang, Peng Wang, Yanning Zhang:
"Contrastive Pedestrian Attentive and Correlation Learning Network for Occluded Person
Re-Identification". The authors' code is at github.com/nwpugaoliying/CpaCol; "the code"
below means it.

Implemented: ContrastAttn (section III-B), CorreL (III-C), both training stages and the
inference (III-D), and every row of the ablations (IV-D):

  row                        fields
  Table IV  baseline         attention=False, correlation=False
            +attention       correlation=False, inter_weight=intra_weight=0
                             (not in the table; Fig. 7's IdenAttn)
            +Inter.          correlation=False, intra_weight=0 (Fig. 7's Inter.)
            +Intra.          correlation=False (Fig. 7's ContrastAttn)
            +4D Convs        position_embedding=False
            +PosEmb.         the defaults
  Table V   end-to-end       two_stage=False
  Table VI                   rows of Table IV
  Fig. 8    A, B             attention_layers, residual_weights
            C                intra_weight=0, inter_weight
            D                intra_weight

Deviations from the text, and what it leaves open:

- The contrastive losses are means, and similarities are clamped to [0.0005, 0.9995]
  before every logarithm (the code); Eqs 3-6 are sums without bounds.
- MLP_e sees features whose gradient is stopped, so that contrast shapes the attention
  and not the Transformer (the code; `attention_gradient`). It does not add the previous
  layer's embedding as the code does; `accumulate=True`.
- Whether f_l of Eq. 7 replaces the tokens or joins them is not said: they become
  x + w f_l with the code's w, which grows over the first 20 epochs. `residual=False`
  replaces them. At test w is full; the code leaves its epoch at 0 there, so that its
  ContrastAttn has no effect on the features it is tested with.
- CorreL compares f_l; the code compares the tokens after the residual
  (`correlate="tokens"`).
- alpha multiplies the similarities at test, too, which the code omits.
- s_ij is a similarity, as in the text; the code learns a distance. It joins the
  distance as the code's does: z-scores for each query, with weight 0.3.
- Stripes cover all rows (22 in 5, 6, 6, 5); the code drops the last two in Eq. 6. The
  part features of Eq. 11 are the code's runs of 60 patches.
- The triplet loss has the soft margin, and the identity loss no smoothing (the code).
- Fig. 6 ranks places of the learned map, which has 6 x 6 of them. To draw lines between
  patches it weighs here the similarities alpha R that it was computed from, and each
  patch of the query starts at most one line.

In the code and not in the text, off by default: camera embedding (`cameras`), rank
weights (`rank_decays`), a margin term (`verification_margin`) and hard mining
(`mining`) in stage two, half the weight of Eq. 11 (`base_weight=0.5`), occluders pasted
and noise erased (augmentation steps); `row=authors-code` of the config sets most. On by
default: an identity loss on each attended mean (`auxiliary_weight`), which Table VI's
parameters include.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.backbones.patches import grid_size
from reid_jax.backbones.vit import VisionTransformer
from reid_jax.backbones.vit_parts import LocalBranch, runs
from reid_jax.errors import UserError, check_choices
from reid_jax.layers.correlation4d import STACK, CorrelationStack, similarity
from reid_jax.layers.heads import BNNeck, token_heads
from reid_jax.layers.norm import BatchNorm
from reid_jax.layers.pair_blocks import in_blocks
from reid_jax.layers.pixels import standardise
from reid_jax.layers.stripes import stripe_means, stripe_positions
from reid_jax.losses import verification
from reid_jax.losses.contrastive import inter_image, intra_image
from reid_jax.losses.identity import accuracy, cross_entropy
from reid_jax.losses.triplet import batch_hard_triplet
from reid_jax.models import method
from reid_jax.retrieval.distances import euclidean, normalise
from reid_jax.retrieval.fusion import fuse_z_scores

SHOWN_LINES = 10
"""Figure 6 shows the ten strongest correspondences."""


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
    # lambda_1 and lambda_2 of Eq. 12.
    inter_weight: float = 1.0
    intra_weight: float = 0.5
    # () or beta of the rank weights of focused, other and stripe features; the code
    # has (0.75, 0.05, 0.1).
    rank_decays: Sequence[float] = ()
    # Of the identity loss on attended means; 0 leaves its heads away.
    auxiliary_weight: float = 1.0

    # CorreL: whether, and whether with alpha.
    correlation: bool = True
    position_embedding: bool = True
    # What it compares: "attended" (f_l) or "tokens" (after the residual).
    correlate: str = "attended"
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
    # Pairs for verification: "random", or "hard" after so many epochs.
    mining: str = "random"
    mining_from: float = 20.0
    # Of a ranking loss added to Eq. 10; 0: without.
    verification_margin: float = 0.0
    # Images whose two pairs are computed at once in training, over all devices.
    pair_block: int = 16
    # Weight of s_ij beside the distance; candidates to score, 0: the whole gallery.
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
    # Statistics and triplet mining per group of rows, as on that many GPUs.
    bn_groups: int = 1
    mining_groups: int = 1
    # Of the channels, in units of the full range.
    mean: Sequence[float] = (0.5, 0.5, 0.5)
    std: Sequence[float] = (0.5, 0.5, 0.5)
    # "float32" or "bfloat16", of the matrix products.
    dtype: str = "float32"
    # Of the Transformer's self-attention, see there; ContrastAttn is no such attention.
    attention_implementation: str = "einsum"
    # Whether the Transformer's blocks are computed again for their gradients.
    remat: bool = False

    def __post_init__(self) -> None:
        layers, depth = self.layers, self.depth
        check_choices(
            correlate=(self.correlate, ("attended", "tokens")),
            mining=(self.mining, ("random", "hard")),
        )
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
        for name, least in (
            ("top_k", 0),
            ("pair_block", 1),
            ("stripes", 1),
            ("parts", 1),
        ):
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)}: at least {least}")
        if self.correlation and not layers:
            raise UserError(
                "correlation compares the features of ContrastAttn layers: name some "
                "in attention_layers and set attention=True, or set correlation=False"
            )
        if len(self.rank_decays) not in (0, 3):
            raise UserError(
                f"rank_decays={tuple(self.rank_decays)} is () or three numbers, for "
                "focused, other and stripe features"
            )

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers of the Transformer that a ContrastAttn layer follows."""
        return tuple(self.attention_layers) if self.attention else ()


# III-B. Contrastive pedestrian attention.


class Mlp3(nn.Module):
    """MLP_e and MLP_r: three layers, of which the inner two are half as wide."""

    use_bias: bool
    dtype: Any

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Maps [..., D] to the same shape, float32."""
        width = tokens.shape[-1]
        for index, features in enumerate((width // 2, width // 2, width)):
            if index:
                norm = nn.LayerNorm(epsilon=1e-5, dtype=jnp.float32)
                tokens = jax.nn.gelu(norm(tokens), approximate=False)
            tokens = nn.Dense(
                features,
                use_bias=self.use_bias,
                dtype=self.dtype,
                kernel_init=nn.initializers.normal(0.02),
            )(tokens)
        return tokens.astype(jnp.float32)


class ContrastAttn(nn.Module):
    """A contrastive pedestrian attention layer (Fig. 3).

    Attributes:
      grid: rows and columns of the patches.
      num_classes: training identities, for the auxiliary head.
    """

    options: Options
    grid: tuple[int, int]
    num_classes: int

    @nn.compact
    def __call__(
        self, features: jax.Array, previous: jax.Array | float, *, train: bool
    ) -> dict[str, jax.Array]:
        """Attends to patch tokens f [B, HW, D]; `previous` is added to the embedding.

        Returns:
          attention [B, H, W]; embedding [B, HW, D]; attended [B, HW, D], f_l of Eq. 7;
          focused, rest [B, D] and the same of stripes [B, K, D], `stripes_focused`
          and `stripes_rest`; where there is a head, `logits` [B, num_classes].
        """
        options, dtype = self.options, jnp.dtype(self.options.dtype)
        norm = partial(BatchNorm, groups=options.bn_groups)
        known = options.attention_gradient
        seen = features if known else jax.lax.stop_gradient(features)
        embedding = Mlp3(use_bias=True, dtype=dtype, name="mlp_e")(seen) + previous
        maps = embedding.reshape(-1, *self.grid, embedding.shape[-1])
        score = nn.Conv(1, (3, 3), use_bias=False, dtype=dtype, name="conv")(maps)
        score = norm(name="bn")(score.astype(jnp.float32), train=train)
        attention = jax.nn.sigmoid(score[..., 0])  # Eq. 1
        outputs = {"embedding": embedding, "attention": attention}
        for name, weights in ("focused", attention), ("rest", 1 - attention):
            weighed = maps * weights[..., None]
            outputs[name] = weighed.mean((1, 2))  # Eq. 2
            outputs[f"stripes_{name}"] = stripe_means(weighed, options.stripes)
        attended = Mlp3(use_bias=False, dtype=dtype, name="mlp_r")(features)
        flat = attention.reshape(*attended.shape[:2], 1)
        outputs["attended"] = attended * flat  # Eq. 7
        if options.auxiliary_weight:
            after = norm(name="auxiliary_bn")(outputs["focused"], train=train)
            outputs["logits"] = nn.Dense(
                self.num_classes,
                use_bias=False,
                kernel_init=nn.initializers.normal(0.001),
                name="auxiliary_classifier",
            )(after)
        return outputs


# III-C. Correlation learning.


class CorreL(nn.Module):
    """The correlation learning module (Fig. 5).

    Attributes:
      grid: rows and columns of the patches.
    """

    options: Options
    grid: tuple[int, int]

    def setup(self) -> None:
        """One omega for each ContrastAttn layer; everything else is shared."""
        options, dtype = self.options, jnp.dtype(self.options.dtype)
        self.omega = [
            nn.Conv(
                options.correlation_channels,
                (3, 3),
                use_bias=False,
                dtype=dtype,
                kernel_init=nn.initializers.he_normal(),
            )
            for _ in options.layers
        ]
        self.omega_bn = [BatchNorm(options.bn_groups) for _ in options.layers]
        if options.position_embedding:
            start = stripe_positions(self.grid, options.stripes)
            self.alpha = self.param("alpha", lambda _: jnp.asarray(start))
        blocks = tuple(map(tuple, options.correlation_blocks))
        self.stack = CorrelationStack(blocks, dtype=dtype)
        self.hidden = nn.Dense(blocks[-1][-1])
        self.output = nn.Dense(1)

    def embed(self, levels: Sequence[jax.Array], *, train: bool) -> jax.Array:
        """omega of Eq. 9: from [B, H, W, D] each to [B, L, H, W, C_r] of `dtype`."""
        embedded = [
            norm(conv(level), train=train)
            for conv, norm, level in zip(self.omega, self.omega_bn, levels, strict=True)
        ]
        return jnp.stack(embedded, axis=1)

    def similarities(self, query: jax.Array, gallery: jax.Array) -> jax.Array:
        """R [..., H, W, H, W, L] of maps [..., L, H, W, C_r] that broadcast."""
        dense = similarity(query, gallery)  # Eq. 9
        if not self.options.position_embedding:
            return dense
        return dense * self.alpha[..., None]

    def __call__(self, query: jax.Array, gallery: jax.Array) -> jax.Array:
        """Logits of s_ij, float32 [...], of maps as in `similarities`."""
        return self._verify(self.similarities(query, gallery))[0]

    def correspondences(
        self, query: jax.Array, gallery: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The ten strongest pairs of places, at most one for each query patch.

        Returns:
          Patch numbers of query and gallery, int [..., M], and their responses
          [..., M]: the mean over levels of R times the learned map at that place.
        """
        dense = self.similarities(query, gallery)
        learned = self._verify(dense)[1].astype(jnp.float32).mean(-1)
        step = math.prod(stride for _, stride, _ in self.options.correlation_blocks)
        for axis, size in zip((-4, -3, -2, -1), (*self.grid, *self.grid), strict=True):
            nearest = (np.arange(size) + step // 2) // step
            nearest = np.minimum(nearest, learned.shape[axis] - 1)
            learned = jnp.take(learned, nearest, axis)
        response = dense.mean(-1) * learned
        patches = self.grid[0] * self.grid[1]
        response = response.reshape(*response.shape[:-4], patches, patches)
        best = response.max(-1)
        strength, queries = jax.lax.top_k(best, min(SHOWN_LINES, patches))
        partners = jnp.take_along_axis(response.argmax(-1), queries, axis=-1)
        return queries, partners, strength

    def _verify(self, dense: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits [...] and R_out [..., h, w, h, w, C] of R."""
        pairs = dense.shape[:-5]
        outputs = self.stack(dense.reshape(-1, *dense.shape[-5:]))
        logits = self.output(jax.nn.relu(self.hidden(outputs["vector"])))
        learned = outputs["map"]
        return logits.reshape(pairs), learned.reshape(*pairs, *learned.shape[1:])


# III-A. The whole network.


class Network(nn.Module):
    """The extractor (Transformer, ContrastAttn, local branch, heads) and CorreL.

    Attributes:
      backbone: the Transformer.
      correl: None without CorreL.
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
            ContrastAttn(options, self.grid, self.num_classes) for _ in options.layers
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
            maps = self.correl.embed(outputs["levels"], train=False)
            self.correl(maps, maps)

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
        options = self.options
        kept: list[dict[str, jax.Array]] = []
        levels: list[jax.Array] = []

        def between(index: int, tokens: jax.Array) -> jax.Array:
            if index + 1 not in options.layers:
                return tokens
            number, patches = len(kept), tokens[:, 1:]
            previous = kept[-1]["embedding"] if kept and options.accumulate else 0.0
            outputs = self.contrast_attn[number](patches, previous, train=train)
            if options.residual:
                weight = ramp * options.residual_weights[number]
                patches = patches + weight * outputs["attended"]
            else:
                patches = outputs["attended"]
            whole = options.correlate == "tokens"
            compared = patches if whole else outputs["attended"]
            kept.append(outputs)
            levels.append(compared.reshape(compared.shape[0], *self.grid, -1))
            return jnp.concatenate([tokens[:, :1], patches], axis=1)

        outputs = self.backbone(images, train=train, camera=camera, between=between)
        local = self.local(outputs["before_last"], train=train)[:, 1:]
        features = jnp.concatenate(
            [outputs["cls"][:, None], runs(local, options.parts).mean(2)], axis=1
        )
        heads = token_heads(self.heads, features, train=train)
        return {**heads, "attention": tuple(kept), "levels": tuple(levels)}


class Method(method.Method):
    """CpaCol and the rows of its ablations.

    Stages are `train` (stage I, or everything at once if not `two_stage`) and, with
    both CorreL and `two_stage`, `correlate` (stage II).

    Args:
      num_classes: training identities.
      image_size: height and width.
      **fields: of `Options`.
    """

    def __init__(
        self, num_classes: int, image_size: tuple[int, int] = (256, 128), **fields: Any
    ):
        self.options = options = Options(**fields)
        backbone = VisionTransformer(
            image_size=tuple(image_size),
            patch_size=options.patch_size,
            stride=tuple(options.stride),
            width=options.width,
            depth=options.depth,
            heads=options.heads,
            mlp_ratio=options.mlp_ratio,
            drop_path=options.drop_path,
            cameras=options.cameras,
            dtype=options.dtype,
            attention_implementation=options.attention_implementation,
            remat=options.remat,
        )
        grid = grid_size(backbone.image_size, backbone.patch_size, backbone.stride)
        self.module = Network(
            backbone=backbone,
            correl=CorreL(options, grid) if options.correlation else None,
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
    ) -> tuple[jax.Array, dict[str, jax.Array], method.Variables]:
        """Eq. 12, Eq. 13 or, end to end, their sum; metrics are the terms."""
        drop_path, pairs = jax.random.split(rng)
        verify = partial(self._verify, batch=batch, rng=pairs, epoch=epoch)
        if stage == "correlate":
            outputs = jax.lax.stop_gradient(self._extract(variables, batch))
            return verify(variables, outputs)
        growth = self.options.ramp_epochs
        ramp = jnp.clip(epoch / growth, 0, 1) if growth else 1.0
        outputs, collections = self._extract(
            variables,
            batch,
            train=True,
            ramp=ramp,
            mutable=["batch_stats"],
            rngs={"drop_path": drop_path},
        )
        loss, metrics = self._extraction_loss(outputs, batch["label"])
        if self.module.correl is not None and "correlate" not in self.stages:
            variables = {**variables, **collections}
            further, figures, collections = verify(variables, outputs)
            loss, metrics = loss + further, metrics | figures
        return loss, metrics, collections

    def _extraction_loss(
        self, outputs: dict[str, Any], labels: jax.Array
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
        *decays, stripe_decay = options.rank_decays or (0.0, 0.0, 0.0)
        terms = {
            "inter": lambda a: inter_image(
                a["focused"], a["rest"], labels, decays=tuple(decays)
            ),
            "intra": lambda a: intra_image(
                a["stripes_focused"], a["stripes_rest"], decay=stripe_decay
            ),
            "auxiliary": lambda a: cross_entropy(a["logits"], labels),
        }
        for name, term in terms.items():
            weight = getattr(options, f"{name}_weight")
            if weight and outputs["attention"]:
                metrics[f"loss_{name}"] = sum(map(term, outputs["attention"]))
                loss += weight * metrics[f"loss_{name}"]
        metrics["accuracy"] = accuracy(outputs["logits"][:, 0], labels)
        return loss, metrics

    def _verify(
        self,
        variables: method.Variables,
        outputs: dict[str, Any],
        *,
        batch: method.Batch,
        rng: jax.Array,
        epoch: jax.Array,
    ) -> tuple[jax.Array, dict[str, jax.Array], method.Variables]:
        """Eq. 13: each image with one image of its identity and one of another."""
        options, correl = self.options, self.module.correl
        params = {"params": variables["params"]["correl"]}
        maps, new = self.module.apply(
            variables,
            outputs["levels"],
            train=True,
            mutable=["batch_stats"],
            method=lambda network, *args, **kw: network.correl.embed(*args, **kw),
        )
        vectors = _vector(outputs["after"])
        positive, negative = self._partners(vectors, batch["label"], rng, epoch)

        def logits(
            image: jax.Array, positive: jax.Array, negative: jax.Array
        ) -> jax.Array:
            return correl.apply(
                params, image[:, None], jnp.stack([positive, negative], axis=1)
            )

        found = in_blocks(
            logits, maps, maps[positive], maps[negative], block=options.pair_block
        )
        same = jnp.broadcast_to(jnp.array([True, False]), found.shape)
        loss = verification.verification_loss(found, same)  # Eq. 10
        right = jnp.mean((found > 0) == same, dtype=jnp.float32)
        metrics = {"loss_verification": loss, "pair_accuracy": right}
        if options.verification_margin:
            metrics["loss_ranking"] = verification.margin_ranking_loss(
                *jax.nn.sigmoid(found).T, margin=options.verification_margin
            )
            loss += metrics["loss_ranking"]
        return loss, metrics, new

    def _partners(
        self, vectors: jax.Array, labels: jax.Array, rng: jax.Array, epoch: jax.Array
    ) -> verification.Partners:
        """One positive and one negative for each image (the text's are random)."""
        drawn = verification.random_partners(labels, rng)
        if self.options.mining == "random":
            return drawn
        vectors = jax.lax.stop_gradient(vectors)
        hardest = verification.hardest_partners(labels, euclidean(vectors, vectors))
        late = epoch >= self.options.mining_from
        return jax.tree.map(partial(jnp.where, late), hardest, drawn)

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
        return {"vector": _vector(outputs["after"])}

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
        """s_ij, float32 [Q, K] in [0, 1]."""
        logits = self._correl.apply(
            _of_correl(variables), query_maps[:, None], candidate_maps
        )
        return jax.nn.sigmoid(logits)

    def fuse(
        self, distances: jax.Array, candidates: jax.Array, scores: jax.Array
    ) -> jax.Array:
        """z-scores over the candidates; the others stay behind them."""
        weight = self._cpacol.options.fusion_weight
        return fuse_z_scores(distances, candidates, scores, weight=weight)

    def pictures(
        self,
        variables: method.Variables,
        query_maps: jax.Array,
        candidate_maps: jax.Array,
    ) -> dict[str, method.Correspondences]:
        """Figure 6: the strongest correspondences of each pair."""
        find = jax.jit(partial(self._correl.apply, method="correspondences"))
        query, candidate, response = find(
            _of_correl(variables), query_maps[:, None], candidate_maps
        )
        strongest = response.max(-1, keepdims=True)
        return {
            "correspondences": method.Correspondences(
                query=_centres(query, self._correl.grid),
                candidate=_centres(candidate, self._correl.grid),
                strength=response / jnp.where(strongest > 0, strongest, 1),
            )
        }


def _cls_and_parts(loss: Any, values: jax.Array, labels: jax.Array) -> jax.Array:
    """The loss of CLS plus the mean over parts, of values [B, 1 + K, ...]."""
    losses = jax.vmap(loss, in_axes=(1, None))(values, labels)
    return losses[0] + losses[1:].mean()


def _vector(tokens: jax.Array) -> jax.Array:
    """CLS and the parts, each weighing 1 / K, as one unit vector: [B, (1 + K) D]."""
    tokens = tokens.at[:, 1:].divide(tokens.shape[1] - 1)
    return normalise(tokens.reshape(tokens.shape[0], -1))


def _of_correl(variables: method.Variables) -> method.Variables:
    """CorreL's own share of the collections."""
    return {name: variables[name]["correl"] for name in ("params", "batch_stats")}


def _centres(patches: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Row and column of patch centres as fractions of the image, [..., 2]."""
    row, column = jnp.divmod(patches, grid[1])
    return jnp.stack([(row + 0.5) / grid[0], (column + 0.5) / grid[1]], axis=-1)
