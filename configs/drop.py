"""DROP (Dou et al., 2023) as in section 4.1 of the paper.

    python -m reid_jax.main --config=configs/drop.py:dataset=occluded_duke
    python -m reid_jax.main --config=configs/drop.py
    python -m reid_jax.main --config=configs/drop.py:demo

The paper's setting is HRNet-W32 at 256 x 128, batches of 16 x 4, Adam, 120 epochs, on
part labels from PifPaf: eight parts on occluded data sets, five on holistic ones, which
`:dataset=NAME` chooses.

What the fields of `config.model` mean is said in `reid_jax.models.drop.Options`.

Rows of the paper's tables are arguments, too, alone or with `:demo`; they are trained
on Occluded-Duke, unless `dataset=NAME` says otherwise. Those of Table 6 only test: give
them the checkpoint of a run without a row. Those of single parts have the paper's
eight, as runs on occluded data sets and of `row=table8-8` do.

    python -m reid_jax.main --config=configs/drop.py:demo,row=table4-baseline
    python -m reid_jax.main --mode=evaluate --checkpoint=runs/drop-occluded_duke \\
        --config=configs/drop.py:dataset=occluded_duke,row=table6-g

The demo, five parts on synthetic/holistic_demo, takes a few minutes of CPU time,
of which a good part is compilation; docs/results.md has what it reaches. It is the
paper's system with a small network that starts from weights of rendered people, and no
measure of the paper's settings, because it has to change more than its size:

- `parsing_weight` is 10, not 0.4. The identity losses' gradient passes through the
  parsing's maps, too, and drowns that of the parsing loss, a mean over all places.
- The parsing branch (DPU, position encoder, f_hp) learns at fifteen times the rate of
  the backbone, and what else the weights do not fill at five times. Adam's steps are as
  long as its rate: in a few hundred of them, the branch would not get away from where
  it starts. By the paper's weight and at five times the rate, all places are background
  in the end.
- `spatial_smoothing` is 0.1, not 0.5: on a map of half the size a part has twice the
  border for its area.
- AdamW, 10 epochs of batches of 8 x 4, and a cosine instead of the steps, as for all
  demos: there are 320 steps, not tens of thousands. `:demo,scratch` has 640.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import baseline, common
from data_pipelines.part_labels import groupings
from data_pipelines.part_labels.kinds import KINDS
from reid_jax.errors import UserError
from reid_jax.models.drop import Options

OCCLUDED = ("occluded", "p_duke", "partial")
"""Data sets with one of these in their names get eight parts, all others five."""

HRNET_W32 = {"width": 32, "modules": (1, 4, 3), "blocks": 4, "stem": 64, "incre": 32}
RESNET_50 = {"blocks": (3, 4, 6, 3), "width": 64, "last_stride": 1}

PARTS_OF_TABLE_8 = {
    **{3: "three_v", 4: "four_v", 5: "five_v"},
    **{6: "six_new", 7: "seven_new", 8: "eight"},
}
"""K -> name of the grouping."""


def _parts(count: int, kind: str) -> dict[str, Any]:
    """The fields of K parts in labels of a kind."""
    name = PARTS_OF_TABLE_8[count]
    groups = tuple(tuple(sorted(group)) for group in groupings.grouping(name, kind))
    return {
        "model.part_groups": groups,
        "model.part_names": groupings.group_names(name, kind),
    }


def _backbone(name: str, start: str) -> dict[str, Any]:
    """The fields of a ResNet in HRNet's place."""
    options = RESNET_50 if start == "full" else RESNET_50 | baseline.TINY_RESNET
    weights = "none"
    if start == "full":
        weights = name
    elif start == "demo" and name in baseline.SHIPPED:
        weights = f"shipped/{baseline.SHIPPED[name]}"
    return {
        "pretrained": weights,
        "model.backbone": name,
        "model.options": options,
    }


PLAIN = {"model.triplet": "part_average", "model.spatial_smoothing": 0.0}
HCT = {"model.triplet": "hct"}
NO_SMOOTHING = {"model.spatial_smoothing": 0.0}
NOWHERE = {"model.position": "none"}


def rows(kind: str, start: str = "full") -> common.Rows:
    """The rows of Tables 4 to 9 for one kind of part labels.

    Args:
      kind: whose classes the labels have.
      start: "full", the paper's network; "demo", or "scratch" without weights.
    """
    return {
        "table4-baseline": PLAIN | NOWHERE | {"model.decouple": False},
        "table4-decouple": PLAIN | NOWHERE,
        "table4-ppf": PLAIN,
        "table4-pct": NO_SMOOTHING,
        "table4-ss": {"model.triplet": "part_average"},
        "table4-all": {},
        "table5-hct": NO_SMOOTHING | HCT,
        "table5-part-average": PLAIN,
        "table5-pct": NO_SMOOTHING,
        **_pcb(start),
        **_embeddings(kind),
        "table7-resnet50": _backbone("resnet50", start),
        "table7-resnet50-ibn": _backbone("resnet50_ibn_a", start),
        "table7-hrnet": {},
        **{f"table8-{count}": _parts(count, kind) for count in PARTS_OF_TABLE_8},
        "table9-none": PLAIN | NOWHERE,
        "table9-1d": PLAIN,
        "table9-2d": PLAIN | {"model.position": "2d"},
    }


def _pcb(start: str) -> common.Rows:
    """The right half of Table 5."""
    pcb = {"model.regions": "stripes", "model.embeddings": ("parts",)}
    pcb |= _backbone("resnet50", start)
    return {
        "table5-pcb-hct": pcb | HCT,
        "table5-pcb-part-average": pcb | {"model.triplet": "part_average"},
        "table5-pcb-pct": pcb,
    }


def _embeddings(kind: str) -> common.Rows:
    """Table 6."""

    def tested(*names: str) -> dict[str, Any]:
        return {"model.embeddings": names}

    def part(*names: str) -> dict[str, Any]:
        return tested(*names) | _parts(8, kind)

    return {
        "table6-head": part("head"),
        "table6-torso": part("torso"),
        "table6-right-arm": part("right arm"),
        "table6-left-arm": part("left arm"),
        "table6-legs": part("right leg", "left leg"),
        "table6-feet": part("right foot", "left foot"),
        "table6-g": tested("global"),
        "table6-f": tested("foreground"),
        "table6-p": tested("parts"),
        "table6-gf": tested("global", "foreground"),
        "table6-fp": tested("foreground", "parts"),
        "table6-gfp": tested("global", "foreground", "parts"),
    }


ROWS: common.Rows = rows("pifpaf")


def _duke(rank1: float | None, mean_ap: float) -> dict[str, tuple]:
    return {"occluded_duke": (rank1, mean_ap)}


# Two cells of Table 5 are empty in the text at hand: PCB's rank-1 with HCT, and the mAP
# of PCT, which Table 4 has. Tables 6, 8 and 9 have mAP first.
REPORTED: common.Reported = {
    "Table 1": {"": {"occluded_duke": (76.8, 63.3), "p_dukemtmc": (93.8, 83.4)}},
    "Table 2": {"": {"occluded_reid_half": (94.2, None)}},
    "Table 3": {"": {"market1501": (95.6, 89.5), "dukemtmc": (92.8, 84.3)}},
    "Table 4": {
        "table4-baseline": _duke(57.8, 49.6),
        "table4-decouple": _duke(73.5, 61.3),
        "table4-ppf": _duke(74.6, 61.7),
        "table4-pct": _duke(76.2, 62.8),
        "table4-ss": _duke(75.2, 62.2),
        "table4-all": _duke(76.8, 63.3),
    },
    "Table 5": {
        "table5-hct": _duke(73.8, 61.3),
        "table5-part-average": _duke(74.6, 61.7),
        "table5-pct": _duke(76.2, 62.8),
        "table5-pcb-hct": _duke(None, 50.4),
        "table5-pcb-part-average": _duke(62.2, 50.5),
        "table5-pcb-pct": _duke(63.2, 52.3),
    },
    "Table 6": {
        "table6-head": _duke(44.7, 26.4),
        "table6-torso": _duke(50.3, 29.1),
        "table6-right-arm": _duke(50.5, 29.2),
        "table6-left-arm": _duke(48.6, 30.5),
        "table6-legs": _duke(28.8, 17.1),
        "table6-feet": _duke(12.2, 7.0),
        "table6-g": _duke(64.0, 54.9),
        "table6-f": _duke(69.2, 57.3),
        "table6-p": _duke(75.2, 61.3),
        "table6-gf": _duke(68.1, 58.2),
        "table6-fp": _duke(76.8, 63.3),
        "table6-gfp": _duke(75.8, 63.6),
    },
    "Table 7": {
        "table7-resnet50": _duke(69.3, 54.0),
        "table7-resnet50-ibn": _duke(72.4, 58.0),
        "table7-hrnet": _duke(76.8, 63.3),
    },
    "Table 8": {
        "table8-3": _duke(69.9, 57.2),
        "table8-4": _duke(73.7, 63.0),
        "table8-5": _duke(75.2, 63.6),
        "table8-6": _duke(76.3, 63.4),
        "table8-7": _duke(74.0, 62.5),
        "table8-8": _duke(76.8, 63.3),
    },
    "Table 9": {
        "table9-none": _duke(73.5, 61.3),
        "table9-1d": _duke(74.6, 61.7),
        "table9-2d": _duke(73.2, 61.6),
    },
}

LADDER = ("table4-baseline", "table4-decouple", "table4-ppf", "table4-pct", "")
"""Rows that `benchmarks/ladder.py` trains; the empty name is the paper's system."""


MEASURED_ON = {"table": "occluded_duke"}
"""What the paper's ablations are measured on."""


def get_config(arg: str | None = None) -> ConfigDict:
    """`:demo`, `:dataset=NAME`, `:row=NAME` of the tables.

    `:part_kind=NAME` says which numbers the classes of the part labels have; without
    it `parts` on the synthetic data sets and `pifpaf` on all others.
    """
    arguments = common.parse(arg, row="", part_kind="", measured_on=MEASURED_ON)
    config = common.base("drop", arguments)
    if arguments["part_kind"]:
        config.variant += f"-{arguments['part_kind']}"
    config.pretrained = "hrnet_w32"
    config.model = common.model(Options)
    config.model.options = ConfigDict(HRNET_W32)
    _set_parts(config.model, arguments)
    _set_optimizer(config.stages.train.optimizer)
    if arguments["demo"]:
        _shrink(config, arguments)
    start = next((word for word in ("scratch", "demo") if arguments[word]), "full")
    common.apply_row(config, rows(config.model.part_kind, start), arguments)
    return config


def _set_parts(model: ConfigDict, arguments: dict[str, Any]) -> None:
    """Eight parts on occluded data sets, five on others, in the labels' numbers."""
    dataset = arguments["dataset"]
    usual = "parts" if dataset.startswith("synthetic/") else "pifpaf"
    model.part_kind = arguments["part_kind"] or usual
    _check_kind(model.part_kind)
    occluded = any(word in dataset for word in OCCLUDED)
    for field, value in _parts(8 if occluded else 5, model.part_kind).items():
        model[field.removeprefix("model.")] = value


def _check_kind(kind: str) -> None:
    wanted = set(PARTS_OF_TABLE_8.values())
    able = [k for k in KINDS if wanted.issubset(groupings.known_groupings(k))]
    if kind not in able:
        raise UserError(
            f"part_kind={kind}: DROP's parts, five or eight of them, are told apart by "
            f"labels of kind {' or '.join(able)}"
        )


def _set_optimizer(optimizer: ConfigDict) -> None:
    """Section 4.1; decay and warm-up are BPBreID's."""
    optimizer.name = "adam"
    optimizer.learning_rate = 3.5e-4
    optimizer.weight_decay = 5e-4
    optimizer.warmup_from = 3.5e-6
    optimizer.milestones = (40.0, 70.0)


def _shrink(config: ConfigDict, arguments: dict[str, Any]) -> None:
    """The demo; the file's docstring says why it changes what it changes."""
    model = config.model
    model.options = ConfigDict(baseline.TINY_HRNET)
    model.parsing_width = 16
    model.width = 64
    model.spatial_smoothing = 0.1
    model.parsing_weight = 10.0
    common.shrink_for_demo(config, arguments, "hrnet")
    train = config.stages.train
    train.identities = 8
    train.epochs = 10.0
    config.evaluation.every_epochs = 5.0
    optimizer = train.optimizer
    optimizer.milestones = ()
    parsing = {"pattern": "(parsing|upsampling|position)/", "learning_rate": 15.0}
    optimizer.groups.parsing = ConfigDict(parsing)
    if arguments["scratch"]:
        train.epochs = 20.0
        config.evaluation.every_epochs = 10.0
        optimizer.learning_rate, optimizer.warmup_epochs = 1.5e-3, 1.0
        optimizer.groups.parsing.learning_rate = 10.0
    else:
        others = {"pattern": "(?!backbone/|parsing/|upsampling/|position/)"}
        optimizer.groups.untrained = ConfigDict(others | {"learning_rate": 5.0})
