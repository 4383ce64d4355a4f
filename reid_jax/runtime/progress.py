"""What a long step says while nothing can be seen of it."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def said(what: str) -> Iterator[None]:
    """Says what is being done, and behind it how long it took.

    On standard error, as progress bars are, and by process 0 alone. Compilation has no
    count for a bar to show.
    """
    if jax.process_index() != 0:
        yield
        return
    print(f"{what} ...", end="", file=sys.stderr, flush=True)
    begin, ended = time.monotonic(), " stopped"
    try:
        yield
        ended = f" {time.monotonic() - begin:.1f} s"
    finally:
        print(ended, file=sys.stderr, flush=True)
