"""Zip archives within bounds, and NumPy's among them."""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import zipfile
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from reid_jax.errors import UserError
from reid_jax.weights import damage

# Others are unpacked without a bound by the standard library.
_KINDS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[zipfile.ZipFile]:
    """An archive whose members together stay within the file's capacity.

    Raises:
      UserError: if it is damaged, or a bomb; also for what damage raises inside.
    """
    with damage.explained(path), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type not in _KINDS for member in members):
            raise ValueError("compressed by another method than deflate")
        total = sum(member.file_size for member in members)
        if total > (most := damage.capacity(os.path.getsize(path))):
            raise UserError(
                f"{path} would unpack to {total:,} bytes, but weights of its size to "
                f"{most:,} at most: it is damaged, or made to fill memory. If you "
                "trust it, pack it anew without compression"
            )
        yield archive


def read(archive: zipfile.ZipFile, name: str) -> bytes:
    """A member's content, as long as it says.

    Raises:
      EOFError: if it is shorter.
    """
    size = archive.getinfo(name).file_size
    with archive.open(name) as stream:
        content = stream.read(size)  # without a size all is unpacked, whatever it says
    if len(content) != size:
        raise EOFError(f"{name} ends early")
    return content


def read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    """NumPy's archive of arrays.

    Raises:
      UserError: if it is damaged, or holds other things than numbers.
    """
    with opened(path) as archive:
        return {
            name.removesuffix(".npy"): _array(path, name, read(archive, name))
            for name in archive.namelist()
        }


def _array(path: pathlib.Path, name: str, content: bytes) -> np.ndarray:
    """The array of an `.npy` file."""
    stream = io.BytesIO(content)
    shape, by_column, dtype = _header(stream)
    if dtype.kind not in "biuf":
        raise UserError(
            f"{path}: {damage.shown(name)} holds other things than numbers "
            f"({damage.shown(str(dtype))})"
        )
    values = np.frombuffer(content, dtype, offset=stream.tell())
    return values.reshape(shape, order="F" if by_column else "C")


def _header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    return readers[np.lib.format.read_magic(stream)](stream)
