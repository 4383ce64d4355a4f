"""Scalars of a run: they go to the trackers that its config names."""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath
from tqdm import tqdm

from reid_jax import storage
from reid_jax.errors import UserError
from reid_jax.runtime.sharding import fetch
from reid_jax.runtime.trackers import DEFAULT, JsonLines, Start, Tracker, opened

_FLUSH_SECONDS = 60.0


class MetricWriter:
    """Writes rows of scalars to trackers, such as `metrics.jsonl` and `tensorboard/`.

    In a bucket nothing can be appended: files are written on this machine and uploaded
    whole, about once a minute, with every checkpoint (`flush`) and at the end.

    Args:
      workdir: of the run.
      trackers: names, see `trackers.KNOWN`.
      config: fields of the run, flat, for those that show them.
      resume_step: rows after this step are dropped: they were written by a run that
        was stopped before its next checkpoint, and will be written again.
      resume_rows: so are those after so many rows (None: no limit): an evaluation of
        the same step, after its checkpoint.
      enabled: False (every process but the first) makes every call a no-op, so that
        the loop needs no case distinction.

    Attributes:
      rows: how many so far, those of earlier starts included.

    Raises:
      UserError: if `metrics.jsonl` holds something else, or a service is not there.
    """

    def __init__(
        self,
        workdir: str,
        *,
        trackers: Sequence[str] = DEFAULT,
        config: Mapping[str, Any] | None = None,
        resume_step: int = 0,
        resume_rows: int | None = None,
        enabled: bool = True,
    ):
        self.rows = resume_rows or 0
        self._enabled = enabled
        self._trackers: list[Tracker] = []
        self._upload_to = None
        if not enabled:
            return
        self._folder = self._opened_folder(workdir)
        if "jsonl" in trackers:
            path = self._folder / _LINES
            lines = JsonLines(path, step=resume_step, rows=resume_rows)
            self.rows = lines.kept
            self._trackers.append(lines)
        start = Start(workdir, self._folder, resume_step, config or {})
        for name in dict.fromkeys(trackers):
            if name != "jsonl":
                self._trackers.append(opened(name, start))
        self._flushed = time.monotonic()

    def _opened_folder(self, workdir: str) -> epath.Path:
        """Where files are written: the workdir, or what is uploaded to it."""
        folder = storage.absolute(workdir)
        if storage.in_bucket(workdir):
            self._upload_to = folder
            self._temporary = tempfile.TemporaryDirectory()
            folder = epath.Path(self._temporary.name)
            earlier = self._upload_to / _LINES
            if earlier.exists():
                storage.write_bytes(folder / earlier.name, earlier.read_bytes())
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Records `scalars` at `step` (counted over all stages).

        Raises:
          UserError: if the folder was moved or removed.
        """
        if not self._enabled:
            return
        for tracker in self._trackers:
            tracker.write(step, scalars)
        self.rows += 1
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Makes all rows so far last, where they do not by themselves.

        Raises:
          UserError: if the folder was moved or removed.
        """
        if not self._enabled:
            return
        for tracker in self._trackers:
            tracker.flush()
        if self._upload_to:
            storage.copy_below(self._folder, self._upload_to)
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flushes and ends all trackers."""
        if not self._enabled:
            return
        with contextlib.ExitStack() as stack:
            if self._upload_to:
                stack.callback(self._temporary.cleanup)
            for tracker in self._trackers:
                stack.callback(tracker.close)
            self.flush()


_LINES = "metrics.jsonl"


class StepLog:
    """Reads a stage's metrics one step late, so that no device waits for the host.

    Args:
      writer: takes every `every`-th step, the first and the last.
      bar: advanced with every step; shows the loss.
      offset: steps of the stages before this one.
      every: steps between two rows.
      last: step that ends the stage, where no stop comes before it.
      batch_size: images of a step, for the rate.
    """

    def __init__(
        self,
        writer: MetricWriter,
        bar: tqdm,
        *,
        offset: int,
        every: int,
        last: int,
        batch_size: int,
    ):
        self._writer, self._bar = writer, bar
        self._offset, self._every, self._last = offset, every, last
        self._batch_size = batch_size
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
        if self._started == 0.0 or step % self._every == 0 or step == self._last:
            self._write(step, values)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside does not count in the rate; nothing is pending inside."""
        self.flush()
        before = time.monotonic()
        yield
        if self._started:
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
