"""What will be built: a request checked, with what makes the data set."""

import dataclasses
import difflib
import functools
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import tensorflow_datasets as tfds
import tqdm

from data_pipelines import prepared, store
from data_pipelines.entries import Split
from data_pipelines.part_labels import label_files
from data_pipelines.preparation import request as requests
from data_pipelines.preparation.request import Request
from data_pipelines.readers.datasets import DATASETS
from data_pipelines.readers.sources import DataSet, check_published
from data_pipelines.synthetic.builder import Synthetic
from reid_jax.errors import UserError

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


class Plan(Protocol):
    """A data set that can be built, under a name and a version."""

    name: str
    version: str
    progress: bool

    def builder(self, folder: pathlib.Path) -> tfds.core.DatasetBuilder:
        """What builds it below a folder."""

    def check(self, path: pathlib.Path) -> str:
        """Compares it with what is prepared under its name; says what was compared.

        Raises:
          UserError: they differ.
        """


def known_datasets() -> list[str]:
    """Names that `prepare` accepts."""
    synthetic = [f"synthetic/{config.name}" for config in Synthetic.BUILDER_CONFIGS]
    return [*DATASETS, *synthetic]


def make_plan(request: Request, *, progress: bool) -> Plan:
    """What a request stands for, checked as far as can be without its source.

    Raises:
      UserError: an unknown data set, a name that cannot be used, or arguments that do
        not go together.
    """
    if request.dataset not in known_datasets():
        raise _unknown(request.dataset)
    if request.dataset in DATASETS:
        data_set = DATASETS[request.dataset]
        name = _checked_name(data_set, request)
        return _FromSource(data_set, request, name=name, progress=progress)
    if request.given:
        flags = ", ".join(f"--{name}" for name in request.given)
        raise UserError(
            f"{request.dataset} is rendered by the library: leave out {flags}."
        )
    return _Rendered(request.dataset, progress=progress)


@dataclasses.dataclass(frozen=True)
class _Rendered:
    """One of the data sets that the library renders."""

    name: str
    progress: bool
    version: str = str(Synthetic.VERSION)

    def builder(self, folder: pathlib.Path) -> tfds.core.DatasetBuilder:
        return Synthetic(
            config=self.name.split("/")[1],
            data_dir=os.fspath(folder),
            file_format="array_record",
            progress=self.progress,
        )

    def check(self, path: pathlib.Path) -> str:
        return ""


@dataclasses.dataclass(frozen=True)
class _FromSource:
    """A data set that a reader lists."""

    data_set: DataSet
    request: Request
    name: str
    progress: bool
    version: str = str(store.VERSION)

    def builder(self, folder: pathlib.Path) -> tfds.core.DatasetBuilder:
        return store.builder(
            self._splits,
            name=self.name,
            title=self.data_set.title,
            data_dir=folder,
            track=self._track,
            skip_bad=self.request.skip_bad_images,
            made_from=self.request.origin | {"content": self._content},
        )

    def check(self, path: pathlib.Path) -> str:
        stored = prepared.metadata(self.name, path.parents[1]).get("made_from")
        if stored is None:
            return "What it was made from was not noted down; --overwrite prepares it."
        there = self.request.source and os.path.exists(self.request.origin["source"])
        found = self._content if there else None
        asked = self.request.origin | {"content": found}
        requests.compare(stored, asked, name=self.name, path=path)
        if not there:
            return "Its source is not there any more and was not compared."
        labels = "" if requests.knows_labels(stored) else _LABELS_UNKNOWN
        return (
            "Its source has the same names, persons and cameras; no image was read "
            f"again.{labels}"
        )

    @property
    def _content(self) -> dict[str, Any]:
        return requests.content(self._splits)

    @functools.cached_property
    def _splits(self) -> Mapping[str, Split]:
        request, data_set = self.request, self.data_set
        if not request.source:
            raise UserError(f"{data_set.name} needs --source. {data_set.expected}")
        options = {} if request.lists is None else {"lists": request.lists}
        if not options.keys() <= set(data_set.options):
            raise UserError(f"{data_set.name} has no use for --lists: leave it out.")
        splits = data_set.read(request.source, **options)
        if not request.allow_other_counts:
            check_published(data_set, splits)
        return label_files.attach(splits, request.parts, request.parts_kind)

    def _track(self, entries: Sequence, split: str) -> Iterable:
        return tqdm.tqdm(entries, desc=split, unit=" images", disable=not self.progress)


_LABELS_UNKNOWN = (
    " Its part labels were not noted down and not compared; --overwrite prepares it."
)

_BEDS = "synthetic/bed_"
"""What names begin with that a message has no place for: there are two dozen."""


def _unknown(dataset: str) -> UserError:
    known = known_datasets()
    near = difflib.get_close_matches(dataset, known, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    listed = ", ".join(name for name in known if not name.startswith(_BEDS))
    return UserError(
        f"Unknown data set {dataset!r}.{hint} Known: {listed}, and test beds, {_BEDS}"
        "<bed>_<step> (docs/data.md). A data set of your own in Market-1501's layout: "
        "--dataset=market1501 --source=<folder or zip> --allow_other_counts "
        "--name=<its_name>."
    )


def _checked_name(data_set: DataSet, request: Request) -> str:
    name = data_set.name if request.name is None else request.name
    own = name != data_set.name
    if data_set.published is None and not own:
        raise UserError(
            f"{data_set.name} is a data set of your own: add --name=<its_name>."
        )
    if own and name in DATASETS:
        raise UserError(
            f"--name={name} is the name of a published data set; choose another, so "
            "that results cannot be taken for its."
        )
    if not _NAME.fullmatch(name) or name == "synthetic":
        raise UserError(
            f"--name={name!r} cannot be used. A name has at most 64 small letters, "
            "digits and _, starts with a letter, and is not 'synthetic'."
        )
    if request.allow_other_counts and not own:
        raise UserError(
            "--allow_other_counts needs --name=<its_name>: other images must not be "
            f"taken for {data_set.name}."
        )
    if request.skip_bad_images and not own:
        raise UserError(
            "--skip_bad_images needs --name=<its_name>: what is left must not be taken "
            f"for {data_set.name}."
        )
    return name
