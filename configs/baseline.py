"""The baselines that the papers measure against.

    python -m reid_jax.main --config=configs/baseline.py
    python -m reid_jax.main --config=configs/baseline.py:backbone=resnet50
    python -m reid_jax.main --config=configs/baseline.py:demo,backbone=pcb
    python -m reid_jax.main --config=configs/baseline.py:backbone=transreid,row=stride12

Backbones: `vit` (ViT-B/16, the ViT-baseline of AAformer's Tables II to IV, on its
schedule), `vit_small`, `vit_large`, `transreid` (ViT-B/16 with jigsaw parts),
`resnet50` and `resnet50_ibn_a` (BoT), `hrnet_w32` (BoT without the centre loss), `pcb`
(stripes on ResNet-50), and `osnet_x1_0`, `osnet_x0_75`, `osnet_x0_5`, `osnet_x0_25`,
`osnet_ibn_x1_0` and `osnet_ain_x1_0` (as `hrnet_w32`). `transreid` and the ResNets
train by the recipes of their authors' code, the other ViTs by AAformer's, all else by
BoT's; where each deviates, and what a row of `VARIANTS` below is, is said in
`reid_jax/models/baseline.py`.

A demo is none of these recipes. It trains a small network with AdamW, and in its few
epochs BoT's losses learn faster than TransReID's: all demos have those, without the
centre loss. It starts from weights that the library brings, or from nothing: with
`:demo,scratch`, and where there are none (`SHIPPED`).

Other losses are fields: `--config.model.classifier=arcface`, `cosface` or `circle` for
the identity loss (circle with a `classifier_margin` and a `classifier_scale`),
`--config.model.circle_weight=1 --config.model.triplet_weight=0` for the circle loss on
pairs; `reid_jax/losses/features.py` has all of them.
"""

from ml_collections import ConfigDict

from configs import common
from reid_jax.backbones import osnet
from reid_jax.backbones.vit import SIZES
from reid_jax.errors import UserError
from reid_jax.models.baseline import Options

VITS = {"vit": "base", "vit_small": "small", "vit_large": "large", "transreid": "base"}
PRETRAINED = {
    "vit": "vit_base_patch16_224",
    "vit_small": "deit_small_patch16_224",
    "vit_large": "vit_large_patch16_224",
    "transreid": "vit_base_patch16_224",
    "resnet50": "resnet50",
    "resnet50_ibn_a": "resnet50_ibn_a",
    "hrnet_w32": "hrnet_w32",
    "pcb": "resnet50",
    **{name: name for name in osnet.SIZES},
}
TINY_HRNET = {"width": 8, "modules": (1, 1, 1), "blocks": 1, "stem": 8, "incre": 2}
TINY_RESNET = {"width": 16, "blocks": (1, 1, 1, 1)}
SHIPPED = {
    **dict.fromkeys(("vit", "transreid"), "vit"),
    **dict.fromkeys(("resnet50", "pcb"), "resnet"),
    "hrnet_w32": "hrnet",
}
"""Backbone -> what its demo starts from; the others' start from nothing."""

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""Statistics of the channels with which all weights but Google's ViTs were trained."""

CAMERAS = {
    "market1501": 6,
    "dukemtmc": 8,
    "occluded_duke": 8,
    "msmt17": 15,
    "msmt17_noval": 15,
}
"""Cameras of the training sets on which `transreid` embeds them; on others it has no
such embedding unless `--config.model.options.cameras` says how many there are."""

_TRANSREID: common.Rows = {
    "baseline": {"model.backbone": "vit", "model.options.cameras": 0},
    "jpm": {"model.options.cameras": 0},
    "sie": {"model.backbone": "vit"},
    "stride12": {"model.options.stride": (12, 12)},
    "stride11": {"model.options.stride": (11, 11)},
    "384": {"data.height": 384},
    "stride12-384": {"model.options.stride": (12, 12), "data.height": 384},
}
_BOT: common.Rows = {"no-center": {"model.center_weight": 0.0}}

VARIANTS: dict[str, common.Rows] = {
    "transreid": _TRANSREID,
    "resnet50": _BOT,
    "resnet50_ibn_a": _BOT,
    "pcb": {"256": {"data.height": 256}},
}
"""Backbone -> `:row=NAME` -> fields that it changes."""


def get_config(arg: str | None = None) -> ConfigDict:
    """`:demo`, `:dataset=NAME`, `:backbone=NAME`, `:row=NAME` of `VARIANTS`."""
    arguments = common.parse(arg, backbone="vit", row="")
    name = common.choice(arguments, "backbone", PRETRAINED)
    config = common.base("baseline", arguments)
    if name != "vit":
        config.variant = f"{name}-{config.variant}"
    config.pretrained = PRETRAINED[name]
    config.model = _model(name)
    if name not in VITS:
        _set_adam(config.stages.train.optimizer)
    if arguments["demo"]:
        _shrink(config)
        weights = SHIPPED.get(name)
        clip_norm = 5.0 if weights == "vit" else 0.0
        common.shrink_for_demo(config, arguments, weights, clip_norm=clip_norm)
    elif name == "transreid":
        _as_transreid(config, arguments["dataset"])
    elif name == "pcb":
        config.data.height = 384
    elif name in ("resnet50", "resnet50_ibn_a"):
        _as_bot(config)
    common.apply_row(config, VARIANTS.get(name, {}), arguments)
    if arguments["row"] == "sie" and not config.model.options.cameras:
        raise UserError(
            f"row=sie embeds cameras, and how many {config.data.dataset} has is not "
            "known here: leave it away and give --config.model.backbone=vit and "
            "--config.model.options.cameras=NUMBER, the highest of its cameras' numbers"
        )
    return config


def _model(name: str) -> ConfigDict:
    model = common.model(Options)
    model.backbone = "vit" if name in ("vit_small", "vit_large") else name
    model.triplet_weight = 0.0 if name == "pcb" else 1.0
    model.feature = "after"
    # Whether the test feature is brought to unit length.
    model.normalise = True
    # "bn", or "none" for a classifier without BNNeck, as torchreid's.
    model.neck = "bn"
    # Of a ResNet's last map: "mean", or "gem", a generalised mean that is learned.
    model.pool = "mean"
    model.bn_groups = 1
    model.dtype = "float32"
    # Of ordinary self-attention, the same up to rounding: "einsum", "xla", "cudnn"
    # (NVIDIA GPUs, bfloat16) or "pallas" (TPUs).
    model.attention_implementation = "einsum"
    # Whether blocks of the backbone are computed again for their gradients: less
    # memory on accelerators, about a third more arithmetic.
    model.remat = False
    # The statistics that Google's ViTs were trained with.
    model.mean, model.std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    if name not in ("vit", "vit_large", "transreid"):
        model.update(IMAGENET)
    model.options = _vit(VITS[name]) if name in VITS else _cnn(name)
    return model


def _vit(size: str) -> ConfigDict:
    options = ConfigDict(SIZES[size])
    options.patch_size = 16
    # (16, 16), or a sliding window such as (12, 12).
    options.stride = (16, 16)
    options.mlp_ratio = 4
    options.drop_path = 0.1
    # TransReID's camera embedding: the data set's cameras, or 0 for none; its lambda.
    options.cameras = 0
    options.camera_scale = 3.0
    # Whether the blocks are a loop, which is compiled in a fraction of the time.
    options.scan_blocks = False
    return options


def _cnn(name: str) -> ConfigDict:
    if name == "hrnet_w32":
        return ConfigDict(
            {"width": 32, "modules": (1, 4, 3), "blocks": 4, "stem": 64, "incre": 32}
        )
    if name in osnet.SIZES:
        channels = osnet.SIZES[name]["channels"]
        return ConfigDict({"channels": channels, "feature_dim": 512})
    return ConfigDict({"blocks": (3, 4, 6, 3), "width": 64, "last_stride": 1})


def _set_adam(optimizer: ConfigDict) -> None:
    """The schedule of BoT (Luo et al., 2019)."""
    optimizer.name = "adam"
    optimizer.learning_rate = 3.5e-4
    optimizer.weight_decay = 5e-4
    optimizer.warmup_from = 3.5e-6
    optimizer.milestones = (40.0, 70.0)


def _as_bot(config: ConfigDict) -> None:
    """What else the last recipe of BoT's code has."""
    config.model.center_weight = 5e-4
    # The code erases standardised images, with the numbers of ImageNet's mean.
    both = zip(IMAGENET["mean"], IMAGENET["std"], strict=True)
    fill = tuple(round(255 * (mean + std * mean)) for mean, std in both)
    config.augment.random_erasing.fill = fill


def _as_transreid(config: ConfigDict, dataset: str) -> None:
    """The authors' configuration for people, at their smaller size."""
    model = config.model
    model.label_smoothing = 0.0
    model.margin = None
    model.part_weights = (0.5, 0.5)
    model.feature = "before"
    model.options.cameras = CAMERAS.get(dataset, 0)
    optimizer = config.stages.train.optimizer
    optimizer.warmup_epochs = 5.0
    optimizer.warmup_from = 8e-5
    optimizer.groups = {"biases": {"pattern": ".*bias$", "learning_rate": 2.0}}
    # N(0, 1) behind a standardisation by 0.5 and 0.5.
    half = (127.5, 127.5, 127.5)
    config.augment.random_erasing = common.noise_erasing(fill=half, deviation=half)


def _shrink(config: ConfigDict) -> None:
    """Sizes that train in minutes on two CPU cores."""
    options = config.model.options
    if "depth" in options:
        options.width, options.depth, options.heads = 192, 4, 6
        options.drop_path = 0.0
    elif config.model.backbone == "hrnet_w32":
        options.update(TINY_HRNET)
    elif config.model.backbone in osnet.SIZES:
        options.channels, options.feature_dim = (16, 64, 96, 128), 128
    else:
        options.update(TINY_RESNET)
    config.stages.train.optimizer.milestones = ()
