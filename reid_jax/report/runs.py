"""What a run has left in its folder, for a report: all of it that is there."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from etils import epath

from reid_jax import storage
from reid_jax.errors import UserError
from reid_jax.evaluation.details import Details
from reid_jax.evaluation.results import picture_folder, reranking
from reid_jax.report import forms
from reid_jax.runtime import trackers, trained, workdir

DRAWN_FIRST = ("ranking", "ranking_reranked", "ranking_pairs", "hardest", "easiest")
"""Pictures that every method has; its own come after them."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run's folder.

    Attributes:
      name: what the report calls it.
      folder: of the run.
      config: fields, flat.
      starts: of `manifest.json`, the first one first.
      rows: of `metrics.jsonl`.
      entries: of `results.json`, the latest first: one of each protocol, way of
        scoring, state and re-ranking.
      detailed: folder of pictures -> what `evaluation.details` has kept of the last
        evaluation that drew there.
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
        entries = _latest(_objects(folder / "results.json", forms.ENTRY), folder)
        return cls(
            name,
            folder,
            workdir.flatten(workdir.read_object(file)),
            _objects(folder / "manifest.json", forms.START),
            forms.checked(rows, trackers.read_rows(rows), [forms.ROW])
            if rows.exists()
            else [],
            entries,
            _detailed(folder, {_pictured(entry) for entry in entries}),
        )

    @property
    def missing(self) -> list[str]:
        """What a report would show, and the run does not have."""
        absent = []
        if not self.rows:
            absent.append("no metrics.jsonl, so no curves")
        if not self.entries:
            absent.append("it was not evaluated (--mode=evaluate does)")
        plain = [x for x in self.entries if not (x.get("changed") or x.get("run"))]
        known = {_pictured(entry) for entry in plain if self.details(entry)}
        for folder in dict.fromkeys(map(_pictured, plain)):
            if folder not in known:
                absent.append(
                    f"no details in pictures/{folder}: evaluated without pictures, by "
                    "an older version, or not at all; evaluate it once more"
                )
        return absent

    def labelled(self, label: str) -> list[Mapping[str, Any]]:
        """The entries that `label_of` gives this name to."""
        return [entry for entry in self.entries if label_of(entry) == label]

    def called(self, entry: Mapping[str, Any]) -> str:
        """What the report calls an evaluation of this run."""
        way = way_of(entry, state_of(entry, self.folder))
        return f"{self.name} at step {entry['step']}, {way}"

    def details(self, entry: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """What was kept of an entry's evaluation, if it was."""
        found = self.detailed.get(_pictured(entry))
        return found if found and _is_of(found, entry) else None

    def pictures(self, entry: Mapping[str, Any]) -> dict[str, epath.Path]:
        """Pictures of an entry's evaluation by name, in the order to show them in."""
        if self.details(entry) is None:
            return {}
        folder = self.folder / "pictures" / _pictured(entry)
        there = {path.stem: path for path in sorted(folder.glob("*.png"))}
        first = [name for name in DRAWN_FIRST if name in there]
        return {name: there[name] for name in (*first, *there)}


def _pictured(entry: Mapping[str, Any]) -> str:
    """Where such evaluations draw, the last one in place of the others."""
    return picture_folder(entry["protocol"], entry.get("rerank", {}))


def _is_of(details: Mapping[str, Any], entry: Mapping[str, Any]) -> bool:
    """Whether details are of the evaluation that an entry has the figures of."""
    alike = all(details.get(name) == entry.get(name) for name in Details.OF)
    return alike and not entry.get("changed")


def _detailed(
    folder: epath.Path, pictured: Collection[str]
) -> dict[str, Mapping[str, Any]]:
    """What `evaluation.details` has kept, where it has."""
    found = {}
    for name in pictured:
        path = folder / "pictures" / name / Details.NAME
        if not path.exists():
            continue
        found[name] = forms.checked_details(path, workdir.read_object(path))
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


def state_of(entry: Mapping[str, Any], folder: epath.Path) -> str:
    """Which state an entry of the results in a run's `folder` has the figures of."""
    if "best" in entry or "checkpoint" not in entry:
        return "last state"  # a training ended with it
    checkpoint = epath.Path(entry["checkpoint"])
    best = checkpoint.parent.name == "best"
    state = "best state" if best else f"state of step {entry['step']}"
    run = epath.Path(entry.get("run", trained.run_folder(checkpoint)))
    if "run" in entry and run.name == folder.name:
        return f"{state} of {run}"
    return state if run.name == folder.name else f"{state} of {run.name}"


def way_of(entry: Mapping[str, Any], state: str) -> str:
    """A state as an entry's evaluation ranked it."""
    steps = reranking(entry)
    return f"{state}, re-ranked ({steps})" if steps else state


def _objects(path: epath.Path, form: Any) -> list[dict[str, Any]]:
    """Those of a file, each of that form."""
    return forms.checked(path, workdir.read_objects(path), [form])


def _latest(
    entries: Sequence[Mapping[str, Any]], folder: epath.Path
) -> list[Mapping[str, Any]]:
    """Of entries that one row is for, the one of the last step; that step first."""
    latest: dict[tuple[str, str], Mapping[str, Any]] = {}
    for entry in entries:
        row = label_of(entry), way_of(entry, state_of(entry, folder))
        before = latest.get(row)
        if before is None or entry["step"] >= before["step"]:
            latest[row] = entry
    return sorted(latest.values(), key=lambda entry: entry["step"], reverse=True)


def names(paths: Sequence[str]) -> list[str]:
    """What runs are called: their folder's name, or the path where that is not unique.

    Raises:
      UserError: if one is named twice.
    """
    folders = [storage.absolute(path) for path in paths]
    if len(set(folders)) < len(folders):
        raise UserError("a run is named twice")
    short = [folder.name for folder in folders]
    return short if len(set(short)) == len(short) else list(paths)
