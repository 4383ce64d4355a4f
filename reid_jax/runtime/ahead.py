"""Devices are kept busy while the host waits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

_Started = TypeVar("_Started")


def one_ahead(started: Iterable[_Started]) -> Iterator[_Started]:
    """What an iterable starts on devices, each once the next one is started as well.

    Whoever waits for the results of one so lets devices compute the next. Two are held
    at a time.
    """
    running: list[_Started] = []
    for one in started:
        running.append(one)
        if len(running) > 1:
            yield running.pop(0)
    yield from running
