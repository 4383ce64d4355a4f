"""Fields that every config has, and what they mean; the arguments after a colon.

On the command line a field is `--config.NAME=VALUE`, and None where that is a value of
it: `--config.model.margin=None` is the soft margin.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference

from reid_jax.errors import UserError
from reid_jax.retrieval.expansion import Expansion
from reid_jax.retrieval.k_reciprocal import KReciprocal
from reid_jax.retrieval.search import Search

DEMO_DATASET = "synthetic/holistic_demo"


def base(
    name: str, arguments: dict[str, Any], *, demo_dataset: str = DEMO_DATASET
) -> ConfigDict:
    """The BoT recipe that all papers here start from (Luo et al., 2019).

    Args:
      name: of the config's file; the run's default folder is `runs/<name>-<variant>`.
      arguments: from `parse`.
      demo_dataset: as of `parse`.
    """
    config = ConfigDict()
    config.name = name
    config.variant = variant(arguments, demo_dataset)
    # Dotted module with a class named `Method`; yours may live anywhere importable.
    config.method = f"reid_jax.models.{name}"
    config.seed = 0
    # Weights to start from: a file, a folder of a run or of `python -m
    # reid_jax.weights`, a known name such as "resnet50", or "shipped/NAME"; "none"
    # trains from scratch.
    config.pretrained = "none"
    # Rows and columns of the file's position embedding, such as (14, 14), where it does
    # not say them. Runs, exports, converted files, Hugging Face's folders, known names
    # and classifiers of ImageNet do.
    config.pretrained_grid = or_none(tuple)
    # Arrays of that file that the network may lack, as regular expressions.
    config.allow_unexpected = ()

    config.data = _data(arguments["dataset"])
    config.augment = _augment()

    # Keyword arguments of the method's constructor.
    config.model = ConfigDict()
    # One entry for each of the method's stages.
    config.stages = ConfigDict({"train": stage()})

    # Protocols by name, such as ("market1501", "partial_reid:single_shot"); () is the
    # training data set's own.
    config.evaluate_on = ()
    config.evaluation = _evaluation()

    config.checkpoint = ConfigDict()
    # Epochs between checkpoints; the last step is always saved.
    config.checkpoint.every_epochs = 1.0
    # How many of the last checkpoints stay; the best one always does.
    config.checkpoint.keep = 2

    # Decay of an exponential moving average of parameters and batch statistics, such
    # as 0.999 (the last 1000 steps, roughly); it begins anew in every stage. 0: none.
    config.ema_decay = 0.0
    # In which dtype a bfloat16 network's gradients are summed, over the images of a
    # device and over the devices: "compute", the layers' own, sends half as much;
    # "float32" keeps the sums' digits. Of a float32 network they are the same.
    config.gradient_dtype = "compute"

    # Whether parameters and optimizer state are split over the devices (FSDP) and
    # gathered where they are used, instead of lying whole on each of them: less memory,
    # more communication, the same results. Runs may be resumed either way.
    config.shard_parameters = False

    config.log_every_steps = 20
    # Where scalars go: "tensorboard", and "jsonl" for metrics.jsonl, which the report
    # reads, are files; "wandb" and "mlflow" need their packages.
    config.trackers = ("tensorboard", "jsonl")
    # Steps that `jax.profiler` traces into the run's `profile/`, counted as in
    # metrics.jsonl: the first and the one after the last, such as (10, 15); () is none.
    # The first step of a stage, or of a run that goes on, compiles.
    config.profile_steps = ()
    # Stops (and saves) after this many steps over all stages; 0 is no limit.
    config.max_steps = 0
    return config


def _data(dataset: str) -> ConfigDict:
    data = ConfigDict()
    # `name` or `name/config`, as prepared by `python -m data_pipelines.prepare`.
    data.dataset = dataset
    # A folder, or gs://BUCKET/FOLDER: copied to every machine once.
    data.data_dir = "data"
    data.height = 256
    data.width = 128
    # How images are brought to that size: "bilinear" by OpenCV; "pil-bilinear" and
    # "pil-bicubic" as the libraries on PyTorch do it, which is slower.
    data.resize = "bilinear"
    # Processes that decode; 0 reads in threads, which is best on few cores.
    data.num_workers = 0
    # Bytes of each device's memory that the decoded training set may take, such as
    # 4 << 30: for hosts whose cores cannot keep up. 0 decodes for every batch.
    data.resident_bytes = 0
    return data


def _augment() -> ConfigDict:
    augment = ConfigDict()
    # Names of `data_pipelines.transforms.STEPS`, applied in this order to the resized
    # image; the fields of each, in `augment.NAME`, are those of its class.
    augment.steps = ("flip", "pad_crop", "random_erasing")
    augment.flip = ConfigDict({"p": 0.5})
    augment.pad_crop = ConfigDict({"pad": 10})
    augment.random_erasing = ConfigDict(
        {"p": 0.5, "area": (0.02, 0.4), "aspect": (0.3, 3.33), "fill": (124, 116, 104)}
    )
    return augment


def noise_erasing(*, fill: tuple, deviation: tuple) -> ConfigDict:
    """Random erasing by noise, as timm's `RandomErasing(mode="pixel")` has it.

    Args:
      fill, deviation: of the noise, by channel, in 0..255.
    """
    return ConfigDict(
        {
            "p": 0.5,
            "area": (0.02, 1 / 3),
            "aspect": (0.3, 1 / 0.3),
            "log_aspect": True,
            "mode": "pixel",
            "fill": fill,
            "deviation": deviation,
        }
    )


def _evaluation() -> ConfigDict:
    evaluation = ConfigDict()
    # "rectangle" (all tables since about 2018) or "trapezoid" (Market-1501's own code).
    evaluation.ap = "rectangle"
    # False keeps gallery images of the query's own camera, for data whose cameras are
    # unknown; a protocol that has no camera filter never gets one.
    evaluation.camera_filter = True
    # Epochs between evaluations; 0 evaluates at the end only.
    evaluation.every_epochs = 10.0
    evaluation.batch_size = 128
    # Queries ranked at once: memory is query_block x gallery distances.
    evaluation.query_block = 256
    # Whether a run's last evaluation, and --mode=evaluate, draw pictures and keep what
    # the report says of single queries.
    evaluation.pictures = True
    # Queries that pictures show, as file names or indices, such as
    # "('0002_c1s1_000451_03.jpg', 17)"; () spreads them evenly.
    evaluation.pictured = ()
    # Pair models: candidates scored at once, and disk for the gallery's maps.
    evaluation.pair_block = 32
    evaluation.map_cache_bytes = 8 << 30
    evaluation.update(_second_thoughts())
    # Whether the average of `ema_decay`, where there is one, is evaluated and exported
    # in place of the last step's parameters.
    evaluation.ema = True
    return evaluation


def _second_thoughts() -> ConfigDict:
    """What an evaluation does beyond distances and ranks; nothing unless asked for."""
    fields = ConfigDict()
    # Steps of re-ranking, in their order, such as ("flip", "k_reciprocal"): "flip" (the
    # mirror image's features averaged in) only first, "database_augmentation" and
    # "query_expansion" (neighbours' features averaged in), "k_reciprocal" only last.
    # Pair models score the nearest images of what comes out. The fields of each step:
    fields.rerank = ()
    fields.database_augmentation = model(Expansion)
    fields.query_expansion = model(Expansion)
    # (CpaCol's distances are squares already, which are not squared again.)
    fields.k_reciprocal = model(KReciprocal)
    # How neighbours are found ("top_k", or "approx_max_k" with a `recall`), and bytes
    # of a gallery's embeddings that may lie on a device: larger ones are split over
    # the devices, and still larger ones sent from the host for every query block.
    fields.search = model(Search)
    # Whether ROC, and TPR at FPR 1e-3 and 1e-4 with their thresholds, are reported.
    fields.verification = False
    return fields


def stage() -> ConfigDict:
    """A training stage with the BoT batch of 16 x 4 images and PyTorch's SGD."""
    return ConfigDict(
        {
            "epochs": 120.0,
            "identities": 16,
            "images_per_identity": 4,
            # Cuts a batch into so many parts of whole identities, and takes the
            # optimizer's step on the mean of their gradients: the memory of a part.
            # Batch statistics, hard mining, pairs and memory banks see a part at a
            # time, one after the other, so that it is not the same as the whole batch.
            "micro_batches": 1,
            "optimizer": {
                # sgd and adam couple the weight decay as PyTorch does; adamw does not.
                "name": "sgd",
                "learning_rate": 8e-3,
                "momentum": 0.9,
                "weight_decay": 1e-4,
                "warmup_epochs": 10.0,
                "warmup_from": 8e-4,
                # The cosine ends at this fraction of the learning rate.
                "final_factor": 0.002,
                # Instead of the cosine: epochs at which the rate falls by the factor.
                "milestones": (),
                "decay_factor": 0.1,
                # Groups of parameters with multipliers, by names of your own; of two
                # that a parameter fits, the first by alphabet has it. See
                # `OptimizerSpec.groups`.
                "groups": {},
                # Largest global norm of a step's gradients; 0 does not clip.
                "clip_norm": 0.0,
            },
        }
    )


def model(options: type) -> ConfigDict:
    """A method's dataclass of options as `config.model`: its fields and defaults.

    One whose type allows None may be set to it and back.
    """
    fields = ConfigDict()
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        value, allowed = field.default, typing.get_args(hints[field.name])
        if types.NoneType in allowed:
            value = or_none(allowed[0], value)
        fields[field.name] = value
    return fields


def or_none(kind: type, value: Any = None) -> FieldReference:
    """A field of a kind, or None: it may be set to either, whatever it is now."""
    return FieldReference(value, field_type=kind)


def parse(
    arg: str | None,
    *,
    measured_on: Mapping[str, str] | None = None,
    demo_dataset: str = DEMO_DATASET,
    **defaults: Any,
) -> dict[str, Any]:
    """Arguments after a config's colon, such as `demo` or `dataset=msmt17`.

    `demo` is a small network that starts from the library's own weights, and
    `demo,scratch` the same from none.

    Args:
      arg: the text after the colon, comma-separated; a bare name means True.
      measured_on: beginning of a row's name -> the data set that the paper measures
        such rows on, for where no `dataset` is given.
      demo_dataset: what a demo trains on, where no `dataset` is given.
      **defaults: the arguments that the config knows; `demo`, `scratch` and `dataset`
        always are.

    Raises:
      UserError: for an argument that the config does not know or that is there twice,
        or `scratch` alone.
    """
    values = {"demo": False, "scratch": False, "dataset": "market1501", **defaults}
    given = set()
    for item in filter(None, (arg or "").split(",")):
        key, has_value, value = item.partition("=")
        if key not in values or isinstance(values[key], bool) == bool(has_value):
            known = ", ".join(
                f":{k}" if isinstance(v, bool) else f":{k}=..."
                for k, v in values.items()
            )
            raise UserError(f"unknown config argument ':{item}'; known: {known}")
        if key in given:
            raise UserError(f"config argument :{key} is there twice; keep one")
        given.add(key)
        values[key] = value if has_value else True
    if values["scratch"] and not values["demo"]:
        raise UserError(
            ":scratch goes with :demo; a full network starts from nothing with "
            "--config.pretrained=none"
        )
    if "dataset" in given:
        return values
    for beginning, dataset in (measured_on or {}).items():
        if values["row"].startswith(beginning):
            values["dataset"] = dataset
    if values["demo"]:
        values["dataset"] = demo_dataset
    return values


def choice(arguments: dict[str, Any], name: str, known: Iterable[str]) -> str:
    """The value of an argument that is one of a few names.

    Raises:
      UserError: if it is another.
    """
    if arguments[name] not in known:
        listed = ", ".join(known) or "none"
        raise UserError(f"unknown :{name}={arguments[name]}; known: {listed}")
    return arguments[name]


def variant(arguments: dict[str, Any], demo_dataset: str) -> str:
    """Short name of the arguments, for the run's default folder."""
    words = [word for word in ("demo", "scratch") if arguments[word]]
    if not arguments["demo"] or arguments["dataset"] != demo_dataset:
        words.append(arguments["dataset"].replace("/", "-"))
    if arguments.get("row"):
        words.append(arguments["row"])
    return "-".join(words)


Rows = dict[str, dict[str, Any]]
"""Rows of a paper's ablation tables: name -> {field of the config: value}."""

Reported = dict[str, dict[str, dict[str, tuple[float | None, float | None]]]]
"""What a paper reports: table or figure -> row, "" for the paper's system -> data set
tested on -> rank-1 and mAP in percent, None where it does not say."""


def apply_row(config: ConfigDict, rows: Rows, arguments: dict[str, Any]) -> None:
    """Sets the fields of the row that `:row=NAME` names, if any; to be called last.

    The config needs `parse(arg, row="")`.

    Raises:
      UserError: if there is no such row.
    """
    if not arguments["row"]:
        return
    for path, value in rows[choice(arguments, "row", rows)].items():
        *parents, field = path.split(".")
        place = config
        for parent in parents:
            place = place[parent]
        if field not in place:
            raise KeyError(f"row {arguments['row']}: there is no config.{path}")
        place[field] = value


def shrink_for_demo(
    config: ConfigDict,
    arguments: dict[str, Any],
    weights: str | None,
    *,
    clip_norm: float = 0.0,
) -> None:
    """A schedule of minutes on two CPU cores, for a small network and its images.

    By AdamW, which learns in the few epochs there are; the papers' SGD needs more.

    Args:
      config: of `base`.
      arguments: from `parse`; with `scratch` the network starts from nothing.
      weights: those of `shipped/` that it starts from otherwise, which know rendered
        people as the papers' weights know ImageNet; None if there are none for it.
      clip_norm: of gradients, with these weights. A ViT bears the rate until one step
        has ten times the usual gradient, and then forgets what it knew.
    """
    config.data.height = 128
    config.data.width = 64
    config.augment.pad_crop.pad = 5
    train = config.stages.train
    train.optimizer.name = "adamw"
    train.optimizer.weight_decay = 0.05
    train.optimizer.warmup_from = 1e-5
    if weights is None or arguments["scratch"]:
        config.pretrained = "none"
        train.epochs, train.optimizer.learning_rate = 30.0, 1e-3
        train.optimizer.warmup_epochs = 3.0
        config.evaluation.every_epochs = 10.0
    else:
        config.pretrained = f"shipped/{weights}"
        train.epochs, train.optimizer.learning_rate = 20.0, 1e-3
        train.optimizer.warmup_epochs = 1.0
        # What the weights do not fill has far to go.
        untrained = {"pattern": "(?!backbone/)", "learning_rate": 3.0}
        train.optimizer.groups.untrained = ConfigDict(untrained)
        train.optimizer.clip_norm = clip_norm
        config.evaluation.every_epochs = 10.0
