"""The baselines that the papers measure against: ViT with the BoT recipe.

    python -m reid_jax.main --config=configs/baseline.py
    python -m reid_jax.main --config=configs/baseline.py:demo

The ViT-baseline of AAformer's Tables II to IV: ViT-B/16 at 256 x 128, CLS token,
BNNeck, label smoothing, batch-hard triplet, random erasing; AAformer's schedule.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    """`:demo`, or `:dataset=NAME` for another training set."""
    arguments = common.parse(arg)
    config = common.base("baseline", arguments)
    config.pretrained = "vit_base_patch16_224"

    model = config.model
    model.patch_size = 16
    model.stride = (16, 16)
    model.width = 768
    model.depth = 12
    model.heads = 12
    model.mlp_ratio = 4
    model.drop_path = 0.1
    model.label_smoothing = 0.1
    model.margin = 0.3
    model.feature = "after"
    model.bn_groups = 1
    model.mining_groups = 1
    model.dtype = "float32"

    if arguments["demo"]:
        config.pretrained = "none"
        model.width = 192
        model.depth = 4
        model.heads = 6
        model.drop_path = 0.0
        common.shrink_for_demo(config)
    return config
