"""AAformer (Zhu et al., TNNLS 2023) as in section IV-A of the paper.

    python -m reid_jax.main --config=configs/aaformer.py
    python -m reid_jax.main --config=configs/aaformer.py:dataset=NAME
    python -m reid_jax.main --config=configs/aaformer.py:demo

The paper's setting is ViT-B/16 with five part tokens at 256 x 128, batches of 16 x 4,
SGD, 120 epochs. Rows of its ablation tables are reached by these fields:

    Table IV
      +MGN, PT      --config.model.assignment=stripes
      +PCB, PT      the same with --config.model.granularities="(6,)"
      +SPReID, PT   --config.model.assignment=parsing
      Pool          each of these with --config.model.tokens=pool
      6*CLS         --config.model.tokens=cls
      ViT-baseline  --config.model.tokens=none
    Table V
      Nearest Neighbor  --config.model.assignment=nn
    Table VI
      --config.model.granularities="(4,)", "(5,)", "(6,)", "(3,4)" or "(2,3,4)"
"""

from ml_collections import ConfigDict

from configs import common
from reid_jax.models.aaformer import SPREID_REGIONS


def get_config(arg: str | None = None) -> ConfigDict:
    """`:demo`, or `:dataset=NAME` for another training set."""
    arguments = common.parse(arg)
    config = common.base("aaformer", arguments)
    config.pretrained = "vit_base_patch16_224"

    model = config.model
    model.tokens = "part"
    model.assignment = "ot"
    model.granularities = (2, 3)
    # For assignment="parsing": which part classes each part joins (SPReID's foreground,
    # head, upper body, lower body, shoes), in the numbers of this kind of labels.
    model.part_groups = SPREID_REGIONS
    model.part_kind = "parts"
    model.epsilon = 0.05
    model.sinkhorn_iterations = 3
    model.normalise_scores = True
    model.parts_visible = True
    model.patch_size = 16
    # (16, 16), or a sliding window such as (12, 12).
    model.stride = (16, 16)
    model.width = 768
    model.depth = 12
    model.heads = 12
    model.mlp_ratio = 4
    model.drop_path = 0.1
    model.label_smoothing = 0.1
    model.margin = 0.3
    # Test features from after or before the BNNeck's normalisation.
    model.feature = "after"
    # 2 reproduces what two GPUs' separate batch statistics and mining saw.
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
