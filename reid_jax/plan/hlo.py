"""The text of compiled programs: computations, their instructions, their arrays.

XLA's optimised programs name for every instruction its result with layout and memory:
`bf16[64,129,768]{2,1,0:T(8,128)(2,1)S(1)}` is tiled by 8 x 128 and lies in the chip's
fast memory (S(1)) rather than in HBM. GPUs' have neither tiles nor spaces.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re

_BITS = {
    **{"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16},
    **{"s32": 32, "u32": 32, "s64": 64, "u64": 64, "f16": 16, "bf16": 16},
    **{"f32": 32, "f64": 64, "c64": 64, "c128": 128, "token": 0, "opaque": 0},
}  # and f8..., below

_ARRAY = re.compile(r"\b(\w+)\[([\d,]*)\](?:\{([^{}]*)\})?")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Array:
    """An array in a program.

    Attributes:
      dtype, shape: as usual.
      stored: bytes that it takes, filled up to whole tiles.
      space: of memory; 0 is HBM.
    """

    dtype: str
    shape: tuple[int, ...]
    stored: int
    space: int

    @property
    def plain(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * _bits(self.dtype) // 8

    @property
    def in_hbm(self) -> int:
        """Bytes that it takes there."""
        return self.stored if self.space == 0 else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a computation.

    Attributes:
      name, opcode: its own.
      results: arrays that it gives, of a tuple each.
      operands: names of instructions of the same computation.
      rest: of the line, attributes.
      root: whether the computation's result is its own.
    """

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    rest: str
    root: bool

    @property
    def kind(self) -> str:
        """Its opcode, or that of what it starts."""
        return self.opcode.removesuffix("-start")

    @property
    def op_name(self) -> str:
        """Where it stands in the Python program: functions and modules."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found.group(1) if found else ""

    def called(self, *roles: str) -> list[str]:
        """Names of the computations that it calls as `roles`."""
        return [name for role, name in _CALLED.findall(self.rest) if role in roles]

    def branches(self) -> list[str]:
        """Names of the computations of which it chooses one."""
        found = _BRANCHES.search(self.rest)
        if found:
            return re.findall(r"%?([\w.\-]+)", found.group(1))
        return re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", self.rest)


Computation = dict[str, Instruction]
"""Its instructions by name, in the order in which they run."""


def parse(text: str) -> tuple[str, dict[str, Computation]]:
    """The name of a program's first computation, and all of them by name.

    Raises:
      ValueError: the text is none of a program.
    """
    entry, computations = "", {}
    current: Computation = {}
    for line in text.splitlines():
        if started := _COMPUTATION.match(line):
            current = computations[started.group(2)] = {}
            entry = started.group(2) if started.group(1) else entry
        elif found := _INSTRUCTION.match(line):
            read = _instruction(*found.groups())
            current[read.name] = read
    if not entry:
        raise ValueError("this is no text of a compiled program")
    return entry, computations


def _instruction(root: str | None, name: str, text: str) -> Instruction:
    end = _closing(text) if text.startswith("(") else text.index(" ")
    shape, after = text[:end], text[end:].lstrip()
    opcode, _, behind = after.partition("(")
    close = _closing("(" + behind)
    inner, rest = behind[: close - 1], behind[close:]
    if opcode in ("constant", "parameter"):
        rest = f"({inner}){rest}"
        inner = ""
    operands = tuple(re.findall(r"%([\w.\-]+)", inner))
    return Instruction(name, opcode, _arrays(shape), operands, rest, bool(root))


def _closing(text: str) -> int:
    """Where the parenthesis that `text` begins with is closed, and one on."""
    depth = 0
    for found in re.finditer(r"[()]", text):
        depth += 1 if found.group() == "(" else -1
        if depth == 0:
            return found.end()
    return len(text)


def _arrays(shape: str) -> tuple[Array, ...]:
    return tuple(_array(*found) for found in _ARRAY.findall(shape))


@functools.lru_cache(maxsize=4096)
def _array(dtype: str, sides: str, layout: str) -> Array:
    shape = tuple(int(side) for side in sides.split(",") if side)
    order, _, tiling = layout.partition(":")
    physical = [shape[int(axis)] for axis in reversed(order.split(",")) if axis]
    tile = re.search(r"T\(([\d,]+)\)", tiling)
    sizes = [int(size) for size in tile.group(1).split(",")] if tile else []
    physical = [1] * (len(sizes) - len(physical)) + (physical or list(shape))
    for axis, size in zip(range(-len(sizes), 0), sizes, strict=True):
        physical[axis] = -(-physical[axis] // size) * size
    space = re.search(r"S\((\d+)\)", tiling)
    stored = math.prod(physical) * _bits(dtype) // 8
    return Array(dtype, shape, stored, int(space.group(1)) if space else 0)


def _bits(dtype: str) -> int:
    return 8 if dtype.startswith("f8") else _BITS[dtype]
