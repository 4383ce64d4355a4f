"""Where the scalars of a run are kept and shown: each place behind one interface."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from etils import epath
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from reid_jax import storage
from reid_jax.errors import UserError, first_line
from reid_jax.runtime import workdir

DEFAULT = ("tensorboard", "jsonl")

INSTALL = {
    "wandb": "pip install wandb",
    "mlflow": "pip install mlflow-skinny sqlalchemy alembic",
}
"""Those that need a package, and how it is installed."""

KNOWN = (*DEFAULT, *INSTALL)


class Tracker(Protocol):
    """What takes the scalars of a run, in the order of their steps."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Takes the scalars of a step, counted over all stages."""

    def flush(self) -> None:
        """Makes all so far last, where it does not by itself."""

    def close(self) -> None:
        """Flushes, and ends."""


@dataclasses.dataclass(frozen=True)
class Start:
    """A start of a run.

    Attributes:
      workdir: of the run.
      folder: on this machine's disk, for files: the workdir, or what is uploaded to it.
      step: that it goes on from; 0 for a fresh run.
      config: fields of the run, flat.
    """

    workdir: str
    folder: epath.Path
    step: int
    config: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Of the run's folder."""
        return storage.absolute(self.workdir).name

    def known_as(self, tracker: str) -> str | None:
        """What a service called this run in an earlier start."""
        path = storage.absolute(self.workdir) / _NAMES
        known = path.exists() and self.step > 0
        return workdir.read_object(path).get(tracker) if known else None

    def remember(self, tracker: str, name: str) -> None:
        """Keeps what a service calls this run, for later starts."""
        path = storage.absolute(self.workdir) / _NAMES
        known = workdir.read_object(path) if path.exists() else {}
        workdir.write_json(path, known | {tracker: name})


_NAMES = "trackers.json"


def check_installed(names: Sequence[str]) -> None:
    """Raises UserError for a tracker whose package is absent, with what installs it."""
    for name in names:
        if name in INSTALL and importlib.util.find_spec(name) is None:
            raise UserError(f"config.trackers: {name} needs: {INSTALL[name]}")


def opened(name: str, start: Start) -> Tracker:
    """A tracker by its name; not `jsonl`, which is `metrics.MetricWriter`'s own.

    Raises:
      UserError: if a service cannot be reached.
    """
    if name == "tensorboard":
        return TensorBoard(start.folder / name, first_step=start.step + 1)
    return Service(name, start)


class TensorBoard:
    """TensorBoard's event file, written by this thread: a full disk is noticed here.

    (tensorboardX's own writer has a thread; when that dies, the next calls wait for it
    for ever.)
    """

    def __init__(self, folder: epath.Path, *, first_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        # It names files by the second, and writes over one of the same name.
        own = f".{os.getpid()}.{first_step}"
        self._events = EventsWriter(os.fspath(folder / "events"), filename_suffix=own)
        # What an earlier start has written from this step on is not shown.
        self._write(first_step, session_log=SessionLog(status=SessionLog.START))
        self.flush()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """See `Tracker.write`."""
        values = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in scalars.items()
        ]
        self._write(step, summary=Summary(value=values))

    def flush(self) -> None:
        """See `Tracker.flush`."""
        self._events.flush()

    def close(self) -> None:
        """See `Tracker.close`."""
        self._events.close()

    def _write(self, step: int, **content: Any) -> None:
        self._events.write_event(Event(step=step, wall_time=time.time(), **content))


class Service:
    """A tracker elsewhere: it has to be there at the start, and may fail later.

    Where it does, the run goes on without it and says so, once.

    Raises:
      UserError: if the run cannot be begun there.
    """

    def __init__(self, name: str, start: Start):
        self._name = name
        try:
            self._tracker: Tracker | None = _SERVICES[name](start)
        except Exception as error:  # They raise many kinds.
            raise UserError(
                f"config.trackers: {name} cannot begin a run ({_said(error)}). "
                f"{_HINTS[name]}"
            ) from error

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """See `Tracker.write`."""
        self._call("write", step, scalars)

    def flush(self) -> None:
        """See `Tracker.flush`."""
        self._call("flush")

    def close(self) -> None:
        """See `Tracker.close`."""
        self._call("close")

    def _call(self, what: str, *args: Any) -> None:
        if self._tracker is None:
            return
        try:
            getattr(self._tracker, what)(*args)
        except Exception as error:
            self._tracker = None
            print(
                f"note: {self._name} takes no more metrics ({_said(error)}); the run "
                "goes on without it",
                file=sys.stderr,
            )


class _Wandb:
    """A run of Weights & Biases; steps are its `step`, and may be written again."""

    def __init__(self, start: Start):
        import wandb

        name = start.known_as("wandb") or uuid.uuid4().hex[:12]
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "reid_jax"),
            id=name,
            name=start.name,
            resume="allow",
            dir=os.fspath(start.folder),
            config=dict(start.config),
            settings=wandb.Settings(console="off", silent=True),
        )
        # Its own counter does not go back where a resumed run does.
        self._run.define_metric("*", step_metric="step")
        start.remember("wandb", name)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log({"step": step, **scalars})

    def flush(self) -> None:
        """Its own process does."""

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    """A run of MLflow, in the store and the experiment that its environment names."""

    def __init__(self, start: Start):
        import mlflow

        self._mlflow = mlflow
        known = start.known_as("mlflow")
        if "MLFLOW_EXPERIMENT_NAME" not in os.environ:
            mlflow.set_experiment("reid_jax")
        run = mlflow.start_run(run_id=known, run_name=None if known else start.name)
        if known is None:
            values = {name: str(value)[:500] for name, value in start.config.items()}
            mlflow.log_params(values)
            start.remember("mlflow", run.info.run_id)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        named = {_UNUSUAL.sub("_", name): value for name, value in scalars.items()}
        self._mlflow.log_metrics(named, step=step)

    def flush(self) -> None:
        """Every row is sent at once."""

    def close(self) -> None:
        self._mlflow.end_run()


_UNUSUAL = re.compile(r"[^\w\-. :/]")
"""What MLflow has not in names."""

_SERVICES = {"wandb": _Wandb, "mlflow": _MLflow}
_HINTS = {
    "wandb": "Log in with `wandb login`, or keep it here: WANDB_MODE=offline",
    "mlflow": "MLFLOW_TRACKING_URI names the server, or a store: sqlite:///mlflow.db",
}


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


class JsonLines:
    """`metrics.jsonl`: a line of JSON for each row.

    Args:
      path: of the file.
      step: rows after it are dropped.
      rows: so are those after so many (None: no limit).

    Attributes:
      kept: how many there were before, without the dropped ones.

    Raises:
      UserError: if the file holds something else.
    """

    def __init__(self, path: epath.Path, *, step: int, rows: int | None):
        self._path, self.kept = path, 0
        if path.exists():
            lines = [line for line, row in _parsed(path) if row["step"] <= step][:rows]
            workdir.write_text(path, "".join(f"{line}\n" for line in lines))
            self.kept = len(lines)
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """See `Tracker.write`; raises UserError if the folder was moved or removed."""
        self._check_in_place()
        row = {"step": step, "time": round(time.time(), 3), **scalars}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def flush(self) -> None:
        """Raises UserError if the folder was moved or removed."""
        self._check_in_place()

    def close(self) -> None:
        """See `Tracker.close`."""
        self._file.close()

    def _check_in_place(self) -> None:
        storage.check_in_place(self._path, os.fstat(self._file.fileno()))


def read_rows(path: epath.Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`; a last line that a kill has cut is left out.

    Raises:
      UserError: if a line is something else.
    """
    return [row for _, row in _parsed(path)]


def _parsed(path: epath.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Lines and what they say."""
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            _ = row["step"] <= 0
            yield line.decode(), row
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            if number == len(lines):
                break
            raise UserError(
                f"{path}, line {number}, is no row of a run ({type(error).__name__}: "
                f"{error}); mend or remove that line"
            ) from error
