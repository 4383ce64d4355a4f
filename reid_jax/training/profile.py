"""A trace of some training steps by `jax.profiler`: `config.profile_steps`."""

from __future__ import annotations

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from tqdm import tqdm

from reid_jax import storage
from reid_jax.errors import UserError, first_line
from reid_jax.runtime.metrics import StepLog
from reid_jax.runtime.progress import said

FOLDER = "profile"
_PERFETTO = "perfetto_trace.json.gz"  # the name is jax.profiler's


def check(steps: Sequence[int], *, last: int) -> None:
    """Raises UserError if a run that ends with step `last` has not all of `steps`."""
    if steps and steps[1] > last + 1:
        raise UserError(
            f"config.profile_steps is {tuple(steps)}: steps {steps[0]} to "
            f"{steps[1] - 1}, but the run ends with step {last}"
        )


class StepTrace:
    """Traces some steps of a run; its folder then has them as `profile/`.

    One process traces, the first: its host and its devices. Whatever else the run does
    between the first step and the last, such as an evaluation, is in the trace too.

    Args:
      steps: the first one and the one after the last, as `metrics.jsonl` counts them;
        empty for none.
      workdir: of the run.
      done: steps that the run has behind it; they are not traced.
    """

    # clu's `periodic_actions.Profile` would do much of it: it imports TensorFlow.

    def __init__(self, steps: Sequence[int], workdir: str, *, done: int = 0):
        self._steps = range(*steps) if steps else range(0)
        self._folder = storage.absolute(workdir) / FOLDER
        self._seen: list[int] = []
        self._open = contextlib.ExitStack()
        if self._steps and done >= self._steps[-1] and jax.process_index() == 0:
            print(f"note: {self._named(self._steps)} are done; they are not profiled")

    @contextlib.contextmanager
    def of_step(self, step: int, log: StepLog) -> Iterator[None]:
        """Around a step, whose number tools show; begins the trace where it is due."""
        if step in self._steps:
            if not self._seen:
                with log.paused():
                    self._begin()
            self._seen.append(step)
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield

    def after_step(self, step: int, outputs: Any, log: StepLog) -> None:
        """Behind the last step, waits for its outputs and ends the trace."""
        if self._steps and step == self._steps[-1]:
            with log.paused():
                jax.block_until_ready(outputs)
                self.close()

    def close(self) -> None:
        """Ends a trace that has begun, and writes it."""
        self._open.close()

    def _begin(self) -> None:
        if jax.process_index() != 0:
            return
        with _noted():
            local = self._open.enter_context(tempfile.TemporaryDirectory())
            jax.profiler.start_trace(local, create_perfetto_trace=True)
            self._open.callback(self._write, pathlib.Path(local))

    def _write(self, local: pathlib.Path) -> None:
        """By way of this machine's disk: the run's folder may be in a bucket."""
        with _noted():
            with tqdm.external_write_mode(), said("writing the profile"):
                jax.profiler.stop_trace()
                storage.copy_below(local, self._folder)
            (file,) = local.rglob(_PERFETTO)
            tqdm.write(
                f"profile of {self._named(self._seen)}: open "
                f"{self._folder / file.relative_to(local)} at https://ui.perfetto.dev, "
                f"or: xprof --logdir={self._folder}"
            )

    @staticmethod
    def _named(steps: Sequence[int]) -> str:
        first, *rest = steps
        return f"steps {first} to {rest[-1]}" if rest else f"step {first}"


@contextlib.contextmanager
def _noted() -> Iterator[None]:
    """A run is worth more than its trace: what fails inside is a note."""
    try:
        yield
    except Exception as error:  # of the profiler, the disk or the bucket
        tqdm.write(f"note: no profile ({type(error).__name__}: {first_line(error)})")
