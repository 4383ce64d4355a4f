"""CACE-Net (Yu et al., 2020) as in section 4.2 of the paper.

    python -m reid_jax.main --config=configs/cacenet.py
    python -m reid_jax.main --config=configs/cacenet.py:mode=code
    python -m reid_jax.main --config=configs/cacenet.py:demo

The paper's setting is ResNet-50 at 384 x 128, batches of 4 x 4, SGD, 80 epochs.
`mode=code` is the network of the authors' published code, which differs (see
`reid_jax/models/cacenet.py`). A row of the paper's ablation tables is an argument, too,
alone or with `:demo`; `ROWS` below has their names and the fields that each changes:

    python -m reid_jax.main --config=configs/cacenet.py:row=table2-full

`:demo` (seed 0) reaches rank-1 82.7 % and mAP 76.8 % on the embedded data, and 84.7 %
and 78.5 % before pairs are compared. `row=table2-semantic` reads part labels.
`--config.model.top_k=0` evaluates individual features alone; otherwise the results have
them as `metrics_before_pairs`.
"""

from ml_collections import ConfigDict

from configs import common
from reid_jax.models.cacenet import BODY_PARTS

_INDIVIDUAL = {"model.graph": "none", "model.align": "none"}

ROWS: common.Rows = {
    "table1-individual": _INDIVIDUAL,
    "table1-alignment": {"model.graph": "none"},
    "table1-individual-gcn": {"model.graph": "individual"},
    "table1-normal": {"model.graph": "normal"},
    "table1-discrepancy": {"model.graph": "discrepancy"},
    "table2-none": _INDIVIDUAL,
    "table2-part": {"model.align": "part"},
    "table2-similarity": {"model.align": "similarity"},
    "table2-full": {"model.align": "full"},
    "table2-semantic": {"model.align": "semantic"},
    "table2-correspondence": {"model.align": "correspondence"},
    "table3-cross-entropy": {"model.alpha": 1.0},
    "table3-0.95": {"model.alpha": 0.95},
    "table3-0.9": {"model.alpha": 0.9},
    "table3-0.8": {"model.alpha": 0.8},
    "table3-0.7": {"model.alpha": 0.7},
    "table3-0.6": {"model.alpha": 0.6},
}

LADDER = (
    "table1-individual",
    "table1-alignment",
    "table1-individual-gcn",
    "table1-normal",
    "table1-discrepancy",
)
"""Rows that `benchmarks/ladder.py` trains: all of Table 1."""


def get_config(arg: str | None = None) -> ConfigDict:
    """`:demo`, `:mode=code`, `:dataset=NAME`, `:row=NAME` of the tables."""
    arguments = common.parse(arg, row="", mode="paper")
    mode = common.choice(arguments, "mode", ("paper", "code"))
    config = common.base("cacenet", arguments)
    config.pretrained = "resnet50"
    config.data.height = 384

    model = config.model
    model.graph = "discrepancy"
    model.align = "correspondence"
    # Weight of an image's own identity in the mix-up loss.
    model.alpha = 0.9
    # Gallery images per query that conditional features re-rank; 0 is none.
    model.top_k = 100
    # "cosine" or "euclidean" distance of two conditional features.
    model.pair_metric = "cosine"
    # Of the gallery maps that re-ranking keeps on disk.
    model.map_dtype = "float16"
    model.blocks = (3, 4, 6, 3)
    model.width = 64
    model.last_stride = 1
    model.embed_width = 768
    model.label_smoothing = 0.0
    model.margin = 0.3
    # For align="semantic": which part classes each body part joins (head, torso, arms,
    # legs, feet), in the numbers of this kind of labels.
    model.part_groups = BODY_PARTS
    model.part_kind = "parts"
    # Training compares every image with this many others at a time: less is less
    # memory, more is fewer steps.
    model.pair_block = 1
    model.dtype = "float32"
    # Whether blocks of the backbone are computed again for their gradients: less
    # memory on accelerators, about a third more arithmetic.
    model.remat = False
    # What the authors' code has and the paper has not.
    model.non_local = False
    model.adjacency = "diagonal"
    model.update = "linear"
    model.graph_width = 128
    model.pool = "avg"
    model.shared_encoder = False
    model.dropout = 0.0
    model.unit_triplet = False
    model.flip_test = False
    if mode == "code":
        config.variant = f"code-{config.variant}"
        _as_the_code(model)

    train = config.stages.train
    train.epochs = 80.0
    train.identities = 4
    train.images_per_identity = 4
    train.optimizer.learning_rate = 6.25e-3
    train.optimizer.weight_decay = 5e-4
    train.optimizer.warmup_epochs = 5.0
    train.optimizer.warmup_from = 0.0
    train.optimizer.final_factor = 0.0

    if arguments["demo"]:
        config.pretrained = "none"
        model.width = 16
        model.blocks = (1, 1, 1, 1)
        model.embed_width = 128
        model.graph_width = 32
        common.shrink_for_demo(config)
        # Half the other demos' batch: there are four times as many pairs in theirs.
        train.identities = 8
        train.epochs = 22.0
        train.optimizer.learning_rate = 2e-3
        train.optimizer.warmup_epochs = 1.5
        config.evaluation.every_epochs = 11.0
    common.apply_row(config, ROWS, arguments)
    return config


def _as_the_code(model: ConfigDict) -> None:
    model.non_local = True
    model.adjacency = "embedded"
    model.update = "residual"
    model.pool = "avg_max"
    model.shared_encoder = True
    model.dropout = 0.5
    model.label_smoothing = 0.1
    model.margin = 0.5
    model.unit_triplet = True
    model.flip_test = True
