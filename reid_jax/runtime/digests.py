"""Digests of the files of a folder: what was read is what was written, or it is said.

They lie beside the files in `SHA256SUMS`, as `sha256sum` writes and checks them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection

from reid_jax import storage
from reid_jax.storage import PathLike

NAME = "SHA256SUMS"


def write(folder: PathLike, *, without: Collection[str] = ()) -> None:
    """Stores the digests of all files below a folder.

    Args:
      folder: complete, and not changed afterwards.
      without: paths below it that are left out.
    """
    folder = storage.absolute(folder)
    names = [str(file.relative_to(folder)) for file in storage.files_below(folder)]
    lines = [
        f"{_digest(folder / name)}  {name}\n" for name in names if name not in without
    ]
    storage.write_bytes(folder / NAME, "".join(lines).encode())


def differences(folder: PathLike) -> list[str] | None:
    """What is not as it was when `write` stored the digests.

    Returns:
      a line for each file that has changed, is not there or cannot be read; None for a
      folder without digests.
    """
    folder = storage.absolute(folder)
    if not (folder / NAME).exists():
        return None
    try:
        *lines, end = (folder / NAME).read_text(encoding="utf-8").split("\n")
        stored = [line.split("  ", 1) for line in lines]
        found = [_difference(folder / name, name, digest) for digest, name in stored]
    except (OSError, ValueError) as error:
        return [f"{NAME} cannot be read ({error})"]
    if end or not lines:
        return [f"{NAME} is cut off"]
    return [line for line in found if line]


def _difference(path: PathLike, name: str, digest: str) -> str:
    try:
        changed = _digest(path) != digest
    except OSError as error:
        return f"{name} cannot be read ({error.strerror or error})"
    return f"{name} has changed" if changed else ""


def _digest(path: PathLike) -> str:
    with storage.absolute(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
