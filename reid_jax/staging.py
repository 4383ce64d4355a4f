"""Folders that are built beside their place, and appear there whole or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pathlib
import shutil
from collections.abc import Iterator

from reid_jax import storage
from reid_jax.errors import UserError

_REPLACED = "replaced"
_LOCK = "lock"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux' fcntl.h and fs.h


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
    staging.mkdir(parents=True, exist_ok=True)
    path = staging / _LOCK
    with path.open("w") as file:
        try:
            # Whoever held it before may have removed the folder in between.
            own = storage.lock(file) and os.path.samestat(
                os.fstat(file.fileno()), path.stat()
            )
        except FileNotFoundError:
            own = False
        if not own:
            raise UserError(f"Another process is {doing} in {staging}. Wait for it.")
        try:
            _clear(staging, target)
            yield
        finally:
            _clear(staging, target)
            shutil.rmtree(staging, ignore_errors=True)


def put(built: pathlib.Path, target: pathlib.Path, staging: pathlib.Path) -> None:
    """Puts a folder of `staging` in its place; what is there goes to `staging`.

    Where the system can swap folders there is always one or the other. Elsewhere a
    kill at the wrong moment leaves none, until `held` puts the old one back.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        built.rename(target)
    elif not _swap(built, target):
        target.rename(staging / _REPLACED)
        built.rename(target)


def _swap(a: pathlib.Path, b: pathlib.Path) -> bool:
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
