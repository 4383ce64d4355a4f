"""How long a compiled call takes, and how much memory it needs."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

WARM_UP = 2
"""Calls before the first measured one, beside the one that sets the window."""

WINDOW_SECONDS = 0.2
"""Least length of a window: short calls are repeated, so that waiting for the device
once at the window's end does not count."""


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one call.

    Attributes:
      seconds: median over the windows of a window's seconds over its calls.
      fastest, slowest: of the windows' means.
      windows: how many.
      calls: in each of them.
    """

    seconds: float
    fastest: float
    slowest: float
    windows: int
    calls: int


def time_calls(
    call: Callable[[], Any], devices: Sequence[jax.Device], *, windows: int
) -> Timing:
    """Times a call that is compiled already.

    The host waits for the device at the end of each window only, as a training loop
    does; on CPU after each call, because collectives of several calls at once, which
    share the threads of one process there, wait for each other for ever. Where several
    processes make the call together, each makes as many.

    Args:
      call: starts the work and returns arrays that depend on all of it.
      devices: that do it.
      windows: how many to take the median of.
    """
    for _ in range(WARM_UP):
        jax.block_until_ready(call())
    if devices[0].platform == "cpu":
        start, call = call, lambda: jax.block_until_ready(start())
    one = _window(call, 1)
    calls = max(1, math.ceil(WINDOW_SECONDS / one))
    if len({device.process_index for device in devices}) > 1:
        calls = int(multihost_utils.broadcast_one_to_all(np.int32(calls)))
    means = [_window(call, calls) / calls for _ in range(windows)]
    return Timing(statistics.median(means), min(means), max(means), windows, calls)


def _window(call: Callable[[], Any], calls: int) -> float:
    begin = time.perf_counter()
    for _ in range(calls):
        result = call()
    jax.block_until_ready(result)
    return time.perf_counter() - begin


def allocator_peak(devices: Sequence[jax.Device]) -> int | None:
    """Most bytes that one of this process's devices has held since it started.

    None where the device's allocator does not count, as on CPU.
    """
    stats = [
        d.memory_stats() for d in devices if d.process_index == jax.process_index()
    ]
    peaks = [s["peak_bytes_in_use"] for s in stats if s and "peak_bytes_in_use" in s]
    return max(peaks, default=None)


def planned_bytes(compiled: jax.stages.Compiled) -> int | None:
    """Bytes per device that the compiler plans for a call: inputs, outputs, workspace.

    None where the compiler does not tell. (Its own `peak_memory_in_bytes` leaves the
    workspace out on CPU.)
    """
    plan = compiled.memory_analysis()
    if plan is None:
        return None
    return (
        plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        - plan.alias_size_in_bytes
        + plan.temp_size_in_bytes
    )
