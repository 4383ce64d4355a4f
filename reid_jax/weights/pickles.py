"""Reads pickles of tensors and plain data, and runs nothing.

A pickle is a program for a stack machine, whose opcodes may import and call anything
and claim any amount of memory. `pickletools` of the standard library reads the opcodes
here, and a machine of this module's own carries out those that make data. A name is no
more than its text: those of `_MAKERS` are known, and any other ends the reading.
"""

from __future__ import annotations

import dataclasses
import math
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar

import jax.numpy as jnp
import numpy as np

from reid_jax.weights.damage import Refused

MOST_STEPS = 2_000_000
"""Opcodes in a pickle: a network of a thousand tensors, with its optimizer, has some
hundred thousand."""

_MOST_AXES = 64  # NumPy's limit
_MOST = 2**62  # of any size in a file
_MOST_ARGUMENTS = 16

DTYPES = {
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


@dataclasses.dataclass(frozen=True)
class Storage:
    """A run of numbers, elsewhere in the file."""

    key: str
    dtype: np.dtype
    count: int

    @property
    def nbytes(self) -> int:
        """Its length in bytes."""
        return self.count * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A strided view of a storage, as yet unread.

    Raises:
      ValueError: unless the view lies within its storage.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __post_init__(self) -> None:
        _naturals((self.offset,))
        steps = zip(self.shape, self.strides, strict=True)
        last = self.offset + sum((n - 1) * stride for n, stride in steps)
        size = math.prod(self.shape)
        if size > self.storage.count or (size and last >= self.storage.count):
            raise ValueError("a tensor reaches beyond its storage")

    @property
    def nbytes(self) -> int:
        """Of a contiguous copy."""
        return math.prod(self.shape) * self.storage.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class _Name:
    """What a pickle calls by module and name."""

    text: str


def _naturals(values: Any) -> tuple[int, ...]:
    """A shape, or strides."""
    if not isinstance(values, list | tuple) or len(values) > _MOST_AXES:
        raise ValueError("a shape is no short list of numbers")
    if any(type(n) is not int or not 0 <= n < _MOST for n in values):
        raise ValueError("a tensor's shape or strides are no natural numbers")
    return tuple(values)


def _tensor(storage: Any, offset: int, shape: Any, strides: Any, *_: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise TypeError("a tensor without a storage")
    return Tensor(storage, offset, _naturals(shape), _naturals(strides))


def _dictionary(pairs: Any = None) -> dict[Any, Any]:
    """An OrderedDict: empty, or of the list of pairs that Python 2 wrote."""
    made: dict[Any, Any] = {}
    for key, value in pairs or []:
        _put(made, key, value)
    if pairs:
        pairs.clear()  # a file could have the same list copied again and again
    return made


def _put(target: Any, key: Any, value: Any) -> None:
    if type(target) is not dict:
        raise TypeError("entries of what is no dictionary")
    if isinstance(key, str | int | float | None):  # to hash others may take for ever
        target[key] = value


def _data(*_: Any) -> None:
    """Data of no use here: its value is not kept."""


# By the text that a pickle has. They get the arguments that it gives.
_MAKERS: dict[str, Callable[..., Any]] = {
    "collections OrderedDict": _dictionary,
    "collections Counter": lambda counts=None: counts,
    "torch Size": _naturals,
    "torch._utils _rebuild_tensor": _tensor,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": lambda data, *_: data,
    # NumPy's numbers, such as the accuracy beside a state dict; a command's options.
    "numpy dtype": _data,
    "numpy.core.multiarray scalar": _data,
    "numpy._core.multiarray scalar": _data,
    "_codecs encode": _data,
    "argparse Namespace": _data,
}
_STORAGES = {
    f"{module} {name}": dtype
    for module in ("torch", "torch.storage")
    for name, dtype in DTYPES.items()
}


class Machine:
    """Reads one pickle after another.

    Attributes:
      storages: by key, those that were met.
    """

    def __init__(self) -> None:
        self.storages: dict[str, Storage] = {}
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # stacks under marks
        self._memo: dict[int, Any] = {}

    def load(self, stream: BinaryIO) -> Any:
        """The value of the pickle that begins here; the stream then stands behind it.

        Strings, numbers, lists (sets, too), tuples, dictionaries, `Tensor`s, and None
        for what has no use here. A dictionary's keys are text or numbers; entries under
        other keys are left out.

        Raises:
          Refused: if it asks for anything else.
          ValueError and others of `damage.ERRORS`: if it is no whole pickle.
        """
        self._stack, self._below, self._memo = [], [], {}
        for step, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if step == MOST_STEPS:
                raise ValueError(f"more than {MOST_STEPS:,} steps to describe weights")
            if opcode.name in _PUSHED:
                self._stack.append(argument)
            elif opcode.name in _MADE:
                self._stack.append(_MADE[opcode.name]())
            elif opcode.name not in _PASSED:
                self._STEPS[opcode.name](self, argument)
        return self._stack.pop()

    def _mark(self, _: None) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _marked(self) -> list[Any]:
        """What was pushed since the last mark, which is removed."""
        items, self._stack = self._stack, self._below.pop()
        return items

    def _pop(self, _: None) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._marked()

    def _drop(self, _: None) -> None:
        self._marked()

    def _repeat(self, _: None) -> None:
        self._stack.append(self._stack[-1])

    def _remember(self, index: int | None) -> None:
        self._memo[len(self._memo) if index is None else index] = self._stack[-1]

    def _recall(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def _tuple(self, _: None) -> None:
        items = self._marked()
        self._stack.append(tuple(items))

    def _list(self, _: None) -> None:
        items = self._marked()
        self._stack.append(items)

    def _dict(self, _: None) -> None:
        items = self._marked()
        self._stack.append({})
        self._put(items)

    def _put(self, items: list[Any]) -> None:
        """Adds keys and values, in turn, to the dictionary on the stack."""
        for key, value in zip(items[::2], items[1::2], strict=True):
            _put(self._stack[-1], key, value)

    def _append(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise TypeError("items of what is no list")
        self._stack[-1].extend(items)

    def _last(self, count: int) -> list[Any]:
        """Takes the last few values off the stack."""
        return [self._stack.pop() for _ in range(count)][::-1]

    def _name(self, text: str) -> None:
        if text not in _MAKERS and text not in _STORAGES:
            raise Refused(text.replace(" ", "."))
        self._stack.append(_Name(text))

    def _name_from_stack(self, _: None) -> None:
        module, name = self._last(2)
        self._name(f"{module} {name}")

    def _call(self, _: None) -> None:
        """Makes what a known name and its arguments say."""
        name, arguments = self._last(2)
        if len(arguments) > _MOST_ARGUMENTS:
            raise ValueError("more arguments than anything has")
        self._stack.append(_MAKERS[name.text](*arguments))

    def _refer(self, _: None) -> None:
        """A reference to a storage; its numbers are read later."""
        kind, numbers, key, _, count, *view = self._stack.pop()
        if kind != "storage" or not isinstance(key, str | int):
            raise ValueError("an unknown reference")
        if view not in ([], [None]):
            raise ValueError("views of storages, which only PyTorch before 0.4 wrote")
        _naturals((count,))
        storage = Storage(str(key), _STORAGES[numbers.text], count)
        if self.storages.setdefault(storage.key, storage) != storage:
            raise ValueError("one storage with two types or lengths")
        self._stack.append(storage)

    # By opcode. Attributes that are set on an object (BUILD) are of no use here.
    _STEPS: ClassVar[dict[str, Callable[[Machine, Any], None]]] = {
        "MARK": _mark,
        "POP": _pop,
        "BUILD": _pop,
        "POP_MARK": _drop,
        "DUP": _repeat,
        **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _remember),
        **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _recall),
        "TUPLE": _tuple,
        "TUPLE1": lambda self, _: self._stack.append(tuple(self._last(1))),
        "TUPLE2": lambda self, _: self._stack.append(tuple(self._last(2))),
        "TUPLE3": lambda self, _: self._stack.append(tuple(self._last(3))),
        "LIST": _list,
        "FROZENSET": _list,
        "DICT": _dict,
        "APPEND": lambda self, _: self._append(self._last(1)),
        "APPENDS": lambda self, _: self._append(self._marked()),
        "ADDITEMS": lambda self, _: self._append(self._marked()),
        "SETITEM": lambda self, _: self._put(self._last(2)),
        "SETITEMS": lambda self, _: self._put(self._marked()),
        "GLOBAL": _name,
        "STACK_GLOBAL": _name_from_stack,
        "REDUCE": _call,
        "NEWOBJ": _call,
        "BINPERSID": _refer,
    }


_PUSHED = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING"),
        *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    )
)
_MADE: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
}
_PASSED = frozenset(("PROTO", "FRAME", "STOP"))
