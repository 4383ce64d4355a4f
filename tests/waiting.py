"""Waiting for processes that a test starts: by what happens, not by the clock."""

import time

PATIENCE = 1800
"""Seconds until a process counts as hanging; it says nothing about how fast one is."""


def wait_until(happened, process):
    """Waits until `happened()`; fails where the process ends before that.

    The process needs pipes; what it wrote is the message.
    """
    deadline = time.monotonic() + PATIENCE
    while not happened():
        if process.poll() is not None and not happened():
            written = [x for x in process.communicate() if x]
            raise AssertionError(f"ended with {process.returncode}: {written}")
        if time.monotonic() > deadline:
            process.kill()
            raise AssertionError("hangs")
        time.sleep(0.02)
