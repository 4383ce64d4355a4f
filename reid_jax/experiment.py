"""What a config describes, built the same way for every verb: method, stages, data."""

from __future__ import annotations

import dataclasses
import importlib
import pathlib
import pkgutil
from typing import Any

import jax
from jax.experimental import multihost_utils

import reid_jax.models
from data_pipelines import prepare, protocols, records
from reid_jax import weights
from reid_jax.errors import UserError
from reid_jax.models.method import Batch, Method, Variables
from reid_jax.runtime import checkpoint, sharding, workdir
from reid_jax.runtime.optimizer import OptimizerSpec


@dataclasses.dataclass(frozen=True)
class Stage:
    """A training stage in numbers.

    Attributes:
      index, name: its place in `Method.stages`.
      epochs: length; an epoch is `PKPlan.steps_per_epoch` batches.
      identities, images_per_identity: P and K of a batch.
      optimizer: with its schedule.
    """

    index: int
    name: str
    epochs: float
    identities: int
    images_per_identity: int
    optimizer: OptimizerSpec

    @property
    def batch_size(self) -> int:
        """Rows of the global batch."""
        return self.identities * self.images_per_identity


def image_size(config: Any) -> tuple[int, int]:
    """(height, width) that images are resized to."""
    return config.data.height, config.data.width


def build_method(config: Any, *, num_classes: int) -> Method:
    """The method of `config.method`, a dotted module name with a `Method` class.

    Raises:
      UserError: if there is no such module.
    """
    try:
        module = importlib.import_module(config.method)
    except ModuleNotFoundError as error:
        if error.name is None or not config.method.startswith(error.name):
            raise  # the module is there; something that it imports is not
        known = [m.name for m in pkgutil.iter_modules(reid_jax.models.__path__)]
        raise UserError(
            f"config.method={config.method!r} is not a module; in reid_jax.models "
            f"there are: {', '.join(sorted(set(known) - {'method'}))}"
        ) from None
    return module.Method(
        num_classes=num_classes, image_size=image_size(config), **config.model.to_dict()
    )


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
        )
        for index, name in enumerate(method.stages)
    )


def open_split(config: Any, dataset: str, split: str) -> records.Records:
    """One split of a prepared data set; the embedded one is rendered when missing.

    Raises:
      UserError: if it is not prepared; the message names the command.
    """
    if dataset.startswith("synthetic/"):
        if jax.process_index() == 0:
            prepare.prepare(dataset, data_dir=config.data.data_dir)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("data prepared")
    return records.open_records(dataset, split, config.data.data_dir)


def build_protocols(config: Any) -> tuple[protocols.Protocol, ...]:
    """The protocols to evaluate on: `evaluate_on`, or the training set's own."""
    chosen = config.evaluation
    named = map(protocols.protocol, chosen.evaluate_on or (config.data.dataset,))
    return tuple(
        dataclasses.replace(
            protocol,
            ap=chosen.ap,
            camera_filter=protocol.camera_filter and chosen.camera_filter,
        )
        for protocol in named
    )


def restore(
    config: Any, folder: pathlib.Path, mesh: jax.sharding.Mesh
) -> tuple[Method, Variables]:
    """The method of a checkpoint's folder with its variables, replicated on `mesh`.

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
    _tell_differences(config, meta["config"])
    method = build_method(config, num_classes=meta["num_classes"])
    shapes = jax.eval_shape(method.init, jax.random.key(0), example_batch(config, 2))
    layout = sharding.replicated(mesh)
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout), shapes
    )
    return method, checkpoint.read_variables(folder, abstract)


def _tell_differences(config: Any, trained: dict[str, Any]) -> None:
    """Says which fields of the model differ from those that it was trained with.

    They may differ on purpose (another test feature, another image size) where the
    parameters' shapes allow it.
    """
    now = workdir.flatten(config.to_dict())
    for field in sorted(now):
        named = field.startswith("model.") or field in ("data.height", "data.width")
        if named and now[field] != trained.get(field) and jax.process_index() == 0:
            print(f"note: config.{field} is {now[field]}; trained {trained.get(field)}")


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


DEMO_HINT = (
    "To see it work without any of this, append ':demo' to the config's path; "
    "--config.pretrained=none trains from scratch."
)


def wants_pretrained(config: Any) -> bool:
    """Whether the config names weights to start from."""
    return str(config.pretrained).lower() not in ("none", "")


def open_training_data(config: Any) -> records.Records:
    """The training split.

    Raises:
      UserError: if it is not prepared; says how to, and where weights come from.
    """
    try:
        return open_split(config, config.data.dataset, "train")
    except UserError as error:
        known = weights.KNOWN.get(config.pretrained)
        source = f"\nIts pretrained weights come from {known.url}." if known else ""
        raise UserError(f"{error}{source}\n{DEMO_HINT}") from error


def check_pretrained(config: Any) -> None:
    """Finds the pretrained weights, or downloads them, before anything else is done.

    Raises:
      UserError: if they cannot be had.
    """
    if not wants_pretrained(config):
        return
    try:
        weights.locate(config.pretrained)
    except UserError as error:
        raise UserError(f"{error}\n{DEMO_HINT}") from error


def load_pretrained(config: Any, method: Method, variables: Variables) -> Variables:
    """Fresh variables with the pretrained values in their places; prints a report.

    Raises:
      UserError: if the weights do not fit the method's backbone.
    """
    loaded, _ = weights.load_pretrained(
        variables,
        config.pretrained,
        position_grid=method.position_grid,
        copies=method.pretrained_copies,
        allow_unexpected=config.allow_unexpected,
    )
    return loaded
