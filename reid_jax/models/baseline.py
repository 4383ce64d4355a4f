"""The baselines that the papers measure against, on every backbone.

vit, resnet50, resnet50_ibn_a, hrnet_w32: one global feature, BNNeck, identity loss
with label smoothing after it and batch-hard triplet before it. Recipe of Luo et al.,
"Bag of Tricks and a Strong Baseline for Deep Person Re-Identification", 2019 (BoT);
with a ViT it is the ViT-baseline of AAformer's section IV-B. The ResNets train as the
authors' code does with all tricks (michuanhaohao/reid-strong-baseline,
`softmax_triplet_with_center`): with the centre loss (row `no-center`: without), and
erasing by the colour (152, 142, 127), which is ImageNet's mean taken for a standardised
one. Deviation: the rate changes with every step, not every epoch, which begins the
first epoch at 1 % of it, not at 11 %, and ends the 40th and not the 39th with a fall.

HRNet's feature joins the means of its four widened streams over all places. It is the
mean of their joint map where the streams are enlarged bilinearly with half-pixel
centres. With `align_corners=True`, as re-ID systems on HRNet enlarge them (ISP,
BPBReID), it is not: that weighs the border less than the middle.

osnet_x1_0 and its siblings: Zhou et al., "Omni-Scale Feature Learning for Person
Re-Identification", 2019, and OSNet-AIN, 2021. Its feature is that of its own fully
connected layer. Deviation: BoT's recipe and neck. The authors train with the identity
loss alone and without a neck (`neck="none"`, `triplet_weight=0`), by AMSGrad.

transreid: He et al., "TransReID: Transformer-based Object Re-Identification", 2021.
The CLS token, and four parts from a second copy of the last block over shifted and
shuffled patches (jigsaw patch module, section 3.3), by the configuration that the
authors' code (damo-cv/TransReID) has for people: half of the global feature's losses
and half of the parts' mean (`part_weights`; Eq. 4 has the sum of both), the soft
margin, no label smoothing, erasing by noise, warm-up of 5 epochs, biases at twice the
rate, the camera embedding times 3.0, and a test with the features before BNNeck. Rows:
`baseline` (ViT alone), `jpm` and `sie` (one of its two modules each), `stride12` (its
asterisk; on Occluded-Duke the authors take `stride11`), `384` and `stride12-384` (384 x
128). Deviations: the noise ends at black and white, beyond which a third of N(0, 1)
would lie; training images are resized bilinearly, not bicubically; float32 in place of
mixed precision; the rate changes with every step, its cosine begins after the warm-up,
not under it, and that of biases begins and ends at twice the others'.

pcb: Sun et al., "Beyond Part Models", 2018. Six horizontal stripes of a ResNet-50 with
last stride 1, each averaged and reduced to 256 channels, with a classifier of its own
and the identity loss only, at 384 x 128, where each stripe is four rows; row `256` is
256 x 128, with stripes of two and of three rows. Deviations: BNNeck in place of PCB's
plain classifier, the mean over stripes in place of the sum, and the batches, schedule
and augmentation of BoT, so that one recipe trains all baselines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from reid_jax.backbones.attention import attend_and_keep
from reid_jax.backbones.hrnet import HRNet
from reid_jax.backbones.options import check_options
from reid_jax.backbones.osnet import SIZES as OSNETS
from reid_jax.backbones.osnet import OSNet
from reid_jax.backbones.patches import grid_size
from reid_jax.backbones.resnet import ResNet
from reid_jax.backbones.vit import VisionTransformer
from reid_jax.backbones.vit_parts import LocalBranch, runs, shift_and_shuffle, with_cls
from reid_jax.errors import UserError, check_choices
from reid_jax.layers.heads import BNNeck, LinearHead, token_heads
from reid_jax.layers.heat_maps import activation, relative, rollout
from reid_jax.layers.norm import BatchNorm
from reid_jax.layers.pixels import standardise
from reid_jax.layers.pooling import GeneralizedMean
from reid_jax.layers.stripes import stripe_borders
from reid_jax.losses.features import FeatureLosses
from reid_jax.models import method
from reid_jax.retrieval.distances import euclidean, normalise

TRANSREID_PARTS = 4
TRANSREID_SHIFT = 4
"""The authors' SHIFT_NUM of 5, see `shift_and_shuffle`."""
TRANSREID_GROUPS = 2
PCB_STRIPES = 6
PCB_WIDTH = 256

Options = FeatureLosses
"""The fields of `config.model` that are not `Method`'s own arguments."""


class Network(nn.Module):
    """Features of a backbone, each with a re-ID head of its own."""

    backbone: nn.Module
    num_classes: int
    bn_groups: int
    cosine: bool = False
    pool: str = "mean"
    neck: str = "bn"

    @nn.compact
    def __call__(
        self, images: jax.Array, camera: jax.Array | None = None, *, train: bool
    ) -> dict[str, jax.Array]:
        """Runs standardised images [B, H, W, 3].

        Returns:
          before, after [B, T, D] and logits [B, T, num_classes] of T features.
        """
        features = self.features(images, camera, train)
        if self.neck == "none":
            head = LinearHead(self.num_classes, name="heads")
        else:
            head = BNNeck(
                self.num_classes, self.bn_groups, cosine=self.cosine, name="heads"
            )
        return token_heads(head, features, train=train)

    def features(
        self, images: jax.Array, camera: jax.Array | None, train: bool
    ) -> jax.Array:
        """One feature per image, [B, 1, D]: CLS, the backbone's, or the pooled maps."""
        if isinstance(self.backbone, VisionTransformer):
            outputs = self.backbone(images, train=train, camera=camera)
            return outputs["cls"][:, None]
        outputs = self.backbone(images, train=train)
        if "feature" in outputs:
            return outputs["feature"][:, None]
        maps = [m.astype(jnp.float32) for m in _last_maps(outputs)]
        if self.pool == "gem":
            pooled = [GeneralizedMean(name="pool")(m) for m in maps]
        else:
            pooled = [m.mean((1, 2)) for m in maps]
        return jnp.concatenate(pooled, axis=-1)[:, None]

    def rolled_out(self, images: jax.Array, camera: jax.Array | None) -> jax.Array:
        """The patches' shares in a ViT's CLS token, [B, rows, columns]."""
        vit = self.backbone
        outputs = vit(images, train=False, camera=camera, attend=attend_and_keep)
        shares = rollout([layer["weights"] for layer in outputs["layers"]])[:, 0, 1:]
        grid = grid_size(images.shape[1:3], vit.patch_size, vit.stride)
        return shares.reshape(-1, *grid)

    def activations(self, images: jax.Array) -> jax.Array:
        """How strongly a convolutional network's places respond: [B, maps, h, w].

        Sums over channels of squared activations, as torchreid draws them: of the last
        map, or of HRNet's four streams at the size of the finest.
        """
        outputs = self.backbone(images, train=False)
        squares = [activation(m) ** 2 for m in _last_maps(outputs)]
        shape = squares[0].shape
        resized = [jax.image.resize(s, shape, "bilinear") for s in squares]
        return jnp.stack(resized, axis=1)


def _last_maps(outputs: Mapping[str, Any]) -> Sequence[jax.Array]:
    """The maps that a convolutional network ends with."""
    last = "layer4" if "layer4" in outputs else "conv5"
    return outputs["incre"] if "incre" in outputs else (outputs[last],)


class JigsawNetwork(Network):
    """TransReID's CLS token and parts."""

    def features(
        self, images: jax.Array, camera: jax.Array | None, train: bool
    ) -> jax.Array:
        """[B, 1 + parts, D], the global feature first."""
        vit = self.backbone
        outputs = vit(images, train=train, camera=camera)
        cls, patches = outputs["before_last"][:, 0], outputs["before_last"][:, 1:]
        length = patches.shape[1] // TRANSREID_PARTS
        patches = shift_and_shuffle(
            patches, shift=TRANSREID_SHIFT, groups=TRANSREID_GROUPS
        )
        parts = with_cls(cls, runs(patches, TRANSREID_PARTS, length=length))
        branch = LocalBranch(
            vit.heads,
            vit.mlp_ratio,
            vit.drop_path,
            vit.dtype,
            vit.attention_implementation,
            vit.remat,
            name="local",
        )
        local = branch(parts.reshape(-1, *parts.shape[2:]), train=train)[:, 0]
        local = local.reshape(*parts.shape[:2], -1)
        return jnp.concatenate([outputs["cls"][:, None], local], axis=1)


class StripeNetwork(Network):
    """PCB's horizontal stripes."""

    def features(
        self, images: jax.Array, camera: jax.Array | None, train: bool
    ) -> jax.Array:
        """[B, stripes, PCB_WIDTH], from top to bottom."""
        del camera
        maps = self.backbone(images, train=train)["layer4"].astype(jnp.float32)
        borders = stripe_borders(maps.shape[1], PCB_STRIPES)
        stripes = [
            maps[:, top:bottom].mean((1, 2)) for top, bottom in pairwise(borders)
        ]
        reduced = nn.Dense(PCB_WIDTH, use_bias=False, name="reduce")(
            jnp.stack(stripes, axis=1)
        )
        norm = BatchNorm(self.bn_groups, name="reduce_bn")
        return jax.nn.relu(norm(reduced, train=train))


BACKBONES: dict[str, tuple[type[Network], type[nn.Module], dict[str, Any]]] = {
    "vit": (Network, VisionTransformer, {}),
    "transreid": (JigsawNetwork, VisionTransformer, {}),
    "resnet50": (Network, ResNet, {}),
    "resnet50_ibn_a": (Network, ResNet, {"ibn": True}),
    "hrnet_w32": (Network, HRNet, {}),
    "pcb": (StripeNetwork, ResNet, {}),
    **{name: (Network, OSNet, fixed) for name, fixed in OSNETS.items()},
}
"""Name: the network, its backbone, and that one's fixed arguments."""


class Method(method.Method):
    """A baseline.

    Args:
      num_classes: training identities.
      image_size: height and width.
      backbone: one of `BACKBONES`.
      options: arguments of the backbone's module, see there.
      feature: the feature to test with: "after" or "before" BNNeck's normalisation.
      normalise: whether it is brought to unit length, as all but torchreid's are.
      neck: "bn" for BNNeck; "none" for a plain classifier with a bias.
      pool: of a ResNet's last map: "mean", or "gem" for a generalised mean whose
        exponent is learned.
      bn_groups: statistics per group of rows, as on that many GPUs.
      mean, std: of the channels, in units of the full range.
      dtype: "float32" or "bfloat16", of the matrix products and convolutions.
      attention_implementation: of a ViT, see there.
      remat: compute the backbone's blocks again for their gradients.
      **losses: of `Options`, the losses; a centre loss adds the collection `centers`,
        float32 [num_classes, T, D].
    """

    training_only = ("centers",)

    def __init__(
        self,
        num_classes: int,
        image_size: tuple[int, int] = (256, 128),
        *,
        backbone: str = "vit",
        options: Mapping[str, Any] | None = None,
        feature: str = "after",
        normalise: bool = True,
        neck: str = "bn",
        pool: str = "mean",
        bn_groups: int = 1,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        dtype: str = "float32",
        attention_implementation: str = "einsum",
        remat: bool = False,
        **losses: Any,
    ):
        self.losses = Options(**losses)
        _check(backbone, feature, attention_implementation)
        _check_head(backbone, neck=neck, pool=pool, cosine=self.losses.cosine)
        network, trunk, fixed = BACKBONES[backbone]
        check_options(trunk, options or {}, hint=f"take :backbone={backbone}")
        given = {**fixed, **(options or {}), "dtype": dtype, "remat": remat}
        if trunk is VisionTransformer:
            given["attention_implementation"] = attention_implementation
            given["image_size"] = tuple(image_size)
            if given.get("cameras"):
                self.embed_inputs = ("camera",)
        else:
            given["bn_groups"] = bn_groups
        self.module = network(
            trunk(**given),
            num_classes,
            bn_groups,
            self.losses.cosine,
            pool=pool,
            neck=neck,
        )
        if trunk is VisionTransformer:
            vit = self.module.backbone
            self.position_grid = grid_size(vit.image_size, vit.patch_size, vit.stride)
            if network is JigsawNetwork:
                self.pretrained_copies = {
                    "local/block": f"backbone/blocks_{vit.depth - 1}",
                    "local/norm": "backbone/norm",
                }
        self.standardise = partial(standardise, mean=tuple(mean), std=tuple(std))
        self.feature = feature
        self.normalise = normalise

    def init(self, rng: jax.Array, batch: method.Batch) -> method.Variables:
        """Fresh variables; the pretrained backbone is loaded over them."""
        images = jnp.zeros((1, *batch["image"].shape[1:]))
        variables = self.module.init(rng, images, train=False)
        if not self.losses.center_weight:
            return variables
        kernels = variables["params"]["heads"]["classifier"]["kernel"]  # [T, D, C]
        key = jax.random.fold_in(rng, 1)
        centers = jax.random.normal(key, jnp.moveaxis(kernels, 2, 0).shape)
        return {**variables, "centers": {"heads": centers}}

    def objective(
        self,
        variables: method.Variables,
        batch: method.Batch,
        *,
        rng: jax.Array,
        epoch: jax.Array,
        stage: str,
    ) -> method.Outcome:
        """The losses of `Options`; metrics are each of them and the accuracy."""
        del epoch, stage
        labels = batch["label"]
        outputs, collections = self.module.apply(
            variables,
            self.standardise(batch["image"]),
            batch["camera"] if self.embed_inputs else None,
            train=True,
            mutable=["batch_stats"],
            rngs={"drop_path": rng},
        )
        centers = variables.get("centers", {}).get("heads")
        parts = isinstance(self.module, JigsawNetwork)
        loss, metrics = self.losses(outputs, labels, centers, with_parts=parts)
        if centers is not None:
            moved = self.losses.moved(outputs, labels, centers)
            collections = {**collections, "centers": {"heads": moved}}
        return loss, metrics, collections

    def embed(
        self,
        variables: method.Variables,
        images: jax.Array,
        camera: jax.Array | None = None,
        parts: jax.Array | None = None,
    ) -> method.Embedding:
        """`vector` [B, T * D], of unit norm unless `normalise` is off.

        TransReID's parts weigh 1/4, as its own.
        """
        del parts
        tokens = self.module.apply(
            variables, self.standardise(images), camera, train=False
        )[self.feature]
        if isinstance(self.module, JigsawNetwork):
            tokens = tokens.at[:, 1:].divide(TRANSREID_PARTS)
        vector = tokens.reshape(tokens.shape[0], -1)
        return {"vector": normalise(vector) if self.normalise else vector}

    def distance(self, query: method.Embedding, gallery: method.Embedding) -> jax.Array:
        """Euclidean."""
        return euclidean(query["vector"], gallery["vector"])

    def pictures(
        self, variables: method.Variables, batch: method.Batch
    ) -> dict[str, method.Maps]:
        """Attention rollout of a ViT; activation maps of a convolutional network."""
        trunk = self.module.backbone
        if isinstance(trunk, VisionTransformer):
            # Only "einsum" has weights that can be kept; all compute the same.
            trunk = trunk.clone(attention_implementation="einsum")
            camera = batch["camera"] if self.embed_inputs else None
            values = self._drawn(trunk, "rolled_out", variables, batch, camera)[:, None]
            about = "patches that CLS is made of, all layers and heads"
            return {"rollout": _relative_maps(values, ("attention rollout",), about)}
        values = self._drawn(trunk, "activations", variables, batch)
        streams = values.shape[1]
        titles = tuple(f"stream {i + 1}" for i in range(streams))
        if streams == 1:
            titles = ("last map",)
        about = "sums over channels of squared activations"
        return {"activation": _relative_maps(values, titles, about)}

    def _drawn(
        self,
        trunk: nn.Module,
        what: str,
        variables: method.Variables,
        batch: method.Batch,
        *rest: jax.Array | None,
    ) -> jax.Array:
        """The result of one of the network's methods, with `trunk` as its backbone."""
        apply = partial(self.module.clone(backbone=trunk).apply, method=what)
        return jax.jit(apply)(variables, self.standardise(batch["image"]), *rest)


def _relative_maps(
    values: jax.Array, titles: tuple[str, ...], about: str
) -> method.Maps:
    scale = "least to greatest of each map"
    return method.Maps(relative(values), titles, scale=scale, about=about)


def _check(backbone: str, feature: str, implementation: str) -> None:
    check_choices(
        backbone=(backbone, tuple(BACKBONES)), feature=(feature, ("after", "before"))
    )
    if implementation != "einsum" and BACKBONES[backbone][1] is not VisionTransformer:
        raise UserError(
            f"attention_implementation={implementation!r} is for a ViT; "
            f"backbone={backbone!r} has no attention"
        )


def _check_head(backbone: str, *, neck: str, pool: str, cosine: bool) -> None:
    check_choices(neck=(neck, ("bn", "none")), pool=(pool, ("mean", "gem")))
    if pool == "gem" and BACKBONES[backbone][:2] != (Network, ResNet):
        raise UserError(
            f"pool='gem' is for a ResNet's last map; backbone={backbone!r} has none"
        )
    if neck == "none" and cosine:
        raise UserError(
            "neck='none' has a linear classifier: take classifier='linear' or neck='bn'"
        )
