"""What is asked of a preparation, and whether a prepared data set is that."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from data_pipelines.entries import Split
from data_pipelines.part_labels import label_files
from reid_jax import storage
from reid_jax.errors import UserError

Place = str | os.PathLike | None

_PATHS = ("source", "lists", "parts")


@dataclasses.dataclass(frozen=True)
class Request:
    """The arguments of `data_pipelines.prepare.prepare` that say what is prepared."""

    dataset: str
    source: Place = None
    lists: Place = None
    parts: Place = None
    parts_kind: str | None = None
    allow_other_counts: bool = False
    skip_bad_images: bool = False
    name: str | None = None

    @property
    def given(self) -> dict[str, Any]:
        """The arguments beside the data set that are there."""
        fields = dataclasses.asdict(self)
        del fields["dataset"]
        return {name: value for name, value in fields.items() if value}

    @property
    def origin(self) -> dict[str, Any]:
        """What is remembered of it beside a prepared data set, as JSON."""
        asked = dataclasses.asdict(self)
        for name in _PATHS:
            if asked[name] is not None:
                asked[name] = os.path.abspath(storage.expanded(asked[name]))
        # Neither changes what is stored.
        del asked["allow_other_counts"], asked["name"]
        return asked


def content(splits: Mapping[str, Split]) -> dict[str, Any]:
    """What was found in a source, split by split, as JSON."""
    return {
        name: split.fingerprint | label_files.fingerprint(split)
        for name, split in splits.items()
    }


def knows_labels(stored: Mapping[str, Any]) -> bool:
    """Whether the part labels of a prepared data set, if any, can be compared.

    Not those of one that was prepared before they were noted down.
    """
    return all(
        "labels" in found or not found["labelled"]
        for found in stored["content"].values()
    )


def compare(
    stored: Mapping[str, Any],
    asked: dict[str, Any],
    *,
    name: str,
    path: pathlib.Path,
) -> None:
    """Sees whether a prepared data set is what is asked for.

    Args:
      stored: its `Request.origin`, with `content`.
      asked: the same of the request; `content` None where the source is not there.
      name: of the data set.
      path: where it lies.

    Raises:
      UserError: it is not; the message names both.
    """
    # Where both contents are known, the same data may lie elsewhere by now.
    ignored = _PATHS if asked["content"] else ("content",)
    if asked["content"] and not knows_labels(stored):
        asked = asked | {"content": _without_labels(asked["content"])}
    if all(stored[key] == asked[key] for key in asked if key not in ignored):
        return
    raise UserError(
        f"{name} is prepared in {path} already, from something else.\n"
        f"There: {_described(stored)}\n"
        f"Asked: {_described(asked)}\n"
        "--overwrite replaces it; another --name keeps both. Nothing was done."
    )


def _without_labels(content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        split: {key: value for key, value in found.items() if key != "labels"}
        for split, found in content.items()
    }


def _described(origin: Mapping[str, Any]) -> str:
    flags = " ".join(
        f"--{key}" if value is True else f"--{key}={value}"
        for key, value in origin.items()
        if key != "content" and value
    )
    if not origin["source"]:
        flags += ", no --source"
    if not origin["content"]:
        return flags + ("" if not origin["source"] else ", which cannot be read")
    found = ", ".join(
        f"{split} {_counted(each)}" for split, each in origin["content"].items()
    )
    return f"{flags} ({found})"


def _counted(found: Mapping[str, Any]) -> str:
    counted = f"{found['images']} images of {found['identities']} identities"
    counted += f", digest {found['digest']}"
    if found["labelled"]:
        labels = found.get("labels", "not noted down")
        counted += f", {found['labelled']} labelled, digest {labels}"
    return counted
