"""Reads PyTorch's files without PyTorch, and without running what is in them.

`torch.save` writes a pickle that names functions to call. Here only names that build
tensors and dictionaries are known, each bound to a harmless stand-in of this module;
any other name ends the reading. Both formats are read: the zip archive of PyTorch 1.6
and later, and the older stream (a few pickles, then the raw numbers), in which
torchvision's and timm's older files are.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import pathlib
import pickle
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from reid_jax.errors import UserError

LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The magic number, pickled: how the older format goes on after two bytes."""

DAMAGE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    zlib.error,
    EOFError,
    OSError,
    LookupError,
    ArithmeticError,
    AttributeError,
    TypeError,
    ValueError,
    RuntimeError,
    MemoryError,
)
"""What a damaged pickle, archive or header raises, whatever is wrong with it."""

_DTYPES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(jnp.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}

_DICT_KEYS = ("state_dict", "model", "model_state_dict")
"""Where a training's checkpoint keeps the network's state dict."""


def read_zip(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The state dict in an archive that PyTorch 1.6 or later has written.

    Raises:
      UserError: if it is cut off or damaged, holds no state dict, or names anything
        but tensors and dictionaries.
    """
    with _explained(path), zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        root = next(name for name in names if name.endswith("data.pkl"))
        root = root.removesuffix("data.pkl")
        if f"{root}constants.pkl" in names:
            raise UserError(
                f"{path} is a TorchScript program; save its state_dict() instead"
            )
        order = "little"
        if f"{root}byteorder" in names:
            order = archive.read(f"{root}byteorder").decode()

        def read(storage: _Storage) -> bytes:
            return archive.read(f"{root}data/{storage.key}")

        with archive.open(f"{root}data.pkl") as stream:
            content = _Unpickler(stream, read).load()
        return _arrays(path, content, order)


def read_legacy(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The state dict in a file that PyTorch before 1.6 has written; see `read_zip`."""
    with _explained(path), path.open("rb") as stream:
        offsets: dict[str, int] = {}

        def read(storage: _Storage) -> bytes:
            stream.seek(offsets[storage.key])
            (count,) = struct.unpack("<q", stream.read(8))
            if count != storage.count:
                raise ValueError("a storage has another length than it should")
            return stream.read(storage.nbytes)

        for _ in range(3):  # magic number, version of the format, machine
            _Unpickler(stream, read).load()
        unpickler = _Unpickler(stream, read)
        content = unpickler.load()
        keys = _Unpickler(stream, read).load()
        position = stream.tell()
        for key in keys:
            offsets[key] = position
            position += 8 + unpickler.storages[key].nbytes
        return _arrays(path, content, "little")  # whatever the machine was


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A run of numbers in the file."""

    key: str
    dtype: np.dtype
    count: int
    read: Callable[[_Storage], bytes]

    @property
    def nbytes(self) -> int:
        return self.count * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A strided view of a storage, as yet unread."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def check(self) -> None:
        """Raises ValueError unless the view lies within its storage."""
        numbers = (self.offset, *self.shape, *self.strides)
        if any(type(n) is not int or n < 0 for n in numbers):
            raise ValueError("a tensor's shape or strides are no natural numbers")
        steps = zip(self.shape, self.strides, strict=True)
        last = self.offset + sum((n - 1) * stride for n, stride in steps)
        size = math.prod(self.shape)
        if size > self.storage.count or (size and last >= self.storage.count):
            raise ValueError("a tensor reaches beyond its storage")


class _Unpickler(pickle.Unpickler):
    """Knows the names that tensors and state dicts are made of, and no others.

    Attributes:
      storages: by key, those that were met.
    """

    def __init__(self, stream: BinaryIO, read: Callable[[_Storage], bytes]):
        super().__init__(stream, encoding="utf-8")
        self.storages: dict[str, _Storage] = {}
        self._read = read

        # Made anew for each file, so that no file can leave anything behind in them.
        def tensor(storage: Any, offset: int, shape: Any, strides: Any, *_: Any) -> Any:
            return _Tensor(storage, offset, tuple(shape), tuple(strides))

        def parameter(data: Any, *_: Any) -> Any:
            return data

        def size(values: Any) -> tuple[int, ...]:
            return tuple(values)

        self._known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch", "Size"): size,
            ("torch._utils", "_rebuild_tensor"): tensor,
            ("torch._utils", "_rebuild_tensor_v2"): tensor,
            ("torch._utils", "_rebuild_parameter"): parameter,
        }
        for name in _DTYPES:
            self._known["torch", name] = self._known["torch.storage", name] = name

    def find_class(self, module: str, name: str) -> Any:
        """Refuses every name but the known ones."""
        try:
            return self._known[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> _Storage:
        """A reference to a storage; its numbers are read later."""
        kind, numbers, key, _, count = pid[:5]
        if kind != "storage":
            raise ValueError("an unknown reference")
        if len(pid) > 5 and pid[5] is not None:
            raise ValueError("views of storages, which only PyTorch before 0.4 wrote")
        if type(count) is not int or count < 0:
            raise ValueError("a storage's length is no natural number")
        storage = _Storage(str(key), _DTYPES[numbers], count, self._read)
        return self.storages.setdefault(storage.key, storage)


class _Refused(Exception):
    """A pickle asks for something that is neither a tensor nor a dictionary."""


class _explained:
    """Turns what a damaged or dangerous file raises into a message."""

    def __init__(self, path: pathlib.Path):
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if isinstance(error, _Refused):
            raise UserError(
                f"{self._path} asks for {error}, which is neither a tensor nor a "
                "dictionary. Nothing of it was run. If you trust the file, load it "
                "with PyTorch and save only the network's state_dict()"
            ) from None
        if isinstance(error, DAMAGE):
            raise UserError(
                f"{self._path} is cut off or damaged: get the file again "
                f"({type(error).__name__}: {error})"
            ) from error


def _arrays(path: pathlib.Path, content: Any, byte_order: str) -> dict[str, np.ndarray]:
    """Reads the tensors of the state dict in `content`."""
    state = _state_dict(content)
    if state is None:
        keys = ", ".join(map(str, list(content)[:8])) if _is_dict(content) else ""
        raise UserError(
            f"{path} holds no state dict"
            + (f"; its entries are: {keys}" if keys else "")
            + ". Load it with PyTorch and save the network's state_dict()"
        )
    tensors = {str(k): v for k, v in state.items() if isinstance(v, _Tensor)}
    cache: dict[str, np.ndarray] = {}
    return {name: _array(tensor, byte_order, cache) for name, tensor in tensors.items()}


def _state_dict(content: Any) -> Mapping[Any, Any] | None:
    """`content`, or what it has under one of the usual keys, if that holds tensors."""
    if not _is_dict(content):
        return None
    nested = [content[key] for key in _DICT_KEYS if _is_dict(content.get(key))]
    for candidate in (*nested, content):
        if any(isinstance(value, _Tensor) for value in candidate.values()):
            return candidate
    return None


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _array(
    tensor: _Tensor, byte_order: str, cache: dict[str, np.ndarray]
) -> np.ndarray:
    """A tensor's numbers, contiguous, in this machine's byte order."""
    storage = tensor.storage
    tensor.check()
    if storage.key not in cache:
        raw = storage.read(storage)
        if len(raw) != storage.nbytes:
            raise EOFError(f"{len(raw)} bytes where there should be {storage.nbytes}")
        values = np.frombuffer(raw, storage.dtype)
        cache[storage.key] = (
            values if byte_order == sys.byteorder else values.byteswap()
        )
    strides = [stride * storage.dtype.itemsize for stride in tensor.strides]
    view = np.lib.stride_tricks.as_strided(
        cache[storage.key][tensor.offset :], tensor.shape, strides, writeable=False
    )
    return np.ascontiguousarray(view).reshape(tensor.shape)
