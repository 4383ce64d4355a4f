"""CACE-Net (Yu et al., 2020) as in section 4.2 of the paper.

    python -m reid_jax.main --config=configs/cacenet.py
    python -m reid_jax.main --config=configs/cacenet.py:mode=code
    python -m reid_jax.main --config=configs/cacenet.py:demo

The paper's setting is ResNet-50 at 384 x 128, batches of 4 x 4, SGD, 80 epochs. What
the fields of `config.model` mean is said in `reid_jax.models.cacenet.Options`.
`mode=code` is the network of the authors' published code, which differs (see that
file). A row of the paper's ablation tables is an argument, too, alone or with `:demo`;
`ROWS` below has their names and the fields that each changes:

    python -m reid_jax.main --config=configs/cacenet.py:row=table2-full

Rows of Tables 1 and 2 are trained on DukeMTMC-reID, as the paper's are, and all else on
Market-1501, unless `dataset=NAME` says otherwise. The 30,248 images of section 4.1 are
MSMT17 without its validation part: `dataset=msmt17_noval`.

`row=table2-semantic` reads part labels. `--config.model.top_k=0` evaluates individual
features alone; otherwise the results have them as `metrics_before_pairs`.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import baseline, common
from reid_jax.models.cacenet import Options

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
    "attention-ones": {"model.start": "ones"},
    "attention-normal": {"model.start": "normal"},
    "attention-centred": {"model.centred": True},
    "attention-threshold": {"model.threshold": 0.3},
    "rerank-cosine": {"model.pair_metric": "cosine"},
    "rerank-euclidean": {"model.pair_metric": "euclidean"},
}


def _duke(rank1: float, mean_ap: float) -> dict[str, tuple]:
    return {"dukemtmc": (rank1, mean_ap)}


def _market(rank1: float, mean_ap: float) -> dict[str, tuple]:
    return {"market1501": (rank1, mean_ap)}


# The paper's columns are the other way round: mAP, rank-1.
REPORTED: common.Reported = {
    "Table 1": {
        "table1-individual": _duke(87.84, 77.03),
        "table1-alignment": _duke(89.68, 78.29),
        "table1-individual-gcn": _duke(89.77, 79.19),
        "table1-normal": _duke(89.77, 78.58),
        "table1-discrepancy": _duke(90.89, 81.29),
    },
    "Table 2": {
        "table2-none": _duke(87.84, 77.03),
        "table2-part": _duke(89.45, 78.39),
        "table2-similarity": _duke(89.72, 79.30),
        "table2-full": _duke(89.90, 80.19),
        "table2-semantic": _duke(90.08, 80.64),
        "table2-correspondence": _duke(90.89, 81.29),
    },
    "Table 3": {
        "table3-cross-entropy": _market(94.74, 88.57),
        "table3-0.95": _market(95.75, 89.44),
        "table3-0.9": _market(95.96, 90.30),
        "table3-0.8": _market(95.84, 89.56),
        "table3-0.7": _market(95.43, 88.72),
        "table3-0.6": _market(94.83, 85.67),
    },
    "Table 4": {
        "": {
            "market1501": (95.96, 90.3),
            "dukemtmc": (90.89, 81.29),
            "msmt17_noval": (83.54, 62.0),
        }
    },
    "Table 5": {"": {"occluded_duke": (58.8, 50.8)}},
}

LADDER = (
    "table1-individual",
    "table1-alignment",
    "table1-individual-gcn",
    "table1-normal",
    "table1-discrepancy",
)
"""Rows that `benchmarks/ladder.py` trains: all of Table 1."""


_CODE = {
    "mixup_weight": 2.0,
    "margin": 0.5,
    "non_local": True,
    "adjacency": "embedded",
    "update": "residual",
    "pool": "avg_max",
    "shared_encoder": True,
    "dropout": 0.5,
    "label_smoothing": 0.1,
    "unit_triplet": True,
    "pair_metric": "cosine",
    "flip_test": True,
}
"""Fields of `config.model` that are the authors' published code."""


MEASURED_ON = dict.fromkeys(("table1", "table2"), "dukemtmc")
"""What the paper measures rows on that are not of Market-1501."""


def get_config(arg: str | None = None) -> ConfigDict:
    """`:demo`, `:mode=code`, `:dataset=NAME`, `:row=NAME` of the tables."""
    arguments = common.parse(arg, row="", mode="paper", measured_on=MEASURED_ON)
    mode = common.choice(arguments, "mode", ("paper", "code"))
    config = common.base("cacenet", arguments)
    config.pretrained = "resnet50"
    config.data.height = 384
    config.model = common.model(Options)
    if mode == "code":
        config.variant = f"code-{config.variant}"
        config.model.update(_CODE)

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
        _shrink(config, arguments)
    common.apply_row(config, ROWS, arguments)
    return config


def _shrink(config: ConfigDict, arguments: dict[str, Any]) -> None:
    """A ResNet of sixteen channels and four blocks."""
    config.model.update(baseline.TINY_RESNET)
    config.model.embed_width = 128
    config.model.graph_width = 32
    common.shrink_for_demo(config, arguments, "resnet")
    train = config.stages.train
    # Half the other demos' batch: there are four times as many pairs in theirs.
    train.identities = 8
    train.epochs = 10.0
    config.evaluation.every_epochs = 5.0
    if arguments["scratch"]:
        train.epochs = 22.0
        train.optimizer.learning_rate = 2e-3
        train.optimizer.warmup_epochs = 1.5
        config.evaluation.every_epochs = 11.0
