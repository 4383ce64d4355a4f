"""Signals that are heard at once, also while compiled code runs.

Python runs a handler only between two of its own instructions, so not before a
compilation is over. A thread is told of a signal whatever the others do.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator

from tqdm import tqdm


@contextlib.contextmanager
def heard(by: Callable[[int], object]) -> Iterator[None]:
    """Inside, a thread calls `by` with the number of each signal that Python handles.

    To be used in the main thread. The signals keep their handlers.
    """
    ear, mouth = socket.socketpair()
    mouth.setblocking(False)
    previous = signal.set_wakeup_fd(mouth.fileno())

    def listen() -> None:
        while numbers := ear.recv(1):  # until the other end is closed
            by(numbers[0])

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        mouth.close()
        thread.join()
        ear.close()


@contextlib.contextmanager
def acknowledged() -> Iterator[None]:
    """Inside, Ctrl-C is acknowledged at once, and a second one ends the process.

    The first one raises KeyboardInterrupt as ever, which clears up.
    """
    count = 0

    def told(number: int) -> None:
        nonlocal count
        if number != signal.SIGINT:
            return
        count += 1
        if count > 1:
            end_at_once("interrupted")
        say("stopping after what is being computed (Ctrl-C ends at once)")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with heard(told):
        yield


def say(message: str) -> None:
    """A line of its own, above the bar."""
    tqdm.write(message, file=sys.stderr)
    sys.stderr.flush()


def end_at_once(message: str) -> None:
    """Ends the process wherever it is, in compiled code too, and what it has started.

    A checkpoint that is being written has no name yet, and does not count.
    """
    say(message)
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(130)
