"""Writes PyTorch's two file formats without PyTorch, for files made in tests."""

import collections
import io
import pathlib
import pickle
import struct
import sys
import types
import zipfile
from typing import Any
from unittest import mock

import jax.numpy as jnp
import numpy as np

_STORAGES = {
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(jnp.bfloat16): "BFloat16Storage",
    np.dtype(np.int64): "LongStorage",
}


def _module(name: str, **members: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    for key, member in members.items():
        member.__module__, member.__qualname__, member.__name__ = name, key, key
        setattr(module, key, member)
    return module


def _rebuild_tensor():
    raise AssertionError


def _rebuild_tensor_v2():
    raise AssertionError


_TORCH = _module("torch", **{s: type(s, (), {}) for s in _STORAGES.values()})
_UTILS = _module(
    "torch._utils",
    _rebuild_tensor=_rebuild_tensor,
    _rebuild_tensor_v2=_rebuild_tensor_v2,
)


class _Storage:
    def __init__(self, key: str, array: np.ndarray):
        self.key, self.array = key, array


class _Pickler(pickle.Pickler):
    """Writes arrays as PyTorch does tensors; `ancient` as PyTorch 0.1 did."""

    def __init__(self, stream, *, legacy: bool, ancient: bool, protocol: int):
        super().__init__(stream, protocol=protocol)
        self.storages: list[_Storage] = []
        self._legacy, self._ancient = legacy, ancient

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, _Storage):
            return None
        kind = getattr(_TORCH, _STORAGES[obj.array.dtype])
        pid = ("storage", kind, obj.key, "cpu", obj.array.size)
        return (*pid, None) if self._legacy else pid

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, np.ndarray):
            return NotImplemented
        storage = _Storage(str(len(self.storages)), np.asarray(obj, order="C"))
        self.storages.append(storage)
        strides = tuple(s // obj.itemsize for s in storage.array.strides)
        arguments = (storage, 0, obj.shape, strides)
        if self._ancient:
            return _UTILS._rebuild_tensor, arguments
        extra = (False, collections.OrderedDict())
        return _UTILS._rebuild_tensor_v2, (*arguments, *extra)


def write(
    path: pathlib.Path,
    content: Any,
    *,
    legacy: bool = False,
    ancient: bool = False,
    protocol: int = 2,
) -> pathlib.Path:
    """Writes `content`, whose NumPy arrays become tensors."""
    stream = io.BytesIO()
    pickler = _Pickler(stream, legacy=legacy, ancient=ancient, protocol=protocol)
    with mock.patch.dict(sys.modules, {"torch": _TORCH, "torch._utils": _UTILS}):
        pickler.dump(content)
    if legacy:
        _pack_legacy(path, stream.getvalue(), pickler.storages, protocol)
    else:
        _pack_zip(path, stream.getvalue(), pickler.storages)
    return path


def write_pickle(path: pathlib.Path, pickled: bytes, *, legacy: bool) -> pathlib.Path:
    """A file of PyTorch's format around any pickle."""
    (_pack_legacy if legacy else _pack_zip)(path, pickled, [])
    return path


def swap_bytes(path: pathlib.Path) -> None:
    """Makes a zip file one from a big-endian machine."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            if "/data/" in name:  # float32 only
                content = np.frombuffer(content, np.float32).byteswap().tobytes()
            elif name.endswith("/byteorder"):
                content = b"big"
            archive.writestr(name, content)


def _pack_zip(path: pathlib.Path, pickled: bytes, storages: list[_Storage]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        for storage in storages:
            archive.writestr(f"archive/data/{storage.key}", storage.array.tobytes())
        archive.writestr("archive/version", "3\n")


def _pack_legacy(
    path: pathlib.Path, pickled: bytes, storages: list[_Storage], protocol: int = 2
) -> None:
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    parts = [pickle.dumps(x, protocol) for x in (0x1950A86A20F9469CFC6C, 1001, system)]
    parts.append(pickled)
    parts.append(pickle.dumps([storage.key for storage in storages], protocol))
    for storage in storages:
        parts += [struct.pack("<q", storage.array.size), storage.array.tobytes()]
    path.write_bytes(b"".join(parts))
