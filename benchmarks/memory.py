"""Memory of this process."""

from __future__ import annotations

import resource
import sys


def peak_gib() -> float:
    """The most that it has held; Linux and macOS tell it in other units."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2 ** (30 if sys.platform == "darwin" else 20)
