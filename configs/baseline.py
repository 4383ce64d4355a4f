"""The baselines that the papers measure against.

    python -m reid_jax.main --config=configs/baseline.py
    python -m reid_jax.main --config=configs/baseline.py:backbone=resnet50
    python -m reid_jax.main --config=configs/baseline.py:demo,backbone=pcb

Backbones: `vit` (ViT-B/16, the ViT-baseline of AAformer's Tables II to IV, on its
schedule), `vit_small`, `vit_large`, `transreid` (ViT-B/16 with jigsaw parts),
`resnet50` and `resnet50_ibn_a` (BoT), `hrnet_w32`, and `pcb` (stripes on ResNet-50).
See `reid_jax/models/baseline.py`.
"""

from ml_collections import ConfigDict

from configs import common
from reid_jax.backbones.vit import SIZES

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
}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""Statistics of the channels with which all weights but Google's ViTs were trained."""


def get_config(arg: str | None = None) -> ConfigDict:
    """`:demo`, `:dataset=NAME` for another training set, `:backbone=NAME`."""
    arguments = common.parse(arg, backbone="vit")
    name = common.choice(arguments, "backbone", PRETRAINED)
    config = common.base("baseline", arguments)
    if name != "vit":
        config.variant = f"{name}-{config.variant}"
    config.pretrained = PRETRAINED[name]

    model = config.model
    model.backbone = "vit" if name in ("vit_small", "vit_large") else name
    model.label_smoothing = 0.1
    # Of the triplet loss; None is the soft margin.
    model.margin = common.or_none(float, 0.3)
    model.triplet_weight = 0.0 if name == "pcb" else 1.0
    model.feature = "after"
    model.bn_groups = 1
    model.mining_groups = 1
    model.dtype = "float32"
    # Of ordinary self-attention, the same up to rounding: "einsum", "xla", or "cudnn"
    # (NVIDIA GPUs, bfloat16).
    model.attention_implementation = "einsum"
    # Whether blocks of the backbone are computed again for their gradients: less
    # memory on accelerators, about a third more arithmetic.
    model.remat = False
    # The statistics that Google's ViTs were trained with.
    model.mean, model.std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    if name not in ("vit", "vit_large", "transreid"):
        model.update(IMAGENET)
    if name in VITS:
        model.options = _vit(VITS[name])
    else:
        _bot(config)
    if arguments["demo"]:
        config.pretrained = "none"
        _shrink(config)
        common.shrink_for_demo(config)
    return config


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
    return options


def _bot(config: ConfigDict) -> None:
    """The recipe of BoT for convolutional networks (Luo et al., 2019)."""
    model = config.model
    if model.backbone == "hrnet_w32":
        model.options = ConfigDict(
            {"width": 32, "modules": (1, 4, 3), "blocks": 4, "stem": 64, "incre": 32}
        )
    else:
        model.options = ConfigDict(
            {"blocks": (3, 4, 6, 3), "width": 64, "last_stride": 1}
        )
    optimizer = config.stages.train.optimizer
    optimizer.name = "adam"
    optimizer.learning_rate = 3.5e-4
    optimizer.weight_decay = 5e-4
    optimizer.warmup_from = 3.5e-6
    optimizer.milestones = (40.0, 70.0)


def _shrink(config: ConfigDict) -> None:
    """Sizes that train from scratch in minutes on two CPU cores."""
    options = config.model.options
    if "depth" in options:
        options.width, options.depth, options.heads = 192, 4, 6
        options.drop_path = 0.0
    elif config.model.backbone == "hrnet_w32":
        options.width, options.incre, options.stem = 8, 8, 16
        options.modules, options.blocks = (1, 1, 1), 1
    else:
        options.width, options.blocks = 16, (1, 1, 1, 1)
    config.stages.train.optimizer.milestones = ()
