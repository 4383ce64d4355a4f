"""A notice to stop (SIGTERM, Ctrl-C) that lets every host save the same step first."""

from __future__ import annotations

import contextlib
import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils

from reid_jax.runtime import interrupts

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class PreemptionNotice:
    """Use as a context manager around the loop and ask `received(step)` every step.

    With one process a thread acknowledges the signal at once and sets a flag. A second
    Ctrl-C ends the process there and then. With several processes, JAX's coordination
    service has its own handler and agrees on one step for all of them: every process
    must ask at every step.

    Attributes:
      interrupted: whether Ctrl-C was the notice.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._flag = threading.Event()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> PreemptionNotice:
        main_thread = threading.current_thread() is threading.main_thread()
        if jax.process_count() == 1 and main_thread:
            for number in SIGNALS:
                previous = signal.signal(number, _ignore)
                self._stack.callback(signal.signal, number, previous)
            self._stack.enter_context(interrupts.heard(self._told))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _told(self, number: int) -> None:
        if number == signal.SIGINT and self._flag.is_set():
            interrupts.end_at_once("interrupted; the last checkpoint stands")
        if number in SIGNALS and not self._flag.is_set():
            self.interrupted = number == signal.SIGINT
            self._flag.set()
            interrupts.say(
                "stopping: saves after this step (Ctrl-C ends at once; the last "
                "checkpoint stands)"
            )

    def received(self, step: int) -> bool:
        """Whether to save at `step` and stop; the same answer on every process."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._flag.is_set()


def _ignore(number: int, frame: FrameType | None) -> None:
    """In the place of a handler: the thread has been told already."""
    del number, frame
