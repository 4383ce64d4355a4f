"""SANet (Chen et al., BMVC 2023) as in section 4.2 of the paper.

    python -m reid_jax.main --config=configs/sanet.py
    python -m reid_jax.main --config=configs/sanet.py:labels=hpnet
    python -m reid_jax.main --config=configs/sanet.py:demo

The paper's setting trains on Market-1501 with part labels (`python -m
data_pipelines.prepare --dataset=market1501 --source=FOLDER --parts=FOLDER
--parts_kind=pifpaf --data_dir=data`) and tests on
Partial-REID and Partial-iLIDS: ResNet-50 with last stride 1 at 384 x 128, five
branches, batches of 16 x 4, SGD, 150 epochs. `labels` says whose part labels the data
set has: "pifpaf", "hpnet", "lip", or "parts", the library's own, as the synthetic
pedestrians have.
`:dataset=NAME` trains on another data set and tests on its own protocol.

`:demo` is a small network on `synthetic/partial_demo`.

A row of Tables 3 and 4 is an argument, too, alone or with `:demo`; `ROWS` below has
their names and the fields that each changes:

    python -m reid_jax.main --config=configs/sanet.py:demo,row=table3-fixed
"""

from typing import Any

from ml_collections import ConfigDict

from configs import baseline, common
from data_pipelines.part_labels.groupings import group_names, grouping
from reid_jax.models.sanet import Options

GROUPINGS = {"hpnet": "four_hpnet"}
GROUPINGS |= dict.fromkeys(("parts", "pifpaf", "lip"), "four_v")
"""Kind of part labels: how they make up head, upper body, lower body and feet."""

DEMO_DATASET = "synthetic/partial_demo"

PARTIAL = ("partial_reid", "partial_ilids_o", "partial_ilids_p")
"""What Table 1 tests a model of Market-1501 on."""

ROWS: common.Rows = {
    "table3-hpnet": {"model.enhancement": "none", "model.global_branch": False},
    "table3-global": {"model.enhancement": "none"},
    "table3-fixed": {"model.enhancement": "fixed"},
    "table4-3-layers": {"model.layers": 3},
    "table4-7-layers": {"model.layers": 7},
    "table4-1x1": {"model.operation": 1},
    "table4-5x5": {"model.operation": 5},
    # In no table: gates that see scale; enhancement without the global branch.
    "gate-norm": {"model.gate_norm": True},
    "local-fixed": {"model.enhancement": "fixed", "model.global_branch": False},
    "local-adaptive": {"model.global_branch": False},
}


def _cropped(rank1: float, mean_ap: float) -> dict[str, tuple]:
    """On Partial-iLIDS-P: Table 3 as section 4.4 has it, Table 4 by its figures."""
    return {"partial_ilids_p": (rank1, mean_ap)}


REPORTED: common.Reported = {
    "Table 1": {
        "": {
            "partial_reid": (88.7, 81.5),
            "partial_ilids_o": (84.9, 86.5),
            "partial_ilids_p": (74.8, 77.3),
        }
    },
    "Table 2": {"": {"market1501": (93.7, 80.1), "dukemtmc": (85.5, 67.1)}},
    "Table 3": {
        "table3-hpnet": _cropped(68.9, 72.2),
        "table3-global": _cropped(72.3, 75.3),
        "table3-fixed": _cropped(73.9, 76.3),
        "": _cropped(74.8, 77.3),
    },
    "Table 4": {
        "table4-3-layers": _cropped(74.8, 76.8),
        "table4-7-layers": _cropped(72.3, 75.2),
        "table4-1x1": _cropped(73.1, 75.9),
        "table4-5x5": _cropped(73.1, 75.6),
        "": _cropped(74.8, 77.3),
    },
}

LADDER = (
    "table3-hpnet",
    "local-fixed",
    "local-adaptive",
    "table3-global",
    "table3-fixed",
    "",
)
"""Rows that `benchmarks/ladder.py` trains; the empty name is the paper's system."""


def get_config(arg: str | None = None) -> ConfigDict:
    """`:demo`, `:dataset=NAME`, `:labels=KIND`, `:row=NAME` of the tables."""
    arguments = common.parse(arg, labels="", row="", demo_dataset=DEMO_DATASET)
    config = common.base("sanet", arguments, demo_dataset=DEMO_DATASET)
    if arguments["labels"]:
        config.variant += f"-{arguments['labels']}"
    config.pretrained = "resnet50"
    config.data.height, config.data.width = 384, 128
    config.augment.steps = ("flip", "colour", "random_crop")
    config.augment.colour = ConfigDict(
        {"p": 0.5, "each": 0.7, "blur": (1.0, 2.0), "factor": (0.6, 1.4)}
    )
    config.augment.random_crop = ConfigDict({"keep": 0.85})
    if config.data.dataset == "market1501":
        config.evaluate_on = PARTIAL
    config.evaluation.every_epochs = 30.0
    config.model = common.model(Options)
    _set_labels(config, arguments)
    _set_optimizer(config.stages.train)
    if arguments["demo"]:
        _shrink(config, arguments)
    common.apply_row(config, ROWS, arguments)
    return config


def _set_labels(config: ConfigDict, arguments: dict[str, Any]) -> None:
    """Which part classes make up the four parts, for the data set's kind of labels."""
    own = "parts" if config.data.dataset.startswith("synthetic/") else "pifpaf"
    kind = common.choice({"labels": arguments["labels"] or own}, "labels", GROUPINGS)
    groups = grouping(GROUPINGS[kind], kind)
    model = config.model
    model.part_kind = kind
    model.part_groups = tuple(tuple(sorted(classes)) for classes in groups)
    model.part_names = group_names(GROUPINGS[kind], kind)


def _set_optimizer(train: ConfigDict) -> None:
    """Section 4.2; decay, momentum and steps are HPNet's."""
    train.epochs = 150.0
    train.optimizer.learning_rate = 0.01
    train.optimizer.weight_decay = 5e-4
    train.optimizer.warmup_epochs = 0.0
    train.optimizer.milestones = (120.0,)


def _shrink(config: ConfigDict, arguments: dict[str, Any]) -> None:
    """Sizes that train in minutes on two CPU cores."""
    common.shrink_for_demo(config, arguments, "resnet")
    config.data.height, config.data.width = 192, 64
    # Training images show whole people, queries parts of them.
    config.augment.random_crop.keep = 0.6
    config.augment.colour.factor = (0.8, 1.2)
    train = config.stages.train
    train.identities = 8
    train.epochs = 10.0
    config.evaluation.every_epochs = 5.0
    optimizer = train.optimizer
    optimizer.milestones = ()
    # Masks start at 1/2 everywhere, and a head is no wider than a place of the map.
    masks = {"pattern": r"branch\d+/mask/", "learning_rate": 12.0}
    optimizer.groups.masks = ConfigDict(masks)
    if arguments["scratch"]:
        train.epochs = 12.0
        config.evaluation.every_epochs = 6.0
        optimizer.learning_rate, optimizer.groups.masks.learning_rate = 3e-3, 4.0
    else:  # copies of the backbone's last stage have its weights
        optimizer.groups.untrained.pattern = r"(?!backbone/|branch\d+/stage/)"
    model = config.model
    model.update(baseline.TINY_RESNET)
    model.enhancement_width = 32
    model.mask_width = 32
    model.focal_alpha = 0.9
