"""Reads PyTorch's files without PyTorch, and without running what is in them.

`torch.save` writes a pickle that names functions to call; see `pickles`. Both formats
are read: the zip archive of PyTorch 1.6 and later, and the older stream (a few pickles,
then the raw numbers), in which torchvision's and timm's older files are.
"""

from __future__ import annotations

import io
import pathlib
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from reid_jax.errors import UserError
from reid_jax.weights import damage, zips
from reid_jax.weights.pickles import Machine, Storage, Tensor

LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The magic number, pickled: with what the older format begins, after a few bytes."""

_ENTRIES = ("state_dict", "model", "model_state_dict", "teacher", "student")
"""Where a training's checkpoint keeps the network's state dict; the first counts."""


def read_zip(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The state dict in an archive that PyTorch 1.6 or later has written.

    Raises:
      UserError: if it is cut off or damaged, holds no state dict, or names anything
        but tensors and dictionaries.
    """
    with zips.opened(path) as archive:
        root = _root(path, archive)
        order = "little"
        if f"{root}byteorder" in archive.namelist():
            order = zips.read(archive, f"{root}byteorder").decode()

        def read(storage: Storage) -> bytes:
            name = f"{root}data/{storage.key}"
            if archive.getinfo(name).file_size != storage.nbytes:
                raise ValueError("a storage has another length than it should")
            return zips.read(archive, name)

        content = Machine().load(io.BytesIO(zips.read(archive, f"{root}data.pkl")))
        return _arrays(path, content, _Numbers(read, order))


def _root(path: pathlib.Path, archive: zipfile.ZipFile) -> str:
    """The folder in the archive."""
    names = archive.namelist()
    (pickled,) = [n for n in names if f"/{n}".endswith("/data.pkl")]
    root = pickled.removesuffix("data.pkl")
    if f"{root}constants.pkl" in names:
        raise UserError(
            f"{path} is a TorchScript program; save its state_dict() instead"
        )
    return root


def read_legacy(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The state dict in a file that PyTorch before 1.6 has written; see `read_zip`."""
    with damage.explained(path):
        whole = path.read_bytes()
        stream = io.BytesIO(whole)
        for _ in range(3):  # magic number, version of the format, machine
            Machine().load(stream)
        machine = Machine()
        content = machine.load(stream)
        keys = Machine().load(stream)
        position = stream.tell()
        offsets: dict[str, int] = {}
        for key in keys:
            offsets[key] = position
            position += 8 + machine.storages[key].nbytes

        def read(storage: Storage) -> memoryview:
            start = offsets[storage.key]
            (count,) = struct.unpack_from("<q", whole, start)
            if count != storage.count:
                raise ValueError("a storage has another length than it should")
            return memoryview(whole)[start + 8 : start + 8 + storage.nbytes]

        # Little-endian, whatever the machine was.
        return _arrays(path, content, _Numbers(read, "little"))


class _Numbers:
    """The numbers of storages, each read once.

    Args:
      read: a storage's bytes in the file.
      order: of the bytes of a number, "little" or "big".
    """

    def __init__(self, read: Callable[[Storage], bytes | memoryview], order: str):
        if order not in ("little", "big"):
            raise ValueError(f"an unknown order of bytes, {order!r}")
        self._read = read
        self._swapped = order != sys.byteorder
        self._known: dict[str, np.ndarray] = {}

    def array(self, tensor: Tensor) -> np.ndarray:
        """A tensor's numbers, contiguous, in this machine's byte order."""
        storage = tensor.storage
        strides = [stride * storage.dtype.itemsize for stride in tensor.strides]
        view = np.lib.stride_tricks.as_strided(
            self._storage(storage)[tensor.offset :],
            tensor.shape,
            strides,
            writeable=False,
        )
        return np.ascontiguousarray(view).reshape(tensor.shape)

    def _storage(self, storage: Storage) -> np.ndarray:
        if storage.key not in self._known:
            raw = self._read(storage)
            if len(raw) != storage.nbytes:
                raise EOFError(f"{len(raw)} bytes in place of {storage.nbytes}")
            values = np.frombuffer(raw, storage.dtype)
            self._known[storage.key] = values.byteswap() if self._swapped else values
        return self._known[storage.key]


def _arrays(
    path: pathlib.Path, content: Any, numbers: _Numbers
) -> dict[str, np.ndarray]:
    """Reads the tensors of the state dict in `content`."""
    state = _state_dict(content)
    if state is None:
        entries = list(content)[:8] if isinstance(content, dict) else []
        keys = damage.shown(", ".join(map(str, entries)))
        raise UserError(
            f"{path} holds no state dict"
            + (f"; its entries are: {keys}" if keys else "")
            + ". Load it with PyTorch and save the network's state_dict()"
        )
    tensors = {str(k): v for k, v in state.items() if isinstance(v, Tensor)}
    total = sum(tensor.nbytes for tensor in tensors.values())
    if total > damage.capacity(path.stat().st_size):  # views of the same numbers
        raise UserError(
            f"{path}: its tensors would take {total:,} bytes, far more than the file "
            "holds: it is damaged, or made to fill memory"
        )
    return {name: numbers.array(tensor) for name, tensor in tensors.items()}


def _state_dict(content: Any) -> Mapping[Any, Any] | None:
    """`content`, or what it has under one of the usual keys, if that holds tensors."""
    if not isinstance(content, dict):
        return None
    for candidate in (*map(content.get, _ENTRIES), content):
        if isinstance(candidate, dict) and any(
            isinstance(value, Tensor) for value in candidate.values()
        ):
            return candidate
    return None
