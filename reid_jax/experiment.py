"""What a config describes, built the same way for every verb: method, stages, data."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from etils import epath
from jax.experimental import multihost_utils

import reid_jax.models
from data_pipelines import images, prepare, prepared, protocols, records, transforms
from reid_jax import checks, storage
from reid_jax.errors import UserError
from reid_jax.models.method import Batch, Method, Variables
from reid_jax.retrieval.search import Search
from reid_jax.retrieval.steps import STEPS
from reid_jax.runtime import checkpoint, sharding, workdir
from reid_jax.runtime.optimizer import OptimizerSpec


@dataclasses.dataclass(frozen=True)
class Stage:
    """A training stage in numbers.

    Attributes:
      index, name: its place in `Method.stages`.
      epochs: length; an epoch is `PKPlan.steps_per_epoch` batches.
      identities, images_per_identity: P and K of a batch.
      micro_batches: parts of a batch that are differentiated one after the other.
      optimizer: with its schedule.
    """

    index: int
    name: str
    epochs: float
    identities: int
    images_per_identity: int
    optimizer: OptimizerSpec
    micro_batches: int = 1

    @property
    def batch_size(self) -> int:
        """Rows of the global batch."""
        return self.identities * self.images_per_identity

    @property
    def micro_batch_size(self) -> int:
        """Rows that the method sees at once."""
        return self.batch_size // self.micro_batches


@dataclasses.dataclass(frozen=True)
class EvaluationSpec:
    """Where an evaluation finds its data, and how much it does at once.

    Attributes:
      data_dir: of the prepared data sets.
      image_size: (height, width) of the images.
      batch_size: images that are embedded at once, over all devices.
      query_block: queries that are ranked at once.
      pair_block: of a pair model, candidates that are scored at once.
      map_cache_bytes: of a pair model, disk for the gallery's maps.
      pictured: queries that pictures show, by file name or index; () spreads them.
      rerank: steps of re-ranking in their order, with their options.
      search: how neighbours are found, and what a device may hold of a gallery.
      verification: whether ROC is reported.
      resize: how images are brought to that size.
      pictures: whether a last evaluation draws.
    """

    data_dir: str
    image_size: tuple[int, int]
    batch_size: int
    query_block: int
    pair_block: int
    map_cache_bytes: int
    pictured: tuple[str | int, ...] = ()
    rerank: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    search: Search = dataclasses.field(default_factory=Search)
    verification: bool = False
    resize: str = images.BILINEAR
    pictures: bool = True


def image_size(config: Any) -> tuple[int, int]:
    """(height, width) that images are resized to."""
    return config.data.height, config.data.width


def build_method(config: Any, *, num_classes: int) -> Method:
    """The method of `config.method`, a dotted module name with a `Method` class.

    Raises:
      UserError: if there is no such module or class, or `config.model` lacks one of its
        fields or has one that it does not know.
    """
    made = _method_class(config.method)
    given = {"num_classes": num_classes, "image_size": image_size(config)}
    given |= config.model.to_dict()
    try:
        arguments = inspect.signature(made).bind(**given).kwargs
        if options := _options(made):
            own = inspect.signature(made).parameters
            rest = {k: v for k, v in arguments.items() if k not in own}
            inspect.signature(options).bind(**rest)
    except TypeError as error:
        raise UserError(f"config.model does not fit {config.method}: {error}") from None
    checks.check_kinds(config.model.to_dict(), types_of_fields(config.method))
    return made(**given)


def types_of_fields(method: str) -> dict[str, Any]:
    """Types of a method's fields: its arguments, and its dataclass of options."""
    made = _method_class(method)
    hints, options = typing.get_type_hints(made.__init__), _options(made)
    return hints | typing.get_type_hints(options) if options else hints


def _options(made: type[Method]) -> type | None:
    """The dataclass of a method's fields, where its module has one."""
    return getattr(importlib.import_module(made.__module__), "Options", None)


def _method_class(name: str) -> type[Method]:
    known = {m.name for m in pkgutil.iter_modules(reid_jax.models.__path__)}
    hint = f"in reid_jax.models there are: {', '.join(sorted(known - {'method'}))}"
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise  # the module is there; something that it imports is not
        raise UserError(f"config.method={name!r} is not a module; {hint}") from None
    except (TypeError, ValueError):  # a relative name, or none
        raise UserError(f"config.method={name!r} is not a module; {hint}") from None
    made = getattr(module, "Method", None)
    if not (isinstance(made, type) and issubclass(made, Method)) or made is Method:
        raise UserError(
            f"config.method={name!r} has no class `Method` derived from "
            f"reid_jax.models.method.Method; {hint}"
        )
    return made


def build_stages(config: Any, method: Method) -> tuple[Stage, ...]:
    """The method's stages with the config's numbers."""
    return tuple(
        Stage(
            index=index,
            name=name,
            epochs=config.stages[name].epochs,
            identities=config.stages[name].identities,
            images_per_identity=config.stages[name].images_per_identity,
            optimizer=OptimizerSpec(**config.stages[name].optimizer.to_dict()),
            micro_batches=config.stages[name].micro_batches,
        )
        for index, name in enumerate(method.stages)
    )


def check_split(stage: Stage, mesh: jax.sharding.Mesh, *, field: str) -> None:
    """Raises UserError for a batch that cannot be cut as the stage and a mesh want it.

    Args:
      stage: whose batch.
      mesh: each micro-batch is split over it.
      field: where the batch size is chosen, for the message.
    """
    count = stage.micro_batches
    if stage.identities % count or stage.identities < 2 * count:
        raise UserError(
            f"config.stages.{stage.name}.micro_batches={count} does not cut a batch of "
            f"{stage.identities} identities into equal parts of two or more: change "
            f"that or {field}"
        )
    kind = "micro-batch" if count > 1 else "batch"
    sharding.check_divides(stage.micro_batch_size, mesh, field=field, kind=kind)


def build_augment(config: Any) -> transforms.Augment:
    """The steps of `config.augment`.

    Raises:
      UserError: for a step or a parameter that does not exist.
    """
    fields = config.augment.to_dict()
    return transforms.build(fields.pop("steps"), fields)


def open_split(
    dataset: str, split: str, data_dir: str, *, resize: str = images.BILINEAR
) -> records.Records:
    """One split of a prepared data set; the embedded one is rendered when missing.

    Into a bucket nothing is rendered.

    Raises:
      UserError: if it is not prepared; the message names the command.
    """
    rendered = [n for n in prepared.joined_names(dataset) if n.startswith("synthetic/")]
    if rendered and not storage.in_bucket(data_dir):
        for name in rendered if jax.process_index() == 0 else ():
            prepare.prepare(name, data_dir=data_dir)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("data prepared")
    return prepared.open_records(dataset, split, data_dir).resized_by(resize)


def check_parts(method: Method, stored: records.Records, inputs: Iterable[str]) -> None:
    """Raises UserError if a method reads part labels that a split cannot give it."""
    if "parts" not in inputs:
        return
    if not stored.has_parts:
        raise UserError(
            "this method reads part labels, and the data set has none: prepare it with "
            "--parts=FOLDER --parts_kind=KIND, take one that has them, such as "
            "synthetic/holistic_demo, or configure the method without them"
        )
    if stored.parts_kind != method.part_kind:
        raise UserError(
            f"the data set's part labels are of kind {stored.parts_kind!r}, but the "
            f"method's classes are numbered as in {method.part_kind!r}: set its "
            "classes and config.model.part_kind together (see "
            "data_pipelines/part_labels/groupings.py)"
        )


def build_evaluation(config: Any) -> EvaluationSpec:
    """How the config's methods are evaluated."""
    chosen = config.evaluation
    return EvaluationSpec(
        data_dir=config.data.data_dir,
        image_size=image_size(config),
        batch_size=chosen.batch_size,
        query_block=chosen.query_block,
        pair_block=chosen.pair_block,
        map_cache_bytes=chosen.map_cache_bytes,
        pictured=chosen.pictured,
        rerank={step: _options_of_step(chosen, step) for step in chosen.rerank},
        search=Search(**chosen.search.to_dict()),
        verification=chosen.verification,
        resize=config.data.resize,
        pictures=chosen.pictures,
    )


def _options_of_step(evaluation: Any, step: str) -> Any:
    """Those of a step of re-ranking, None where it has none."""
    made = STEPS[step]
    return made(**evaluation[step].to_dict()) if made else None


def build_protocols(config: Any) -> tuple[protocols.Protocol, ...]:
    """The protocols to evaluate on: `evaluate_on`, or the first training set's own.

    Raises:
      UserError: if one is unknown, or of joined training sets.
    """
    chosen = config.evaluation
    for name in config.evaluate_on:
        if prepared.JOINT in name:
            raise UserError(
                f"config.evaluate_on: {name} joins training sets; name those that are "
                "evaluated on one by one"
            )
    first = prepared.joined_names(config.data.dataset)[0]
    named = map(protocols.protocol, config.evaluate_on or (first,))
    return tuple(
        dataclasses.replace(
            protocol,
            ap=chosen.ap,
            camera_filter=protocol.camera_filter and chosen.camera_filter,
        )
        for protocol in named
    )


def restore(
    config: Any, folder: epath.Path, mesh: jax.sharding.Mesh
) -> tuple[Method, Variables]:
    """The method of a checkpoint's folder with its variables, replicated on `mesh`.

    Collections that only training reads are left out.

    The number of training identities comes from the checkpoint, so that the training
    data need not be there.

    Raises:
      UserError: if the checkpoint is another model's than the config describes.
    """
    meta = checkpoint.read_meta(folder)
    if meta["method"] != config.method:
        raise UserError(
            f"{folder} holds a model of {meta['method']}, but config.method is "
            f"{config.method}; use the config that trained it"
        )
    for field, value in changed_fields(config, meta["config"]).items():
        if jax.process_index() == 0:
            trained = meta["config"].get(field)
            print(f"note: config.{field} is {value}; it was trained with {trained}")
    method = build_method(config, num_classes=meta["num_classes"])
    if meta["stage"] not in method.stages:
        raise UserError(
            f"{folder} was saved in a stage {meta['stage']!r}, which is none of "
            f"{meta['method']}'s: {', '.join(method.stages)}"
        )
    shapes = jax.eval_shape(method.init, jax.random.key(0), example_batch(config, 2))
    abstract = checkpoint.place(without_rows(method, shapes), sharding.replicated(mesh))
    variables = checkpoint.read_variables(
        folder,
        abstract,
        unwanted=_of_training(method),
        averaged=takes_average(config, meta["config"]),
    )
    return method, variables


def takes_average(config: Any, trained: Mapping[str, Any]) -> bool:
    """Whether moving averages are evaluated and exported in place of parameters.

    Args:
      config: says whether they are to be.
      trained: fields of the run's config, by dotted name: whether there are any.
    """
    return trained.get("ema_decay", 0.0) > 0 and config.evaluation.ema


def without_rows(method: Method, variables: Variables) -> Variables:
    """What evaluation needs: all but what only training reads."""
    unwanted = _of_training(method)
    return {name: value for name, value in variables.items() if name not in unwanted}


def _of_training(method: Method) -> tuple[str, ...]:
    return (*method.row_axes, *method.training_only)


def changed_fields(config: Any, trained: dict[str, Any]) -> dict[str, Any]:
    """Fields of the network whose values differ from those that it was trained with.

    They may differ on purpose (another test feature, another image size) where the
    parameters' shapes allow it.
    """
    now = workdir.flatten(config.to_dict())
    others = {"data.height", "data.width", "data.resize"}
    if trained.get("ema_decay", 0.0):
        others.add("evaluation.ema")
    return {
        field: value
        for field, value in sorted(now.items())
        if (field.startswith("model.") or field in others)
        and field not in workdir.FREE_FIELDS
        and value != trained.get(field, value)  # a field that is newer than the run
    }


def example_batch(config: Any, batch_size: int) -> Batch:
    """Shapes and dtypes of a training batch, for `Method.init` and tracing."""
    height, width = image_size(config)
    shape = jax.ShapeDtypeStruct
    rows = {
        name: shape((batch_size,), "int32")
        for name in ("label", "person", "camera", "index")
    }
    return rows | {
        "image": shape((batch_size, height, width, 3), "uint8"),
        "parts": shape((batch_size, height, width), "uint8"),
    }
