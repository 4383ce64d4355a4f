"""Scalars of a run: one line of JSON each time, and TensorBoard's event files."""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath
from tensorboardX import SummaryWriter
from tqdm import tqdm

from reid_jax import storage
from reid_jax.errors import UserError
from reid_jax.runtime import workdir as workdirs
from reid_jax.runtime.sharding import fetch

_UPLOAD_SECONDS = 60.0


class MetricWriter:
    """Appends to `metrics.jsonl` and `tensorboard/` in a work directory.

    In a bucket nothing can be appended: the files are written on this machine and
    uploaded whole, about once a minute, with every checkpoint (`flush`) and at the end.

    Args:
      workdir: of the run.
      resume_step: rows after this step are dropped: they were written by a run that
        was stopped before its next checkpoint, and will be written again.
      enabled: False (every process but the first) makes every call a no-op, so that
        the loop needs no case distinction.
    """

    def __init__(self, workdir: str, *, resume_step: int = 0, enabled: bool = True):
        self._file = None
        self._board = None
        self._upload_to = None
        if not enabled:
            return
        folder = storage.absolute(workdir)
        if storage.in_bucket(workdir):
            self._upload_to, self._uploaded = folder, time.monotonic()
            self._temporary = tempfile.TemporaryDirectory()
            folder = epath.Path(self._temporary.name)
            earlier = self._upload_to / "metrics.jsonl"
            if earlier.exists():
                storage.write_bytes(folder / earlier.name, earlier.read_bytes())
        self._folder = folder
        path = folder / "metrics.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _drop_rows_after(path, resume_step)
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(
            str(folder / "tensorboard"), purge_step=resume_step + 1
        )

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Records `scalars` at `step` (counted over all stages)."""
        if self._file is None or self._board is None:
            return
        row = {"step": step, "time": round(time.time(), 3), **scalars}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)
        if self._upload_to and time.monotonic() - self._uploaded > _UPLOAD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Makes all rows so far last, where they do not by themselves."""
        if self._upload_to and self._board is not None:
            self._board.flush()
            storage.copy_below(self._folder, self._upload_to)
            self._uploaded = time.monotonic()

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._file is not None and self._board is not None:
            self.flush()
            self._file.close()
            self._board.close()
            if self._upload_to:
                self._temporary.cleanup()


def _drop_rows_after(path: epath.Path, step: int) -> None:
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # a line cut short by a kill
            continue
        if row["step"] <= step:
            kept.append(line + "\n")
    workdirs.write_text(path, "".join(kept))


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
