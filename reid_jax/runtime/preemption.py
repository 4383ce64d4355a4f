"""A notice to stop (SIGTERM, Ctrl-C) that lets every host save the same step first."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils
from tqdm import tqdm


class PreemptionNotice:
    """Use as a context manager around the loop and ask `received(step)` every step.

    With one process a thread acknowledges the signal at once and sets a flag: Python
    runs a handler only between two of its own instructions, so not before a compilation
    is over. A second Ctrl-C ends the process there and then. With several processes,
    JAX's coordination service has its own handler and agrees on one step for all of
    them: every process must ask at every step.

    Attributes:
      interrupted: whether Ctrl-C was the notice.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._flag = threading.Event()
        self._previous: dict[int, signal.Handlers] = {}

    def __enter__(self) -> PreemptionNotice:
        main_thread = threading.current_thread() is threading.main_thread()
        if jax.process_count() == 1 and main_thread:
            self._listen()
        return self

    def _listen(self) -> None:
        self._heard, self._told = socket.socketpair()
        self._told.setblocking(False)
        # Python writes a signal's number there when it comes, whatever it is doing.
        self._previous_wakeup = signal.set_wakeup_fd(self._told.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, _ignore)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        if not self._previous:
            return
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_wakeup)
        self._told.close()
        self._thread.join()
        self._heard.close()

    def _watch(self) -> None:
        """Takes signals until the other end is closed."""
        while numbers := self._heard.recv(1):
            number = numbers[0]
            if number == signal.SIGINT and self._flag.is_set():
                _end_at_once()
            if number in self._previous and not self._flag.is_set():
                self.interrupted = number == signal.SIGINT
                self._flag.set()
                _say(
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


def _say(message: str) -> None:
    """A line of its own, above the bar."""
    tqdm.write(message, file=sys.stderr)
    sys.stderr.flush()


def _end_at_once() -> None:
    """Ends the process wherever it is, in compiled code too, and what it has started.

    A checkpoint that is being written has no name yet, and does not count.
    """
    _say("interrupted; the last checkpoint stands")
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(130)
