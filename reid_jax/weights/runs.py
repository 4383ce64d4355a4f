"""A peer's trained network as a run's folder: config, checkpoint, and what went where.

    python -m reid_jax.weights --from=FILE --as=KIND --to=runs/NAME

The folder is what training leaves, so that `--mode=evaluate`, `--mode=export` and
`--config.pretrained` take it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from configs import baseline
from data_pipelines import sampling
from reid_jax import experiment, staging, storage
from reid_jax.backbones.resnet import ResNet
from reid_jax.errors import UserError
from reid_jax.runtime import digests
from reid_jax.runtime import workdir as workdirs
from reid_jax.runtime.state import Meta
from reid_jax.weights import damage, fetch, files, load, mapping, networks, values
from reid_jax.weights.peers import KINDS, STATISTICS, Kind

_CLASSIFIER = "params/heads/classifier/kernel"
_FIXED = {"params/pool/p": 3.0}
"""Our parameters that are constants of peers, and their values there."""

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Sorted:
    """The arrays of a peer's file.

    Attributes:
      arrays: by our path.
      names: the file's names, by our path.
      dropped: the file's names of what is left out.
      statistics: fields of `config.model` that the file holds.
      ceil_pool: see `Kind`.
    """

    arrays: Arrays
    names: dict[str, tuple[str, ...]]
    dropped: tuple[str, ...]
    statistics: dict[str, tuple[float, ...]]
    ceil_pool: bool


def convert(source: str, kind: str, target: pathlib.Path) -> str:
    """Writes a run's folder, and says what was done.

    Args:
      source: a path that `files.read` knows, or a known name.
      kind: a key of `peers.KINDS`.
      target: the folder; must not be there.

    Raises:
      UserError: a source that cannot be read, is of another kind, or holds anything
        that the kind does not account for, or a target that cannot be written;
        nothing is written then.
    """
    if kind not in KINDS:
        raise UserError(
            f"--as={kind} is no kind; known: {', '.join((*KINDS, 'shipped'))}"
        )
    path = fetch.locate(source)
    file = files.read(path)
    if file.convention != files.PYTORCH:
        raise UserError(f"{path} is no file of PyTorch's; --as is for those of peers")
    found = sort(file, KINDS[kind])
    config = describe(found, kind, origin=str(path))
    arrays, filled = complete(found.arrays, config, origin=str(path))
    about = _about(path, kind, found, filled)
    write(target, config, arrays, about)
    return _report(target, KINDS[kind], config, about)


def sort(file: files.WeightFile, kind: Kind) -> Sorted:
    """What each array of a file is.

    Raises:
      UserError: names those that the kind does not account for.
    """
    statistics, rest = _statistics(file)
    mapped = mapping.to_ours(dataclasses.replace(file, arrays=rest))
    arrays = dict(mapped.arrays)
    names = {path: (name,) for path, name in mapped.names.items()}
    heads: dict[str, dict[int, str]] = {}
    dropped, unknown = [], []
    for name in mapped.skipped:
        if place := kind.place(name):
            if other := heads.setdefault(place[0], {}).get(place[1]):
                raise UserError(mapping.one_parameter(file, other, name, place[0]))
            heads[place[0]][place[1]] = name
        elif kind.is_dropped(name) or _is_zero(kind, name, rest[name]):
            dropped.append(name)
        else:
            unknown.append(name)
    if unknown:
        raise UserError(_unaccounted(file, kind, unknown))
    for path, tokens in heads.items():
        arrays[path] = _stacked(file, path, tokens)
        names[path] = tuple(tokens[token] for token in sorted(tokens))
    own = {path: ", ".join(names[path]) for path in heads}
    values.check(file.path, {path: arrays[path] for path in heads}, own)
    ceil_pool = any(map(kind.shows_ceil_pool, mapped.skipped))
    return Sorted(arrays, names, tuple(dropped), statistics, ceil_pool)


def _is_zero(kind: Kind, name: str, array: np.ndarray) -> bool:
    """Whether an array is one that the kind has and we do without, as it is zero."""
    return kind.must_be_zero(name) and not array.any()


def _statistics(
    file: files.WeightFile,
) -> tuple[dict[str, tuple[float, ...]], Arrays]:
    """The mean and the deviation among a file's arrays, and the others."""
    found, rest = {}, {}
    for name, array in file.arrays.items():
        field = STATISTICS.get(name.removeprefix("module."))
        if field and array.size == 3:
            if field in found:
                others = f"{name.removeprefix('module.')} with and without module."
                raise UserError(f"{file.path} holds {others}; leave one of them out")
            values.check(file.path, {name: array}, {name: name})
            units = np.asarray(array, np.float64).ravel() / 255
            found[field] = tuple(round(float(unit), 7) for unit in units)
        else:
            rest[name] = array
    return found, rest


def _stacked(
    file: files.WeightFile, path: str, tokens: Mapping[int, str]
) -> np.ndarray:
    """Arrays of the heads of all tokens, or the exponent of the pooling, as ours."""
    arrays = [file.arrays[tokens[token]] for token in sorted(tokens)]
    if len({array.shape for array in arrays}) > 1:
        listed = ", ".join(tokens.values())
        raise UserError(f"{file.path}: {listed} have several shapes")
    if path.endswith("/kernel"):
        arrays = [array.T for array in arrays]
    return arrays[0] if path in _FIXED else np.stack(arrays)


def _unaccounted(file: files.WeightFile, kind: Kind, names: list[str]) -> str:
    shown = damage.shown(", ".join(names[: load.SHOWN_NAMES]))
    more = len(names) - load.SHOWN_NAMES
    shown += f" and {more} more" if more > 0 else ""
    return (
        f"{file.path} holds arrays that no network of this kind ({kind.about}) has, or "
        f"that would have to be zero: {shown}. Nothing was written: choose another "
        f"--as ({', '.join(KINDS)}), or leave them out of the file if they are not of "
        "the tested network"
    )


def describe(found: Sorted, kind: str, *, origin: str) -> Any:
    """The config of a peer's network: our recipe of its backbone, the peer's test.

    Raises:
      UserError: if the network is none of the kind's.
    """
    row = KINDS[kind]
    name, options, size = networks.describe(found.arrays, origin)
    if name not in row.backbones:
        raise UserError(
            f"{origin} holds a network like {name}, and --as={kind} has: "
            f"{', '.join(row.backbones)}; choose another kind ({', '.join(KINDS)})"
        )
    _check_layer(row, kind, name, options, origin)
    config = baseline.get_config(f"backbone={name}")
    config.variant = kind
    config.pretrained = "none"
    config.model.center_weight = 0.0  # nobody trains here, and no file has centres
    config.data.height, config.data.width = size or row.size
    config.data.resize = row.resize
    config.model.update({**row.model, **found.statistics})
    if "params/pool/p" in found.arrays:
        config.model.pool = "gem"
    options |= {"ceil_pool": True} if found.ceil_pool else {}
    with config.model.options.ignore_type():  # an MLP may have a broken ratio
        config.model.options.update(row.options, **options)
        config.model.options.update(row.options_of.get(name, {}))
    return config


def _check_layer(
    row: Kind, kind: str, name: str, options: Mapping[str, Any], origin: str
) -> None:
    """Raises UserError for a ResNet that has or lacks `Kind.feature_dim` wrongly."""
    width = options.get("feature_dim", 0)
    if not name.startswith("resnet") or width == row.feature_dim:
        return
    of_it = [
        other
        for other, known in KINDS.items()
        if (known.heads, known.feature_dim) == (row.heads, width)
        and name in known.backbones
    ]
    there, here = (
        f"a layer of {n}" if n else "no layer" for n in (width, row.feature_dim)
    )
    raise UserError(
        f"{origin} has {there} between pooling and classifier (fc.0), and --as={kind} "
        f"has {here}; "
        + (f"give --as={of_it[0]}" if of_it else "no kind with its head has that")
    )


def complete(
    given: Mapping[str, np.ndarray], config: Any, *, origin: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The variables of the config's method, and our paths of what a file lacks.

    Only a classifier may be lacking, and what is a constant of the peer.

    Raises:
      UserError: if anything else is, or has another shape.
    """
    kernel = given.get(_CLASSIFIER)
    classes = kernel.shape[-1] if kernel is not None and kernel.ndim else 1
    method = experiment.build_method(config, num_classes=max(classes, 1))
    batch = experiment.example_batch(config, 2)
    shapes = jax.eval_shape(method.init, jax.random.key(0), batch)
    wanted = {
        path: leaf
        for path, leaf in files.flatten(dict(shapes)).items()
        if path.partition("/")[0] in ("params", "batch_stats")
    }
    arrays, filled = dict(given), []
    for path, leaf in wanted.items():
        if path in arrays:
            continue
        if path in _FIXED or path.startswith("params/heads/classifier/"):
            arrays[path] = np.full(leaf.shape, _FIXED.get(path, 0.0), np.float32)
            filled.append(path)
    wrong = list(_differences(arrays, wanted))
    if wrong:
        more = f"\n  and {len(wrong) - 6} more" if len(wrong) > 6 else ""
        raise UserError(
            f"{origin} is not of this kind:\n" + "\n".join(wrong[:6]) + more
        )
    tree = {path: np.asarray(arrays[path], np.float32, order="C") for path in wanted}
    leaves = [tree[path] for path in wanted]
    kept = {name: shapes[name] for name in ("params", "batch_stats") if name in shapes}
    return jax.tree.unflatten(jax.tree.structure(kept), leaves), tuple(filled)


def _differences(arrays: Arrays, wanted: Mapping[str, Any]) -> Iterator[str]:
    for path in sorted(wanted.keys() - arrays.keys()):
        yield f"  missing in the file: {path}"
    for path in sorted(arrays.keys() - wanted.keys()):
        yield f"  only in the file: {path}"
    for path in sorted(wanted.keys() & arrays.keys()):
        if arrays[path].shape != wanted[path].shape:
            yield f"  {path}: {arrays[path].shape} there, {wanted[path].shape} here"


def _about(
    path: pathlib.Path, kind: str, found: Sorted, filled: tuple[str, ...]
) -> dict[str, Any]:
    """What is kept of a conversion beside the weights."""
    about: dict[str, Any] = {"file": path.name, "kind": kind}
    if path.is_file():
        with path.open("rb") as stream:
            about["sha256"] = hashlib.file_digest(stream, "sha256").hexdigest()
    return about | {
        "taken": {path: list(names) for path, names in found.names.items()},
        "dropped": list(found.dropped),
        "filled": list(filled),
        "statistics": found.statistics,
    }


def write(
    target: pathlib.Path,
    config: Any,
    variables: Mapping[str, Any],
    about: Mapping[str, Any],
) -> None:
    """Writes a run's folder, whole or not at all.

    Args:
      target: the folder; must not be there.
      config: of the run.
      variables: from `complete`.
      about: what `conversion.json` says.

    Raises:
      UserError: if nothing can be written there.
    """
    fields = config.to_dict()
    kernel = variables["params"]["heads"]["classifier"]["kernel"]
    meta = Meta(
        stage="train",
        stage_index=0,
        step=0,
        global_step=0,
        method=config.method,
        num_classes=kernel.shape[-1],
        metric_rows=0,
        data={},
        process_count=1,
        best=None,
        evaluation_due=False,
        sampler=sampling.VERSION,
        config=workdirs.flatten(fields),
    )
    target = target.resolve()  # no folder can be renamed to a link
    storage.check_writable(target.parent)
    with (
        storage.written(target.parent),
        staging.built(target, doing="converting") as new,
    ):
        step = new / "checkpoints" / "last" / "0"
        step.mkdir(parents=True)
        collections = {k: v for k, v in variables.items() if k != "params"}
        state = {"params": variables["params"], "collections": collections}
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as writer:
            writer.save(storage.absolute(step) / "state", state)
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as writer:
            writer.save(storage.absolute(step) / "meta", dict(meta))
        digests.write(step)
        workdirs.write_json(new / "config.json", fields)
        workdirs.write_json(new / "conversion.json", about)


def _report(target: pathlib.Path, kind: Kind, config: Any, about: Any) -> str:
    """What went where, in a few lines."""
    data, model = config.data, config.model
    length = "unit length" if model.normalise else "as it is"
    lines = [
        f"{about['file']}: {kind.about}",
        f"  network    {model.backbone}, {dict(model.options)}",
        *_layout(model),
        f"  taken      {sum(map(len, about['taken'].values())):>5} arrays",
        f"  dropped    {len(about['dropped']):>5}{_some(about['dropped'])}",
        f"  filled     {len(about['filled']):>5}{_some(about['filled'])}",
        f"  images     {data.height} x {data.width}, {data.resize}, mean "
        f"{tuple(model.mean)}, deviation {tuple(model.std)}",
        f"  tested     feature {model.feature} the neck, {length}, "
        f"neck {model.neck}, pool {model.pool}",
        f"wrote {target}; what went where is in its conversion.json",
        f"check it with: python -m reid_jax.main --mode=evaluate --workdir={target}",
    ]
    return "\n".join(lines)


def _layout(model: Any) -> Iterator[str]:
    """A line for a ResNet of another layout than the name of its backbone says."""
    if not model.backbone.startswith("resnet50"):
        return
    blocks, width = tuple(model.options.blocks), model.options.width
    if (blocks, width) != (ResNet.blocks, ResNet.width):
        yield (
            f"  note       it is no ResNet-50, which has layers of {ResNet.blocks} "
            f"blocks and a stem of {ResNet.width} channels, but a ResNet of {blocks} "
            f"and {width}"
        )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"  {shown}" if names else ""
