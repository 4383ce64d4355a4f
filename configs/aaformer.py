"""AAformer (Zhu et al., TNNLS 2023) as in section IV-A of the paper.

    python -m reid_jax.main --config=configs/aaformer.py
    python -m reid_jax.main --config=configs/aaformer.py:dataset=NAME
    python -m reid_jax.main --config=configs/aaformer.py:demo

The paper's setting is ViT-B/16 with five part tokens at 256 x 128, batches of 16 x 4,
SGD, 120 epochs. A row of the paper's ablation tables is an argument, too, alone or with
`:demo`; `ROWS` below has their names and the fields that each changes:

    python -m reid_jax.main --config=configs/aaformer.py:dataset=msmt17,row=table5-nn
"""

from ml_collections import ConfigDict

from configs import common
from reid_jax.models.aaformer import SPREID_REGIONS

_POOL = {"model.tokens": "pool"}
_PCB = {"model.assignment": "stripes", "model.granularities": (6,)}
_MGN = {"model.assignment": "stripes"}
_SPREID = {"model.assignment": "parsing"}

ROWS: common.Rows = {
    "table4-vit": {"model.tokens": "none"},
    "table4-pool-pcb": _POOL | _PCB,
    "table4-pool-mgn": _POOL | _MGN,
    "table4-pool-spreid": _POOL | _SPREID,
    "table4-pt-pcb": _PCB,
    "table4-pt-mgn": _MGN,
    "table4-pt-spreid": _SPREID,
    "table4-6cls": {"model.tokens": "cls"},
    "table5-nn": {"model.assignment": "nn"},
    "table6-4": {"model.granularities": (4,)},
    "table6-5": {"model.granularities": (5,)},
    "table6-6": {"model.granularities": (6,)},
    "table6-34": {"model.granularities": (3, 4)},
    "table6-234": {"model.granularities": (2, 3, 4)},
}

LADDER = ("table4-vit", "table4-pt-mgn", "table5-nn", "")
"""Rows that `benchmarks/ladder.py` trains; the empty name is the paper's system."""


def get_config(arg: str | None = None) -> ConfigDict:
    """`:demo`, `:dataset=NAME` for another training set, `:row=NAME` of the tables."""
    arguments = common.parse(arg, row="")
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
    # Of ordinary self-attention, the same up to rounding: "einsum", "xla", or "cudnn"
    # (NVIDIA GPUs, bfloat16). tokens="part" has its own, "einsum" only.
    model.attention_implementation = "einsum"
    # Whether blocks of the backbone are computed again for their gradients: less
    # memory on accelerators, about a third more arithmetic.
    model.remat = False

    if arguments["demo"]:
        config.pretrained = "none"
        model.width = 192
        model.depth = 4
        model.heads = 6
        model.drop_path = 0.0
        common.shrink_for_demo(config)
    common.apply_row(config, ROWS, arguments)
    return config
