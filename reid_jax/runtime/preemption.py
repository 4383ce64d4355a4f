"""A notice to stop (SIGTERM, Ctrl-C) that lets every host save the same step first."""

from __future__ import annotations

import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils


class PreemptionNotice:
    """Use as a context manager around the loop and ask `received(step)` every step.

    With one process a signal handler sets a flag. With several, JAX's coordination
    service has its own handler and agrees on one step for all of them: every process
    must ask at every step.
    """

    def __init__(self) -> None:
        self._flag = threading.Event()
        self._previous: dict[int, signal.Handlers] = {}

    def __enter__(self) -> PreemptionNotice:
        main_thread = threading.current_thread() is threading.main_thread()
        if jax.process_count() == 1 and main_thread:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._flag.set()
        if number == signal.SIGINT:
            # Once more stops at once.
            signal.signal(number, signal.default_int_handler)

    def received(self, step: int) -> bool:
        """Whether to save at `step` and stop; the same answer on every process."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._flag.is_set()
