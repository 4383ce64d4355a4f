"""What a run has left in its folder, for a report: all of it that is there."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from etils import epath

from reid_jax import storage
from reid_jax.errors import UserError
from reid_jax.evaluation.details import Details
from reid_jax.runtime import trackers, workdir

DRAWN_FIRST = ("ranking", "ranking_pairs", "hardest", "easiest")
"""Pictures that every method has; its own come after them."""

_ALIKE = ("protocol", "step", "ap", "camera_filter")
"""What an evaluation says of itself in its details as in `results.json`."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run's folder.

    Attributes:
      name: what the report calls it.
      folder: of the run.
      config: fields, flat.
      starts: of `manifest.json`, the first one first.
      rows: of `metrics.jsonl`.
      entries: of `results.json`, the latest of each protocol and way of scoring.
      detailed: protocol -> what `evaluation.details` has kept of the last evaluation.
    """

    name: str
    folder: epath.Path
    config: Mapping[str, Any]
    starts: Sequence[Mapping[str, Any]]
    rows: Sequence[Mapping[str, Any]]
    entries: Sequence[Mapping[str, Any]]
    detailed: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, path: str, name: str) -> Run:
        """Reads what there is.

        Raises:
          UserError: if it is no run, or one of its files is damaged.
        """
        folder = storage.absolute(path)
        file = folder / "config.json"
        if not file.exists():
            raise UserError(
                f"{path} is no run: it has no config.json. Name a folder that a "
                "training has written, such as runs/aaformer-demo"
            )
        rows = folder / "metrics.jsonl"
        entries = _latest(workdir.read_objects(folder / "results.json"), folder)
        return cls(
            name,
            folder,
            workdir.flatten(workdir.read_object(file)),
            workdir.read_objects(folder / "manifest.json"),
            trackers.read_rows(rows) if rows.exists() else [],
            entries,
            _detailed(folder, {entry["protocol"] for entry in entries}),
        )

    @property
    def missing(self) -> list[str]:
        """What a report would show, and the run does not have."""
        absent = []
        if not self.rows:
            absent.append("no metrics.jsonl, so no curves")
        if not self.entries:
            absent.append("it was not evaluated (--mode=evaluate does)")
        for entry in self.entries:
            if not entry.get("changed") and self.details(entry) is None:
                absent.append(
                    f"no details of {entry['protocol']}: an older version, or none at "
                    "all, evaluated it; evaluate it once more"
                )
        return absent

    def entry(self, label: str) -> Mapping[str, Any] | None:
        """The entry that `label` gives this name to."""
        return next((e for e in self.entries if label_of(e) == label), None)

    def details(self, entry: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """What was kept of an entry's evaluation, if it was."""
        found = self.detailed.get(entry["protocol"])
        return found if found and _is_of(found, entry) else None

    def pictures(self, entry: Mapping[str, Any]) -> dict[str, epath.Path]:
        """Pictures of an entry's evaluation by name, in the order to show them in."""
        found = self.detailed.get(entry["protocol"])
        if found and not _is_of(found, entry):
            return {}
        folder = _pictured(self.folder, entry["protocol"])
        there = {path.stem: path for path in sorted(folder.glob("*.png"))}
        first = [name for name in DRAWN_FIRST if name in there]
        return {name: there[name] for name in (*first, *there)}


def _pictured(folder: epath.Path, protocol: str) -> epath.Path:
    """Where the evaluations of a protocol draw, the last one over the others."""
    return folder / "pictures" / protocol.replace(":", "-")


def _is_of(details: Mapping[str, Any], entry: Mapping[str, Any]) -> bool:
    """Whether details are of the evaluation that an entry has the figures of."""
    alike = all(details[name] == entry.get(name) for name in _ALIKE)
    return alike and not entry.get("changed")


def _detailed(
    folder: epath.Path, protocols: Collection[str]
) -> dict[str, Mapping[str, Any]]:
    """What `evaluation.details` has kept, where it has."""
    found = {}
    for protocol in protocols:
        path = _pictured(folder, protocol) / Details.NAME
        if not path.exists():
            continue
        found[protocol] = workdir.read_object(path)
        if not {*_ALIKE, "queries", "cameras", "distances"} <= found[protocol].keys():
            raise UserError(f"{path} is damaged: it lacks something; remove that file")
    return found


def label_of(entry: Mapping[str, Any]) -> str:
    """What tells an entry from those of other ways of scoring: names a table."""
    words = [entry["protocol"]]
    if entry.get("ap", "rectangle") != "rectangle":
        words.append(f"AP {entry['ap']}")
    if not entry.get("camera_filter", True):
        words.append("no camera filter")
    if entry.get("averaged"):
        words.append("moving averages")
    words += [f"{name}={value}" for name, value in (entry.get("changed") or {}).items()]
    return ", ".join(words)


def _latest(
    entries: Sequence[Mapping[str, Any]], folder: epath.Path
) -> list[Mapping[str, Any]]:
    """Of entries that were scored alike, the one of the last step."""
    latest: dict[str, Mapping[str, Any]] = {}
    for entry in entries:
        if not {"protocol", "step", "metrics"} <= entry.keys():
            raise UserError(
                f"{folder / 'results.json'} is damaged: an entry has no protocol, step "
                "or metrics; remove or mend it"
            )
        before = latest.get(label_of(entry))
        if before is None or entry["step"] >= before["step"]:
            latest[label_of(entry)] = entry
    return list(latest.values())


def names(paths: Sequence[str]) -> list[str]:
    """What runs are called: their folder's name, or the path where that is not unique.

    Raises:
      UserError: if one is named twice.
    """
    if len(set(paths)) < len(paths):
        raise UserError("a run is named twice")
    short = [storage.absolute(path).name for path in paths]
    return short if len(set(short)) == len(short) else list(paths)
