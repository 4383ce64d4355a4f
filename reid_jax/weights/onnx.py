"""Reads the initialisers of an ONNX file, by their names, without ONNX.

An ONNX file is a protocol buffer; of it only the graph's initialisers are read, and the
rest is stepped over. An exporter that folds batch normalisation into convolutions has
changed names and numbers: what is left then is no longer the trained network's, and
whoever takes the arrays finds them missing. Field numbers are those of `onnx.proto`.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from reid_jax.errors import UserError
from reid_jax.weights import damage

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf's wire types
_GRAPH, _INITIALIZER = 7, 5
_DIMS, _TYPE, _FLOATS, _NAME, _RAW, _EXTERNAL = 1, 2, 4, 8, 9, 13
_MOST_AXES = 8
_MOST = 2**40  # numbers of an array

_DTYPES = {
    1: np.dtype("<f4"),
    10: np.dtype("<f2"),
    11: np.dtype("<f8"),
    16: np.dtype(jnp.bfloat16),
}
_FLOAT = 1
_Field = tuple[int, int | memoryview]

_COUNTERS = (6, 7, 9)
"""int32, int64 and bool: shapes and counters, of which no layer is made."""

STARTS = tuple(bytes([0x08, version]) for version in range(3, 16))
"""How files begin: the version of the format is their first field."""


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The initialisers that are floats, by name: the others are shapes and counters.

    Raises:
      UserError: if the file is cut off or damaged, has none, has weights of another
        type, or keeps them elsewhere.
    """
    with damage.explained(path):
        arrays: dict[str, np.ndarray] = {}
        for number, graph in _fields(memoryview(path.read_bytes())):
            for inner, tensor in _fields(graph) if number == _GRAPH else ():
                if inner == _INITIALIZER:
                    arrays |= _tensor(path, tensor)
    if not arrays:
        raise UserError(f"{path} is an ONNX file without weights")
    return arrays


def _fields(message: int | memoryview) -> Iterator[_Field]:
    """Numbers and contents of a message's fields, in order."""
    if isinstance(message, int):
        raise ValueError("a number in place of a message")
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        kind = key & 7
        if kind == _VARINT:
            content, position = _varint(message, position)
        else:
            if kind == _BYTES:
                length, position = _varint(message, position)
            else:
                length = {_FIXED64: 8, _FIXED32: 4}[kind]
            if length > len(message) - position:
                raise EOFError("a field is longer than what holds it")
            content = message[position : position + length]
            position += length
        yield key >> 3, content


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """A number, and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError("a number of more than ten bytes")


def _tensor(path: pathlib.Path, message: int | memoryview) -> dict[str, np.ndarray]:
    """Numbers of a TensorProto by its name; nothing of a counter."""
    shape: list[int] = []
    kind, name, raw = 0, "", memoryview(b"")
    for number, content in _fields(message):
        if number == _DIMS:
            shape += _numbers(content)
        elif number == _TYPE and isinstance(content, int):
            kind = content
        elif number in (_NAME, _FLOATS, _RAW) and isinstance(content, int):
            raise ValueError("a number in place of bytes")
        elif number == _NAME:
            name = bytes(content).decode()
        elif number in (_FLOATS, _RAW):
            raw, kind = content, _FLOAT if number == _FLOATS else kind
        elif number == _EXTERNAL:
            raise UserError(f"{path} keeps its numbers in other files; export it whole")
    if kind in _COUNTERS:
        return {}
    if kind not in _DTYPES:
        raise UserError(
            f"{path}: {damage.shown(name)} is of ONNX's type {kind}, which is not "
            "supported"
        )
    count = math.prod(shape)
    if len(shape) > _MOST_AXES or max(shape, default=0) > _MOST or count > _MOST:
        raise ValueError(f"{damage.shown(name)} has the shape {shape[:_MOST_AXES]}")
    if len(raw) != count * _DTYPES[kind].itemsize:
        raise ValueError(f"{damage.shown(name)} has another length than it should")
    return {name: np.frombuffer(raw, _DTYPES[kind]).reshape(shape)}


def _numbers(content: int | memoryview) -> list[int]:
    """One number, or several that are packed."""
    if isinstance(content, int):
        return [content]
    found, position = [], 0
    while position < len(content) and len(found) <= _MOST_AXES:
        value, position = _varint(content, position)
        found.append(value)
    return found
