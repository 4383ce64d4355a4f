"""The points of a benchmark's sweep: fields of the config, devices, batch."""

from __future__ import annotations

import ast
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from reid_jax import checks, experiment
from reid_jax.backbones.self_attention import check_trains_here
from reid_jax.errors import UserError, did_you_mean
from reid_jax.experiment import Stage
from reid_jax.runtime import sharding
from reid_jax.runtime import workdir as workdirs


@dataclasses.dataclass(frozen=True)
class Point:
    """One combination of what is swept over.

    Attributes:
      config: with the fields of this point.
      fields: those that are swept over, by name.
      devices: to run on.
      batch: images per step over all devices; None is the config's own.
      per_device: whether the sweep gave the batch for each device.
      first: whether no earlier point has the same fields.
    """

    config: Any
    fields: Mapping[str, Any]
    devices: tuple[jax.Device, ...]
    batch: int | None
    per_device: bool
    first: bool

    @property
    def embedded(self) -> int:
        """Images to embed at once."""
        return self.batch or self.config.evaluation.batch_size

    def resize(self, stage: Stage) -> Stage:
        """The stage with this point's batch: as many identities as it takes."""
        if self.batch is None:
            return stage
        identities = self.batch // stage.images_per_identity
        return dataclasses.replace(stage, identities=identities)


def points(
    config: Any,
    *,
    sweeps: Sequence[str] = (),
    devices: Sequence[int] = (),
    batches: Sequence[int] = (),
    per_device: bool = False,
) -> Iterator[Point]:
    """Every combination, devices and batches innermost.

    Args:
      config: of the run; it is not changed.
      sweeps: "field=value,value", each a field of the config.
      devices: numbers of devices; () is all there are.
      batches: images per step; () is the config's own.
      per_device: whether `batches` count for each device.

    Raises:
      UserError: no such field or value, a field twice, or more devices than there
        are.
    """
    chosen = [choose_devices(n) for n in devices or [jax.device_count()]]
    yield from points_over(
        chosen, config, sweeps=sweeps, batches=batches, per_device=per_device
    )


def points_over(
    chosen: Sequence[tuple[Any, ...]],
    config: Any,
    *,
    sweeps: Sequence[str] = (),
    batches: Sequence[int] = (),
    per_device: bool = False,
) -> Iterator[Point]:
    """As `points`, with each of the tuples of devices."""
    parsed = {}
    for name, values in (parse_sweep(text, config) for text in sweeps):
        if name in parsed:
            raise UserError(
                f"--sweep={name} is given twice; write --sweep={name}=VALUE,VALUE"
            )
        parsed[name] = values
    for values in itertools.product(*parsed.values()):
        fields = dict(zip(parsed, values, strict=True))
        changed = with_fields(config, fields)
        checks.check_config(changed)
        sizes = itertools.product(chosen, batches or [None])
        for index, (some, batch) in enumerate(sizes):
            yield Point(
                config=changed,
                fields=fields,
                devices=some,
                batch=batch * len(some) if batch and per_device else batch,
                per_device=per_device,
                first=not index,
            )


def check_training(point: Point, stage: Stage) -> None:
    """Raises UserError if the point cannot be trained here, or with its batch."""
    check_trains_here(point.config.model.get("attention_implementation", ""))
    per_identity = stage.images_per_identity
    if point.batch is not None and (
        point.batch % per_identity or point.batch < 2 * per_identity
    ):
        raise UserError(
            f"a batch of {point.batch} images is not two or more identities of "
            f"config.stages.{stage.name}.images_per_identity={per_identity} images"
        )
    mesh = sharding.make_mesh(point.devices)
    experiment.check_split(point.resize(stage), mesh, field="--batch")


def share_of_device(stage: Stage, count: int) -> Stage:
    """The stage with the identities that each of `count` devices gets by `jax.pmap`.

    Raises:
      UserError: if they cannot be shared.
    """
    if stage.identities % count:
        raise UserError(
            f"--measure=pmap: {count} devices cannot share {stage.identities} "
            "identities; change --batch"
        )
    share = dataclasses.replace(stage, identities=stage.identities // count)
    one = sharding.make_mesh(jax.local_devices()[:1])
    experiment.check_split(share, one, field="--batch")
    return share


def check_embedding(point: Point) -> None:
    """Raises UserError if the point's devices do not divide what they embed."""
    mesh = sharding.make_mesh(point.devices)
    sharding.check_divides(point.embedded, mesh, field="--batch")


def choose_devices(count: int) -> tuple[jax.Device, ...]:
    """The first devices, equally many of each process.

    Raises:
      UserError: if there are not so many.
    """
    processes = jax.process_count()
    each, rest = divmod(count, processes)
    local = [
        [d for d in jax.devices() if d.process_index == process][:each]
        for process in range(processes)
    ]
    if count < 1 or rest or any(len(some) < each for some in local):
        of = f" of {processes} processes, which share the work" if processes > 1 else ""
        raise UserError(
            f"--devices={count}: there are {jax.device_count()} devices{of}; on a CPU, "
            "JAX_NUM_CPU_DEVICES=8 in the environment simulates eight"
        )
    return tuple(itertools.chain(*local))


def parse_sweep(text: str, config: Any) -> tuple[str, tuple[Any, ...]]:
    """Name and values of "field=value,value", the values with the field's type.

    Commas within brackets belong to a value.

    Raises:
      UserError: no such field in the config, or a value of another type.
    """
    name, given, values = text.partition("=")
    name = name.removeprefix("config.")
    known = workdirs.flatten(config.to_dict())
    if name not in known:
        hint = did_you_mean(name, known)
        raise UserError(f"--sweep={text}: the config has no field {name!r}{hint}")
    if not given or not values:
        raise UserError(f"--sweep={text}: write --sweep={name}=VALUE,VALUE")
    place, field = _place(config, name)
    kind = place.get_type(field)
    return name, tuple(_value(piece, kind, name) for piece in _pieces(values))


def _pieces(text: str) -> list[str]:
    """What lies between the commas that are in no brackets."""
    pieces, depth = [""], 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += letter
    return pieces


def _value(text: str, kind: type, name: str) -> Any:
    """The text as a value of a field's type, or None, which `checks` judges."""
    if kind is str:
        return text
    try:
        value = ast.literal_eval(text)
        if kind is float and type(value) is int:
            value = float(value)
        fits = value is None or type(value) is kind
    except (SyntaxError, ValueError):
        fits = False
    if not fits:
        raise UserError(f"--sweep={name}: {text!r} is no {kind.__name__}")
    return value


def with_fields(config: Any, fields: Mapping[str, Any]) -> Any:
    """A copy of a config with other values of some fields."""
    changed = config.copy_and_resolve_references()
    for name, value in fields.items():
        place, field = _place(changed, name)
        place[field] = value
    return changed


def _place(config: Any, name: str) -> tuple[Any, str]:
    """The part of a config that has the field, and the field's own name."""
    *parents, field = name.split(".")
    for parent in parents:
        config = config[parent]
    return config, field
