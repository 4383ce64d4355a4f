"""Plans as JSON lines, a table and a plot."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from reid_jax import storage
from reid_jax.benchmark.lines import (
    Line,
    Lines,
    aligned,
    differences,
    label,
    optional,
    short,
)
from reid_jax.benchmark.speed_report import efficiencies, name_over_devices
from reid_jax.plan.topologies import CHIPS
from reid_jax.runtime import workdir as workdirs

_COLUMNS = (
    *("what", "fields", "topology", "batch", "GiB per chip", "of", "fits"),
    *("bound by", "bound, ms", "at most per second", "efficiency", "MFU"),
    *("TFLOPs", "HBM GB", "links MB", "collectives", "compile"),
)

_CAPTION = """\
Everything here is read from compiled programs; nothing was run. GiB per chip:
arguments, outputs that lie nowhere else, workspace and code; of: those that a run has
of the chip's memory. bound: the time that the busiest of matrix unit, HBM and links
takes per call at the published peaks, and so no time that was measured: no run is
faster, most are slower. efficiency: the bound per chip, relative to the fewest chips
planned with the same batch (strong scaling) or the same batch per chip (weak scaling).
MFU: at the bound. TFLOPs, HBM and links: per chip and call; links: bytes that a chip
sends. collectives: all-reduces + others in the program.
"""


class Report(Lines):
    """The plans of a folder, old and new: `plan.jsonl`."""

    file = "plan.jsonl"
    what = "plans"
    identity = ("what", "sweep", "scaling", "topology", "devices", "batch")

    def find(self, about: Mapping[str, Any]) -> Line | None:
        """The line of the same program and compiler that is there, if any."""
        same = (*self.identity, "program", "compiler")
        for line in self.lines:
            if all(line[name] == about[name] for name in same):
                return _judged(line)
        return None

    def finish(self) -> str:
        """Writes `table.md` and `plan.png`; returns the table."""
        self.read()
        text = table(self.lines)
        workdirs.write_text(self.folder / "table.md", f"{text}\n{notes(self.lines)}")
        plot(self.folder / "plan.png", self.lines)
        return text


def table(lines: Sequence[Line]) -> str:
    """Plans as a Markdown table."""
    shown = zip(lines, bound_efficiencies(lines), strict=True)
    return aligned([_COLUMNS, *(_row(*each) for each in shown)], left=3)


def bound_efficiencies(lines: Sequence[Line]) -> list[float | None]:
    """As `efficiencies`, of what the bounds leave possible."""
    return efficiencies(
        [
            {
                **line,
                "per_second_per_device": line["bound_per_second"] / line["devices"],
            }
            if "error" not in line
            else line
            for line in lines
        ]
    )


def _row(line: Line, efficiency: float | None) -> tuple[str, ...]:
    total, whole = line["total_bytes"], _usable(line) / 2**30
    named = (line["what"], label(line["sweep"]), line["topology"], str(line["batch"]))
    memory = optional(total and total / 2**30, "{:.2f}"), f"{whole:.0f}"
    seconds = f"{line['compile_seconds']:.3g} s"
    if "error" in line:
        return (*named, *memory, _fits(line), *[""] * 9, seconds)
    counts = {name: one["count"] for name, one in line["collectives"].items()}
    reduces = counts.pop("all-reduce", 0)
    return (
        *(*named, *memory, _fits(line), line["bound_by"]),
        short(line["bound_seconds"] * 1e3),
        short(line["bound_per_second"]),
        optional(efficiency, "{:.1%}"),
        optional(line["mfu_at_bound"], "{:.1%}"),
        optional(line["flops_per_chip"] and line["flops_per_chip"] / 1e12, "{:.3f}"),
        short(line["hbm_traffic_bytes"] / 1e9),
        short(line["link_bytes"] / 1e6),
        f"{reduces} + {sum(counts.values())}",
        seconds,
    )


def _usable(line: Line) -> int:
    """Bytes that a run has of the chip's memory, by which it fits or does not."""
    return CHIPS[line["chip"]].usable_bytes


def _judged(line: Line) -> Line:
    """A line that is there with `fits` by the memory that a run has, as known now."""
    if "error" in line:
        return line
    return line | {"fits": line["total_bytes"] <= _usable(line)}


def _fits(line: Line) -> str:
    if line["fits"]:
        return "yes"
    change = line.get("fits_with")
    return f"with {label(change)}" if change else "no"


def notes(lines: Sequence[Line]) -> str:
    """What the figures are, against which peaks, and what is not known."""
    found = {_CAPTION: None}
    for line in lines:
        if "error" in line:
            continue
        peak, sources = line["peaks"], "; ".join(line["peaks"]["sources"])
        memory, links = (peak[f"{name}_rate"] / 1e9 for name in ("hbm", "link"))
        found[
            f"{line['device_kind']}: {peak['tflops']:g} TFLOP/s of dense bf16, "
            f"{memory:,.0f} GB/s of HBM, {links:,.0f} GB/s sent over links "
            f"({sources}).\n"
        ] = None
        if line["unknown"]:
            unknown = "; ".join(line["unknown"])
            found[f"{line['device_kind']}, not known here: {unknown}.\n"] = None
    return "\n".join(found)


def plot(path: epath.Path, lines: Sequence[Line]) -> None:
    """Memory and bound, one row per measure; over chips where their numbers differ.

    There, efficiency and the links' share stand in place of memory.
    """
    from matplotlib.figure import Figure  # slow to import, and only needed here

    lines = [
        {**line, "efficiency": efficiency}
        for line, efficiency in zip(lines, bound_efficiencies(lines), strict=True)
        if "error" not in line
    ]
    whats = list(dict.fromkeys(line["what"] for line in lines))
    if not whats:
        return
    figure = Figure((11, 3.2 * len(whats) + 0.4), layout="constrained")
    grid = figure.subplots(len(whats), 2, squeeze=False)
    for (left, right), what in zip(grid, whats, strict=True):
        chosen = [line for line in lines if line["what"] == what]
        if any(line["efficiency"] is not None for line in chosen):
            _draw_scaling(left, right, chosen)
        else:
            _draw_memory(left, chosen)
            _draw_bound(right, chosen)
        left.set_title(what, loc="left")
    figure.suptitle(
        f"{lines[0]['config']}: bounds from compiled programs, not measured"
    )
    file = io.BytesIO()
    figure.savefig(file, dpi=100)
    storage.write_bytes(path, file.getvalue())


def _names(lines: Sequence[Line]) -> list[str]:
    rest = differences(lines, {"batch": "batch {}", "scaling": "{}"})
    return [
        " ".join(filter(None, (line["topology"], label(line["sweep"]), more)))
        for line, more in zip(lines, rest, strict=True)
    ]


def _draw_memory(axes: Any, lines: Sequence[Line]) -> None:
    places, left = range(len(lines)), [0.0] * len(lines)
    for part in ("argument", "output", "workspace", "code"):
        sizes = [_own_bytes(line, part) / 2**30 for line in lines]
        axes.barh(places, sizes, left=left, label=part)
        left = [a + b for a, b in zip(left, sizes, strict=True)]
    whole = [_usable(line) / 2**30 for line in lines]
    axes.plot(whole, places, "k|", markersize=14, label="usable")
    axes.set_yticks(places, _names(lines))
    axes.set_xlabel("GiB per chip")
    axes.legend(fontsize="small")


def _own_bytes(line: Line, part: str) -> int:
    """Of a part of the memory; of outputs, those that lie nowhere else."""
    return line[f"{part}_bytes"] - (line["alias_bytes"] if part == "output" else 0)


def _draw_bound(axes: Any, lines: Sequence[Line]) -> None:
    for shift, part in zip((-0.25, 0, 0.25), ("matrix", "hbm", "links"), strict=True):
        places = [i + shift for i in range(len(lines))]
        times = [line["bound_parts"][part] * 1e3 for line in lines]
        axes.barh(places, times, height=0.22, label=part)
    axes.set_yticks(range(len(lines)), _names(lines))
    axes.set_xlabel("ms per call at least")
    axes.legend(fontsize="small")


def _draw_scaling(left: Any, right: Any, lines: Sequence[Line]) -> None:
    series: dict[str, list[Line]] = {}
    for line in sorted(lines, key=lambda line: line["devices"]):
        name = f"{line['chip']} {name_over_devices(line)}"
        series.setdefault(name, []).append(line)
    for name, members in series.items():
        chips = [line["devices"] for line in members]
        left.plot(
            chips, [line["bound_per_second"] for line in members], "o-", label=name
        )
        shares = [line["share_of_links"] for line in members]
        right.plot(chips, shares, "s:", label=f"{name}: share of links")
        known = [m for m in members if m["efficiency"] is not None]
        right.plot(
            [m["devices"] for m in known],
            [m["efficiency"] for m in known],
            "o-",
            label=f"{name}: efficiency",
        )
    ticks = sorted({line["devices"] for line in lines})
    for axes, title in ((left, f"{lines[0]['unit']} per second at most"), (right, "")):
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, map(str, ticks))
        axes.minorticks_off()
        axes.set_xlabel("chips")
        axes.set_ylabel(title)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize="small")
