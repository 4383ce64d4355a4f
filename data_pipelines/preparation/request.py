"""What is asked of a preparation, and whether a prepared data set is that."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from data_pipelines.entries import Split
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
        name: split.fingerprint
        | {"labelled": sum(e.parts is not None for e in split.entries)}
        for name, split in splits.items()
    }


def compare(
    stored: Mapping[str, Any],
    asked: Mapping[str, Any],
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
    if all(stored[key] == asked[key] for key in asked if key not in ignored):
        return
    raise UserError(
        f"{name} is prepared in {path} already, from something else.\n"
        f"There: {_described(stored)}\n"
        f"Asked: {_described(asked)}\n"
        "--overwrite replaces it; another --name keeps both. Nothing was done."
    )


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
    labelled = f", {found['labelled']} labelled" if found["labelled"] else ""
    return (
        f"{found['images']} images of {found['identities']} identities{labelled}, "
        f"digest {found['digest']}"
    )
