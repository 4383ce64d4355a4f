"""Scalars of a run: one line of JSON each time, and TensorBoard's event files."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tqdm import tqdm

from reid_jax import storage
from reid_jax.errors import UserError
from reid_jax.runtime import workdir as workdirs
from reid_jax.runtime.sharding import fetch

_FLUSH_SECONDS = 60.0


class MetricWriter:
    """Appends to `metrics.jsonl` and `tensorboard/` in a work directory.

    In a bucket nothing can be appended: the files are written on this machine and
    uploaded whole, about once a minute, with every checkpoint (`flush`) and at the end.

    Args:
      workdir: of the run.
      resume_step: rows after this step are dropped: they were written by a run that
        was stopped before its next checkpoint, and will be written again.
      resume_rows: so are those after so many rows (None: no limit): an evaluation of
        the same step, after its checkpoint.
      enabled: False (every process but the first) makes every call a no-op, so that
        the loop needs no case distinction.

    Raises:
      UserError: if `metrics.jsonl` holds something else.
    """

    def __init__(
        self,
        workdir: str,
        *,
        resume_step: int = 0,
        resume_rows: int | None = None,
        enabled: bool = True,
    ):
        self._file = None
        self._board = None
        self._upload_to = None
        self.rows = 0
        """Rows so far, those of earlier starts included."""
        if not enabled:
            return
        folder = storage.absolute(workdir)
        if storage.in_bucket(workdir):
            self._upload_to = folder
            self._temporary = tempfile.TemporaryDirectory()
            folder = epath.Path(self._temporary.name)
            earlier = self._upload_to / "metrics.jsonl"
            if earlier.exists():
                storage.write_bytes(folder / earlier.name, earlier.read_bytes())
        self._folder = folder
        self._path = folder / "metrics.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            kept = _rows_until(self._path, resume_step)[:resume_rows]
            workdirs.write_text(self._path, "".join(kept))
            self.rows = len(kept)
        self._file = self._path.open("a", encoding="utf-8")
        self._board = _Board(folder / "tensorboard", first_step=resume_step + 1)
        self._flushed = time.monotonic()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Records `scalars` at `step` (counted over all stages).

        Raises:
          UserError: if the folder was moved or removed.
        """
        if self._file is None or self._board is None:
            return
        storage.check_in_place(self._path, os.fstat(self._file.fileno()))
        row = {"step": step, "time": round(time.time(), 3), **scalars}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        self.rows += 1
        self._board.add(step, scalars)
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Makes all rows so far last, where they do not by themselves.

        Raises:
          UserError: if the folder was moved or removed.
        """
        if self._file is None or self._board is None:
            return
        storage.check_in_place(self._path, os.fstat(self._file.fileno()))
        self._board.flush()
        if self._upload_to:
            storage.copy_below(self._folder, self._upload_to)
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._file is None or self._board is None:
            return
        with contextlib.ExitStack() as stack:
            if self._upload_to:
                stack.callback(self._temporary.cleanup)
            stack.callback(self._board.close)
            stack.callback(self._file.close)
            self.flush()


class _Board:
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

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        values = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in scalars.items()
        ]
        self._write(step, summary=Summary(value=values))

    def flush(self) -> None:
        self._events.flush()

    def close(self) -> None:
        self._events.close()

    def _write(self, step: int, **content: Any) -> None:
        self._events.write_event(Event(step=step, wall_time=time.time(), **content))


def read_rows(path: epath.Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`; a last line that a kill has cut is left out.

    Raises:
      UserError: if a line is something else.
    """
    return [row for _, row in _parsed(path)]


def _rows_until(path: epath.Path, step: int) -> list[str]:
    """The lines of the steps up to one."""
    return [line + "\n" for line, row in _parsed(path) if row["step"] <= step]


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


class StepLog:
    """Reads a stage's metrics one step late, so that no device waits for the host.

    Args:
      writer: takes every `every`-th step, and the first.
      bar: advanced with every step; shows the loss.
      offset: steps of the stages before this one.
      every: steps between two rows.
      batch_size: images of a step, for the rate.
    """

    def __init__(
        self,
        writer: MetricWriter,
        bar: tqdm,
        *,
        offset: int,
        every: int,
        batch_size: int,
    ):
        self._writer, self._bar = writer, bar
        self._offset, self._every, self._batch_size = offset, every, batch_size
        self._pending: tuple[int, Any] | None = None
        self._steps, self._started = 0, 0.0

    def add(self, step: int, metrics: Any) -> None:
        """Takes the replicated metrics of `step`, and reads the step before."""
        self.flush()
        self._pending = (step, metrics)
        self._bar.update()

    def flush(self) -> None:
        """Waits for the pending step and records it.

        Raises:
          UserError: if its loss or its gradients are not finite.
        """
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        values = {name: float(value) for name, value in fetch(metrics).items()}
        self._check_finite(step, values)
        self._steps += 1
        if self._started == 0.0 or step % self._every == 0:
            self._write(step, values)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside does not count in the rate; nothing is pending inside."""
        self.flush()
        before = time.monotonic()
        yield
        self._started += time.monotonic() - before

    def _write(self, step: int, values: dict[str, float]) -> None:
        now = time.monotonic()
        if self._started:  # The first step compiles; its rate would say nothing.
            rate = self._steps * self._batch_size / (now - self._started)
            values["images_per_second"] = rate
        self._steps, self._started = 0, now
        self._writer.write(self._offset + step, values)
        self._bar.set_postfix(loss=f"{values['loss']:.3f}", refresh=False)

    def _check_finite(self, step: int, values: dict[str, float]) -> None:
        if math.isfinite(values["loss"]) and math.isfinite(values["gradient_norm"]):
            return
        listed = ", ".join(f"{name} {value:g}" for name, value in values.items())
        raise UserError(
            f"stopped at step {self._offset + step}: the loss or its gradient is not "
            f"finite ({listed}). Checkpoints before it are untouched. Lower the "
            "learning rate or lengthen the warm-up (config.stages.<stage>.optimizer)."
        )
