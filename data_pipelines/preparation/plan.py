"""What is asked of a preparation, checked, and what will be built."""

import dataclasses
import difflib
import functools
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import tensorflow_datasets as tfds
import tqdm

from data_pipelines import store
from data_pipelines.entries import Split
from data_pipelines.part_labels import label_files
from data_pipelines.readers.datasets import DATASETS
from data_pipelines.readers.sources import DataSet, check_published
from data_pipelines.synthetic.builder import Synthetic
from reid_jax.errors import UserError

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be built: under which name and version, and how."""

    name: str
    version: str
    make: Callable[[pathlib.Path], tfds.core.DatasetBuilder]


def known_datasets() -> list[str]:
    """Names that `prepare` accepts."""
    synthetic = [f"synthetic/{config.name}" for config in Synthetic.BUILDER_CONFIGS]
    return [*DATASETS, *synthetic]


def make_plan(
    dataset: str,
    *,
    source: str | os.PathLike | None,
    options: Mapping[str, str | os.PathLike | None],
    part_labels: tuple[str | os.PathLike | None, str | None],
    allow_other_counts: bool,
    name: str | None,
    progress: bool,
) -> Plan:
    """What `data_pipelines.prepare.prepare` is asked for, checked.

    Raises:
      UserError: an unknown data set, a name that cannot be used, or arguments that do
        not go together.
    """
    if dataset not in known_datasets():
        raise _unknown(dataset)
    options = {key: value for key, value in options.items() if value is not None}
    if dataset in DATASETS:
        chosen = DATASETS[dataset]
        scan = functools.partial(
            _scan, chosen, source, options, part_labels, allow_other_counts
        )
        return _source_plan(
            chosen,
            name=_checked_name(chosen, name),
            scan=scan,
            track=_tracker(progress),
        )
    if source or name or allow_other_counts or options or any(part_labels):
        raise UserError(
            f"{dataset} is rendered by the library: leave out --source, --name, "
            "--lists, --parts, --parts_kind and --allow_other_counts."
        )
    config = dataset.split("/")[1]
    return Plan(dataset, str(Synthetic.VERSION), functools.partial(_synthetic, config))


def _source_plan(
    data_set: DataSet,
    *,
    name: str,
    scan: Callable[[], Mapping[str, Split]],
    track: store.Track,
) -> Plan:
    def make(staging: pathlib.Path) -> tfds.core.DatasetBuilder:
        return store.builder(
            scan(), name=name, title=data_set.title, data_dir=staging, track=track
        )

    return Plan(name, str(store.VERSION), make)


def _scan(
    data_set: DataSet,
    source: str | os.PathLike | None,
    options: Mapping[str, object],
    part_labels: tuple[str | os.PathLike | None, str | None],
    allow_other_counts: bool,
) -> dict[str, Split]:
    if not source:
        raise UserError(f"{data_set.name} needs --source. {data_set.expected}")
    for option in options:
        if option not in data_set.options:
            raise UserError(f"{data_set.name} has no use for --{option}: leave it out.")
    splits = data_set.read(source, **options)
    if not allow_other_counts:
        check_published(data_set, splits)
    return label_files.attach(splits, *part_labels)


def _synthetic(config: str, staging: pathlib.Path) -> tfds.core.DatasetBuilder:
    return Synthetic(
        config=config, data_dir=os.fspath(staging), file_format="array_record"
    )


def _tracker(progress: bool) -> Callable[[Sequence, str], Iterable]:
    def track(entries: Sequence, split: str) -> Iterable:
        return tqdm.tqdm(entries, desc=split, unit=" images", disable=not progress)

    return track


def _unknown(dataset: str) -> UserError:
    known = known_datasets()
    near = difflib.get_close_matches(dataset, known, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return UserError(
        f"Unknown data set {dataset!r}.{hint} Known: {', '.join(known)}. A data set of "
        "your own in Market-1501's layout: --dataset=market1501 --source=<folder or "
        "zip> --allow_other_counts --name=<its_name>."
    )


def _checked_name(data_set: DataSet, name: str | None) -> str:
    if name is None:
        if data_set.published is None:
            raise UserError(
                f"{data_set.name} is a data set of your own: add --name=<its_name>."
            )
        name = data_set.name
    if name != data_set.name and name in DATASETS:
        raise UserError(
            f"--name={name} is the name of a published data set; choose another, so "
            "that results cannot be taken for its."
        )
    if not _NAME.fullmatch(name) or name == "synthetic":
        raise UserError(
            f"--name={name!r} cannot be used. A name has at most 64 small letters, "
            "digits and _, starts with a letter, and is not 'synthetic'."
        )
    return name
