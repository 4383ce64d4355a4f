"""Folders that are built beside their place, and appear there whole or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Iterator
from typing import IO

from reid_jax import storage
from reid_jax.errors import UserError

_REPLACED = "replaced"
_LOCK = "lock"
_TRIES, _PAUSE, _LONG_PAUSE = 10, 0.05, 0.5
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux' fcntl.h and fs.h


@contextlib.contextmanager
def built(target: pathlib.Path, *, doing: str) -> Iterator[pathlib.Path]:
    """An empty folder that takes the place of `target` once the body is done.

    Where the body raises, `target` stays as it was.

    Args:
      target: may be there.
      doing: one word, see `held`.

    Raises:
      UserError: another process builds it.
    """
    beside = target.with_name(f".{doing}-{target.name}")
    with held(beside, target, doing=doing):
        new = beside / "new"
        new.mkdir()
        yield new
        put(new, target, beside / _REPLACED)


@contextlib.contextmanager
def held(staging: pathlib.Path, target: pathlib.Path, *, doing: str) -> Iterator[None]:
    """Holds the folder in which `target` is built; removes it in the end.

    The lock ends with its process, however that dies. So what lies in a folder that
    nobody has locked is a leftover, and goes.

    Args:
      staging: on the file system of `target`; made if it is not there.
      target: what `put` will replace.
      doing: what another process would be doing there, for the message.

    Raises:
      UserError: another process holds it.
    """
    with locked(staging, doing=doing):
        try:
            _clear(staging, target)
            yield
        finally:
            _clear(staging, target)
            shutil.rmtree(staging, ignore_errors=True)


def locked(staging: pathlib.Path, *, doing: str, patient: bool = False) -> IO:
    """The lock of a folder, which is made if it is not there; closing gives it back.

    Args:
      staging: the folder.
      doing: see `held`.
      patient: whether to wait for another process that holds it, and say so.

    Raises:
      UserError: another process holds it.
    """
    for attempt in itertools.count(1):
        staging.mkdir(parents=True, exist_ok=True)
        if (lock := try_lock(staging)) is not None:
            return lock
        if attempt == _TRIES:  # Until now it may only have cleared away leftovers.
            other = f"Another process is {doing} in {staging}."
            if not patient:
                raise UserError(f"{other} Wait for it.")
            print(f"{other} Waiting for it.", file=sys.stderr)
        time.sleep(_PAUSE if attempt < _TRIES else _LONG_PAUSE)


def try_lock(staging: pathlib.Path, *, certain: bool = False) -> IO | None:
    """The lock of a folder; None if another process has it, or has just removed it.

    Args:
      staging: the folder.
      certain: see `storage.lock`.
    """
    path = staging / _LOCK
    with contextlib.ExitStack() as stack:
        try:
            lock = stack.enter_context(path.open("w"))
            # Whoever held it before may have removed the folder in between.
            own = storage.lock(lock, certain=certain) and os.path.samestat(
                os.fstat(lock.fileno()), path.stat()
            )
        except FileNotFoundError:
            return None
        if own:
            stack.pop_all()
        return lock if own else None


def put(built: pathlib.Path, target: pathlib.Path, aside: pathlib.Path) -> None:
    """Puts a folder in its place.

    Where the system can swap folders there is always one or the other. Elsewhere a
    kill at the wrong moment leaves none, until the next start puts the old one back.

    Args:
      built: the folder; where the old one is after a swap.
      target: its place.
      aside: where the old one goes elsewhere.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        built.rename(target)
    elif not swap(built, target):
        aside.parent.mkdir(exist_ok=True)
        target.rename(aside)
        built.rename(target)


def swap(a: pathlib.Path, b: pathlib.Path) -> bool:
    """Exchanges two folders in one step; False where that cannot be done."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except AttributeError:  # not Linux
        return False
    names = os.fsencode(a), os.fsencode(b)
    return rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0


def _clear(staging: pathlib.Path, target: pathlib.Path) -> None:
    """Puts back what a broken-off run was replacing; removes what it was building."""
    replaced = staging / _REPLACED
    if replaced.exists() and not target.exists():
        replaced.rename(target)
    for leftover in staging.iterdir():
        if leftover.is_dir():
            shutil.rmtree(leftover)
