"""What a compiled program moves and sends, read from its text.

The text tells what the compiler's own "bytes accessed" does not: how many bytes pass
between chip and HBM. On a GPU all arrays are HBM's, whatever its caches keep.

A collective that the compiler spreads over several fusions stands in the text once for
each of them; it is one, by its channel.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterator, Sequence

from reid_jax.plan import hlo
from reid_jax.plan.hlo import Array, Computation, Instruction

COLLECTIVES = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all"),
    *("collective-permute", "collective-broadcast", "ragged-all-to-all"),
)

# Nothing is moved by these: names for what is there, or ends of what is counted where
# it begins.
_FREE = frozenset(
    (
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast"),
        *("after-all", "add-dependency", "opt-barrier", "domain"),
        *("partition-id", "replica-id", "async-update"),
        *(f"{name}-done" for name in ("copy", "slice", "async", "send", "recv")),
        *(f"{name}-done" for name in COLLECTIVES),
    )
)


_SLICES = ("dynamic-slice", "slice", "gather")


@dataclasses.dataclass(frozen=True)
class Collective:
    """What chips exchange.

    Attributes:
      kind: of `COLLECTIVES`.
      op_name: as of an instruction.
      plain: bytes of its result on a chip.
      times: how often a call of the program does it.
    """

    kind: str
    op_name: str
    plain: int
    times: int

    def sent(self, chips: int) -> float:
        """Bytes that each chip sends at least, all of its doings together."""
        others = (chips - 1) / chips
        factor = {
            "all-reduce": 2 * others,
            "all-gather": others,
            "reduce-scatter": chips - 1,
            "all-to-all": others,
            "ragged-all-to-all": others,
        }.get(self.kind, 1.0)
        return self.times * self.plain * factor


class Program:
    """A compiled program.

    Args:
      text: of `jax.stages.Compiled.as_text()`.

    Attributes:
      computations: their instructions, by name, in the order in which they run.
      entry: name of the first one.
      aliased: outputs that lie where an input lay.
    """

    def __init__(self, text: str):
        head = text[: text.find("\n")]
        self.aliased = len(re.findall(r"\{[\d, ]*\}: \(\d+", head))
        self.entry, self.computations = hlo.parse(text)

    def hbm_bytes(self) -> int:
        """Bytes that a call moves between a chip and its HBM."""
        return self._moved(self.entry)

    def collectives(self) -> list[Collective]:
        """Each collective once, in the order in which they start."""
        found: dict[str, Collective] = {}
        for line, computation, times in self._executed(self.entry, 1, whole=True):
            if line.kind not in COLLECTIVES:
                continue
            scattered = computation.startswith("all-reduce-scatter")
            plain = sum(a.plain for a in _of_collective(line))
            kind = line.kind
            if scattered and kind == "all-reduce":
                root = _root(self.computations[computation])
                kind, plain = "reduce-scatter", sum(a.plain for a in root.results)
            channel = re.search(r"channel_id=(\d+)", line.rest)
            key = channel.group(1) if channel else line.name
            found.setdefault(key, Collective(kind, line.op_name, plain, times))
        return list(found.values())

    def largest(self, count: int) -> list[tuple[Instruction, int]]:
        """The instructions with the largest results in HBM, and their bytes.

        What is only moved between memories is left out.
        """
        sizes = [
            (line, sum(a.in_hbm for a in line.results))
            for line, *_ in self._executed(self.entry, 1, whole=False)
            if line.opcode not in _FREE
            and line.opcode != "while"
            and (line.kind == line.opcode or line.kind in COLLECTIVES)
        ]
        return sorted(sizes, key=lambda pair: -pair[1])[:count]

    def dtypes(self) -> set[str]:
        """Of all arrays."""
        return {
            array.dtype
            for lines in self.computations.values()
            for line in lines.values()
            for array in line.results
        }

    def _executed(
        self, name: str, times: int, *, whole: bool
    ) -> Iterator[tuple[Instruction, str, int]]:
        """Instructions that run, their computation, and how often.

        Args:
          name: of the computation to begin with.
          times: it runs.
          whole: whether what fusions consist of counts, too.
        """
        for line in self.computations.get(name, {}).values():
            yield line, name, times
            if line.opcode == "fusion" and not whole:
                continue
            applied = ("to_apply",) if line.opcode == "call" else ()
            inner = line.called("body", "calls", *applied) + line.branches()
            each = times * (self._trips(line) if line.opcode == "while" else 1)
            for called in inner:
                yield from self._executed(called, each, whole=whole)

    def _moved(self, name: str) -> int:
        lines = self.computations.get(name, {})
        return sum(self._moved_by(line, lines) for line in lines.values())

    def _moved_by(self, line: Instruction, lines: Computation) -> int:
        if line.opcode in _FREE:
            return 0
        if line.opcode == "while":
            return self._trips(line) * sum(map(self._moved, line.called("body")))
        if branches := line.branches():
            return max(map(self._moved, branches))
        if line.opcode in ("call", "async-start"):
            return sum(map(self._moved, line.called("calls", "to_apply")))
        if line.kind in ("copy", "slice") and line.opcode != line.kind:
            return _prefetched(line)
        if line.opcode == "fusion":
            return self._moved_by_fusion(line, lines)
        written = sum(a.in_hbm for a in _of_use(line))
        if line.opcode in _SLICES:
            part = sum(a.stored for a in line.results)
            return written + min(part, _read(lines, line.operands[0]))
        if line.opcode == "dynamic-update-slice":  # in place
            (array,), (_, update, *where) = line.results, line.operands
            part = sum(a.stored for a in lines[update].results) if array.in_hbm else 0
            return part + sum(_read(lines, operand) for operand in (update, *where))
        return written + sum(_read(lines, operand) for operand in line.operands)

    def _moved_by_fusion(self, line: Instruction, lines: Computation) -> int:
        """What a fusion writes, and of its operands what it looks at."""
        inside = self._inside(line)
        total = self._written(line.results, inside)
        for index, operand in enumerate(line.operands):
            whole = _read(lines, operand)
            seen = self._looked_at(inside, index) if whole else None
            total += whole if seen is None else min(seen, whole)
        return total

    def _written(self, results: Sequence[Array], inside: Computation) -> int:
        """What a fusion writes: of an array updated in place the update alone."""
        root = _root(inside)
        if root.opcode == "fusion":
            return self._written(results, self._inside(root))
        if root.opcode == "tuple":
            made = [inside[name] for name in root.operands]
        else:
            made = [root] * len(results)
        return sum(map(self._written_by, results, made, [inside] * len(made)))

    def _written_by(self, result: Array, made: Instruction, inside: Computation) -> int:
        while made.opcode == "bitcast" and made.operands[0] in inside:
            made = inside[made.operands[0]]
        if made.opcode == "fusion" and len(made.results) == 1:
            return self._written((result,), self._inside(made))
        if result.in_hbm and made.opcode == "dynamic-update-slice":
            return sum(a.stored for a in inside[made.operands[1]].results)
        return result.in_hbm

    def _inside(self, line: Instruction) -> Computation:
        (name,) = line.called("calls")
        return self.computations[name]

    def _looked_at(self, lines: Computation, index: int) -> int | None:
        """Bytes of a fusion's operand that slices take; None if something takes all."""
        names, total = {_parameters(lines).get(index)}, 0
        for line in lines.values():
            places = [i for i, name in enumerate(line.operands) if name in names]
            if not places:
                continue
            if line.opcode == "bitcast":
                names.add(line.name)
            elif line.opcode == "fusion":
                inner = [self._looked_at(self._inside(line), i) for i in places]
                if None in inner:
                    return None
                total += sum(inner)
            elif places != [0] or line.opcode not in (*_SLICES, "dynamic-update-slice"):
                return None
            elif line.opcode in _SLICES:
                total += sum(a.stored for a in line.results)
        return total

    def _trips_of(self, condition: str) -> int:
        lines = self.computations.get(condition, {})
        limits = [
            int(found.group(1))
            for line in lines.values()
            if line.opcode == "constant"
            and (found := re.match(r"\((\d+)\)", line.rest))
        ]
        return limits[0] if len(limits) == 1 else 1

    def _trips(self, line: Instruction) -> int:
        """How often a loop runs: as is known, or as a scan's condition compares."""
        known = re.search(r'known_trip_count":\{"n":"(\d+)"', line.rest)
        if known:
            return int(known.group(1))
        return max(map(self._trips_of, line.called("condition")), default=1)


def _of_collective(line: Instruction) -> Sequence[Array]:
    """The arrays that a collective gives; where it is started, inputs come first."""
    if not line.opcode.endswith("-start") or line.kind == "all-reduce":
        return line.results
    arrays = [a for a in line.results if a.shape or a.dtype not in ("u32", "s32")]
    return arrays[len(arrays) // 2 :]


def _of_use(line: Instruction) -> Sequence[Array]:
    """The results that are written.

    Not a library's workspace, of which it may use a part, nor what a collective that is
    started has for inputs.
    """
    if line.kind in COLLECTIVES:
        return _of_collective(line)
    *others, last = line.results or (None,)
    scratch = line.opcode == "custom-call" and last and last.dtype in ("s8", "u8")
    return others if others and scratch else line.results


def _prefetched(line: Instruction) -> int:
    """Bytes that a copy between memories reads or writes in HBM."""
    if line.kind == "copy":
        return sum(a.in_hbm for a in line.results[:2])
    source, part = line.results[0], line.results[-2]
    return part.in_hbm + (part.stored if source.space == 0 else 0)


def _read(lines: Computation, operand: str) -> int:
    found = lines.get(operand)
    return sum(a.in_hbm for a in found.results) if found else 0


def _root(lines: Computation) -> Instruction:
    return next(line for line in lines.values() if line.root)


def _parameters(lines: Computation) -> dict[int, str]:
    found = {}
    for line in lines.values():
        if line.opcode == "parameter":
            found[int(line.rest[1 : line.rest.index(")")])] = line.name
    return found


def count(collectives: Sequence[Collective], chips: int) -> dict[str, dict[str, float]]:
    """How many of each kind there are in the program, and bytes that a chip sends."""
    found: dict[str, dict[str, float]] = collections.defaultdict(
        lambda: {"count": 0, "bytes": 0.0}
    )
    for one in collectives:
        found[one.kind]["count"] += 1
        found[one.kind]["bytes"] += one.sent(chips)
    return dict(found)
