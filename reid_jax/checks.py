"""Values of a config that make no sense, before anything is computed."""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_pipelines.images import RESIZES
from reid_jax.errors import UserError
from reid_jax.layers.gradients import DTYPES
from reid_jax.retrieval.ranking import APS
from reid_jax.retrieval.search import BY, Search
from reid_jax.retrieval.steps import STEPS, wrong_options, wrong_steps
from reid_jax.runtime import workdir
from reid_jax.runtime.optimizer import OPTIMIZERS
from reid_jax.runtime.trackers import KNOWN

_MANY = 2**31 - 1
_MOST_EPOCHS = 1e6

LIMITS: dict[str, tuple[float, float]] = {
    "seed": (0, _MANY),
    "data.height": (16, 4096),
    "data.width": (16, 4096),
    "data.num_workers": (0, 1024),
    "data.resident_bytes": (0, 2**50),
    "evaluation.every_epochs": (0, _MOST_EPOCHS),
    "evaluation.batch_size": (1, 2**16),
    "evaluation.query_block": (1, 2**20),
    "evaluation.pair_block": (1, 2**20),
    "evaluation.map_cache_bytes": (0, 2**50),
    "evaluation.search.recall": (0.01, 1),
    "evaluation.search.device_bytes": (1, 2**50),
    "checkpoint.every_epochs": (0, _MOST_EPOCHS),
    "checkpoint.keep": (1, _MANY),
    "ema_decay": (0, 1 - 1e-9),
    "log_every_steps": (1, _MANY),
    "max_steps": (0, _MANY),
}
"""Fields of a config, and the least and the greatest value that make sense."""

ITEMS: dict[str, tuple[type, ...]] = {
    "evaluation.pictured": (str, int),
    "augment.steps": (str,),
}
"""Fields that are tuples, and of what."""

LIMITS_OF_STAGE: dict[str, tuple[float, float]] = {
    # Fewer leave batch-hard mining without a negative or a positive.
    "identities": (2, 2**12),
    "images_per_identity": (2, 2**12),
    "micro_batches": (1, 2**16),
    "epochs": (1e-6, _MOST_EPOCHS),
    "optimizer.learning_rate": (0, 1e6),
    "optimizer.weight_decay": (0, 1e6),
    "optimizer.momentum": (0, 1),
    "optimizer.warmup_epochs": (0, _MOST_EPOCHS),
    "optimizer.warmup_from": (0, 1e6),
    "optimizer.final_factor": (0, 1e6),
    "optimizer.decay_factor": (0, 1e6),
    "optimizer.clip_norm": (0, 1e9),
}

_SIZES = ("width", "depth", "heads", "patch_size", "stride", "blocks", "mlp_ratio")
_GROUPS = ("bn_groups", "mining_groups")
"""Fields of a model that are numbers of things of which there is at least one."""

_SHARES = ("drop_path", "dropout", "label_smoothing", "visible_above")
"""Fields of a model that are probabilities, of what never is certain."""

_LARGEST = 2**16
"""More than the widest, deepest network that there is."""


def check_config(config: Any) -> None:
    """Raises UserError for values that make no sense; names all of them."""
    fields = workdir.flatten(config.to_dict())
    if absent := list(_without_value(fields)):
        raise UserError("\n".join(absent))
    limits = dict(LIMITS)
    for stage in config.stages:
        limits |= {f"stages.{stage}.{name}": x for name, x in LIMITS_OF_STAGE.items()}
    wrong = [
        *_outside(fields, limits),
        *_unreadable(fields),
        *_no_protocols(fields["evaluate_on"]),
        *_unknown_trackers(fields["trackers"]),
        *_no_names(fields, ITEMS),
        *_no_steps(config.profile_steps),
        *_no_choice("evaluation.ap", config.evaluation.ap, APS),
        *_of_reranking(config.evaluation.to_dict()),
        *_no_choice("gradient_dtype", config.gradient_dtype, DTYPES),
        *_no_choice("data.resize", config.data.resize, RESIZES),
        *_of_model(config.model.to_dict()),
        *(line for name in config.stages for line in _of_stage(config, name)),
    ]
    if wrong:
        raise UserError("\n".join(wrong))


def remarks(config: Any) -> Iterator[str]:
    """What a training with values that are allowed will hardly be meant to do."""
    for name, stage in config.stages.items():
        if stage.optimizer.warmup_epochs > stage.epochs:
            yield f"config.stages.{name} ends before its warm-up does"
    model = config.model
    if model.get("classifier") == "circle" and model.get("classifier_scale") == 30.0:
        yield (
            "config.model.classifier_scale is ArcFace's, by which circle's loss stays "
            "far above 0 for perfect features, too: TransReID's circle has "
            "classifier_margin=0.25 and classifier_scale=256"
        )


def _outside(
    fields: Mapping[str, Any], limits: Mapping[str, tuple[float, float]]
) -> Iterator[str]:
    for name, (least, greatest) in limits.items():
        if name not in fields:  # a run of an earlier version has fewer
            continue
        value = fields[name]
        if _is_number(value) and least <= value <= greatest:
            continue
        bound = "more than 0" if least == 1e-6 else f"at least {least:,}"
        yield (
            f"config.{name} is {value}; it must be {bound} and at most {greatest:,.15g}"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _without_value(fields: Mapping[str, Any]) -> Iterator[str]:
    """What is None; of the model's own fields that is for `check_kinds` to judge."""
    for name, value in fields.items():
        if value is None and not re.fullmatch(r"model\.[^.]+|pretrained_grid", name):
            yield f"config.{name} is None; it needs a value"


def _unreadable(fields: Mapping[str, Any]) -> Iterator[str]:
    for name, value in fields.items():
        if isinstance(value, str) and "\0" in value:
            yield f"config.{name} is {value!r}; no name has a zero byte"


def _no_protocols(names: Any) -> Iterator[str]:
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        yield (
            f"config.evaluate_on is {names}; it is a tuple of names, such as "
            "('market1501',)"
        )


def _unknown_trackers(names: Any) -> Iterator[str]:
    if not isinstance(names, list) or not all(name in KNOWN for name in names):
        yield (
            f"config.trackers is {names}; it is a tuple of some of {', '.join(KNOWN)}, "
            "such as ('jsonl', 'wandb')"
        )


def _no_names(
    fields: Mapping[str, Any], names: Mapping[str, tuple[type, ...]]
) -> Iterator[str]:
    """Items of lists that are of no type that they may have."""
    for name, kinds in names.items():
        value = fields.get(name, [])
        known = " or ".join(kind.__name__ for kind in kinds)
        if not isinstance(value, list) or not all(type(x) in kinds for x in value):
            yield f"config.{name} is {value}; it is a tuple of {known}"


def _no_steps(profiled: Any) -> Iterator[str]:
    """Whether the run has them is for the training to say."""
    two = _is_of(profiled, tuple[int, int]) and 1 <= profiled[0] < profiled[1] <= _MANY
    if not two and profiled != ():
        yield (
            f"config.profile_steps is {profiled!r}; it is () or two whole numbers, the "
            "first step, at least 1, and the one after the last, such as (10, 15)"
        )


def _no_choice(name: str, value: Any, known: Sequence[str]) -> Iterator[str]:
    if value not in known:
        yield f"config.{name} is {value!r}; it is one of {', '.join(known)}"


def _of_reranking(evaluation: Mapping[str, Any]) -> Iterator[str]:
    """Steps that there are not or that do not follow each other, and idle fields."""
    steps, field = evaluation["rerank"], "config.evaluation.rerank"
    if wrong := wrong_steps(steps):
        yield f"{field} is {wrong}"
        return
    for step, options in STEPS.items():
        of_step = evaluation.get(step, {})
        if step in steps:
            said = wrong_options(step, of_step)
            yield from (f"config.evaluation.{line}" for line in said)
        elif options is not None:
            yield from _idle(step, of_step, options(), f"{field} has no {step!r}")
    yield from _of_search(evaluation["search"], steps)


def _of_search(search: Mapping[str, Any], steps: Sequence[Any]) -> Iterator[str]:
    """How neighbours are found, where steps of re-ranking look for any."""
    yield from _no_options_of_search(search)
    by = search.get("by", BY[0])
    yield from _no_choice("evaluation.search.by", by, BY)
    if by == "top_k":
        recall = {name: search[name] for name in search if name == "recall"}
        yield from _idle("search", recall, Search(), "search.by is 'top_k'")
    elif by in BY and not any(step in steps for step in STEPS if STEPS[step]):
        hint = "no step of config.evaluation.rerank looks for neighbours"
        yield from _idle("search", {"by": by}, Search(), hint)


def _no_options_of_search(search: Mapping[str, Any]) -> Iterator[str]:
    """What is no option, or of another type: a dict may be given for all of them."""
    hints = typing.get_type_hints(Search)
    for name, value in search.items():
        said = f"config.evaluation.search.{name} is {value!r}; "
        if name not in hints:
            yield f"{said}search has {', '.join(hints)}"
        elif hints[name] is not float and not _is_of(value, hints[name]):
            yield f"{said}it is {_said(hints[name])}"


def _idle(
    step: str, fields: Mapping[str, Any], defaults: Any, hint: str
) -> Iterator[str]:
    """Fields that were changed and change nothing."""
    for name, value in fields.items():
        if value != getattr(defaults, name, None):
            yield f"config.evaluation.{step}.{name} is {value}, but {hint}"


def _of_model(model: Mapping[str, Any], within: str = "model") -> Iterator[str]:
    """Numbers of a network, and of the backbone that its `options` describe."""
    for name, value in model.items():
        said = f"config.{within}.{name} is {value!r}; it must be "
        if name == "options" and isinstance(value, Mapping):
            yield from _of_model(value, f"{within}.{name}")
        elif name == "stride" and not _is_of(value, int | tuple[int, int]):
            yield f"{said}two whole numbers, such as (16, 16)"
        elif name in ("mean", "std") and not _is_of(value, tuple[float, float, float]):
            yield f"{said}three numbers, of red, green and blue"
        elif name == "cameras" and not (_is_of(value, int) and value >= 0):
            yield f"{said}a whole number, 0 for none"
        elif name in _SHARES and not (_is_number(value) and 0 <= value < 1):
            yield f"{said}at least 0 and less than 1"
        elif name in _SIZES + _GROUPS or name.endswith("_width"):
            numbers = value if isinstance(value, tuple) else (value,)
            if within != "model" and not all(map(_is_number, numbers)):
                yield f"{said}a number"  # no type is known of it
            elif any(_is_number(n) and not 1 <= n <= _LARGEST for n in numbers):
                yield f"{said}at least 1 and at most {_LARGEST:,}"


def _of_stage(config: Any, name: str) -> Iterator[str]:
    """What no limit of a single field says."""
    stage, field = config.stages[name], f"config.stages.{name}"
    kind = stage.optimizer.name
    yield from _no_choice(f"stages.{name}.optimizer.name", kind, OPTIMIZERS)
    milestones = tuple(stage.optimizer.milestones)
    if not all(_is_number(m) and 0 < m < math.inf for m in milestones):
        yield f"{field}.optimizer.milestones is {milestones}; they are epochs, above 0"
    for group, given in stage.optimizer.groups.to_dict().items():
        if not _is_group(given):
            yield (
                f"{field}.optimizer.groups.{group} is {given!r}; it has a `pattern` "
                "and multipliers, as OptimizerSpec.groups has them"
            )


def _is_group(given: Any) -> bool:
    """Whether a group of parameters has a pattern, and beside it multipliers alone."""
    if not isinstance(given, Mapping):
        return False
    rest = dict(given)
    try:
        re.compile(rest.pop("pattern", None))
    except (TypeError, re.error):
        return False
    known = rest.keys() <= {"learning_rate", "weight_decay"}
    return known and all(_is_number(x) and 0 <= x < math.inf for x in rest.values())


def check_kinds(model: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Raises UserError for fields of `config.model` that are not of their type.

    Args:
      model: the fields.
      hints: types by name; one that is not there, or that is no plain type, is not
        looked at.
    """
    wrong = [
        f"config.model.{name} is {value!r}; it is {_said(hints[name])}"
        for name, value in model.items()
        if name in hints and not _is_of(value, hints[name])
    ]
    if wrong:
        raise UserError("\n".join(wrong))


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a value is of a type; numbers are finite, and a float may be whole."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is_of(value, one) for one in inner)
    if hint in (bool, str, types.NoneType):
        return isinstance(value, hint)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return _is_number(value) and math.isfinite(value)
    if origin not in (tuple, Sequence):
        return True
    if not isinstance(value, tuple | list):
        return False
    if origin is tuple and inner[-1] is not Ellipsis:
        return len(value) == len(inner) and all(map(_is_of, value, inner))
    return all(_is_of(one, inner[0]) for one in value)


def _said(hint: Any) -> str:
    """A type in words: `Sequence[int]`, `float | None`."""
    text = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else ""
    text = text or str(hint).replace("collections.abc.", "").replace("typing.", "")
    return f"of type {text}" + (", finite" if "float" in text else "")
