"""Measurements of speed as JSON lines, a table and a plot."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
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
from reid_jax.runtime import workdir as workdirs

# What makes a line another measurement, rather than the same one again.
_IDENTITY = ("what", "sweep", "scaling", "devices", "processes", "device_kind", "batch")

_COLUMNS = (
    *("what", "fields", "devices", "batch", "ms", "per second", "per device"),
    *("efficiency", "GFLOPs", "MFU", "peak memory", "compile"),
)

_CAPTION = """\
ms: median over windows of back-to-back calls, without compilation, warm-up and input
pipeline. per second: images, pairs or queries. efficiency: per device, relative to the
fewest devices that were measured with the same batch (strong scaling) or the same
batch per device (weak scaling). GFLOPs: of a call over all devices, matrix products
and convolutions. peak memory: per device, from the allocator (a) or as the compiler
plans it (c).
"""

_PMAP = """\
pmap: the training step by `jax.pmap`, for comparison. Batch statistics, mining, pairs
and banks are of each device's rows alone, so that several devices learn something else.
"""


class Report(Lines):
    """The measurements of a folder, old and new: `benchmark.jsonl`."""

    file = "benchmark.jsonl"
    what = "measurements"
    identity = _IDENTITY

    def finish(self) -> str:
        """Writes `table.md` and `benchmark.png`; returns the table."""
        self.read()
        text = table(self.lines)
        workdirs.write_text(self.folder / "table.md", f"{text}\n{_notes(self.lines)}")
        plot(self.folder / "benchmark.png", self.lines)
        return text


def efficiencies(lines: Sequence[Line]) -> list[float | None]:
    """How well each line's devices are used, relative to the fewest devices.

    Strong scaling (one batch, shared by more and more devices) is compared at the same
    batch, weak scaling (a batch for each device) at the same batch per device. Either
    way, throughput per device over that of the fewest devices is the efficiency.

    Returns:
      for each line 1.0 or less where nothing is gained twice; None where there are no
      two numbers of devices to compare, or nothing was measured.
    """
    groups: dict[str, list[Line]] = {}
    for line in _measured(lines):
        groups.setdefault(_series(line), []).append(line)
    return [_efficiency(line, groups.get(_series(line), [])) for line in lines]


def _efficiency(line: Line, group: Sequence[Line]) -> float | None:
    if "error" in line or len({other["devices"] for other in group}) < 2:
        return None
    fewest = min(group, key=lambda other: other["devices"])
    return line["per_second_per_device"] / fewest["per_second_per_device"]


def _series(line: Line) -> str:
    """What lines have in common that differ in the number of devices."""
    batch = line["batch"]
    if line["scaling"] == "weak" and batch is not None:
        batch /= line["devices"]
    names = ("what", "sweep", "scaling", "device_kind")
    return json.dumps([*(line[name] for name in names), batch])


def _measured(lines: Sequence[Line]) -> list[Line]:
    return [line for line in lines if "error" not in line]


def table(lines: Sequence[Line]) -> str:
    """Measurements as a Markdown table, aligned for reading as text."""
    shown = zip(lines, efficiencies(lines), strict=True)
    rows = [_row(line, efficiency) for line, efficiency in shown]
    return aligned([_COLUMNS, *rows])


def _row(line: Line, efficiency: float | None) -> tuple[str, ...]:
    named = (line["what"], label(line["sweep"]), str(line["devices"]))
    if "error" in line:
        return (*named, str(line["batch"]), line["error"], *[""] * 7)
    return (
        *named,
        str(line["batch"]),
        short(line["seconds"] * 1e3),
        short(line["per_second"]),
        short(line["per_second_per_device"]),
        optional(efficiency, "{:.1%}"),
        short(line["flops"] / 1e9) if line["flops"] is not None else "",
        optional(line["mfu"], "{:.1%}"),
        _memory(line),
        f"{line['compile_seconds']:.3g} s",
    )


def _memory(line: Line) -> str:
    if line["peak_bytes"] is None:
        return ""
    source = line["peak_bytes_from"][0]
    return f"{short(line['peak_bytes'] / 2**20)} MiB ({source})"


def _notes(lines: Sequence[Line]) -> str:
    """What the figures are, on what, and against which peak."""
    notes = {_CAPTION: None}
    for line in _measured(lines):
        notes[f"{line['config']} on {line['device_kind']}: {_peak(line)}\n"] = None
        if line["what"].startswith("pmap"):
            notes[_PMAP] = None
        if line["platform"] == "cpu" and line["devices"] > 1:
            notes[
                "Several CPU devices of a process share its cores: their efficiency "
                "shows the work they add, not how more hardware would scale.\n"
            ] = None
    return "\n".join(notes)


def _peak(line: Line) -> str:
    if line["peak_tflops"] is None:
        return "no MFU, because its peak is not known here; give it by --peak_tflops."
    return (
        f"MFU against {line['peak_tflops']:g} TFLOP/s of dense bf16 per device "
        f"({line['peak_source']})."
    )


def plot(path: epath.Path, lines: Sequence[Line]) -> None:
    """Throughput, and efficiency or MFU or time beside it, one row per measure.

    Over the number of devices if there are several, else over the batch if there are
    several, else as bars.
    """
    from matplotlib.figure import Figure  # slow to import, and only needed here

    whats = list(dict.fromkeys(line["what"] for line in _measured(lines)))
    if not whats:
        return
    figure = Figure((10, 2.6 * len(whats) + 0.4), layout="constrained")
    grid = figure.subplots(len(whats), 2, squeeze=False)
    for axes, what in zip(grid, whats, strict=True):
        chosen = [
            {**line, "efficiency": efficiency}
            for line, efficiency in zip(lines, efficiencies(lines), strict=True)
            if line["what"] == what and "error" not in line
        ]
        _draw(axes[0], chosen, "per_second", f"{chosen[0]['unit']} per second")
        _draw(axes[1], chosen, *_second_quantity(chosen))
        axes[0].set_title(what, loc="left")
    kinds = ", ".join(sorted({line["device_kind"] for line in lines}))
    figure.suptitle(f"{lines[0]['config']} on {kinds}")
    file = io.BytesIO()
    figure.savefig(file, dpi=100)
    storage.write_bytes(path, file.getvalue())


def _second_quantity(lines: Sequence[Line]) -> tuple[str, str]:
    if any(line["efficiency"] is not None for line in lines):
        return "efficiency", "efficiency"
    if any(line["mfu"] is not None for line in lines):
        return "mfu", "MFU"
    return "seconds", "seconds per call"


def _draw(axes: Any, lines: Sequence[Line], quantity: str, title: str) -> None:
    lines = [line for line in lines if line[quantity] is not None]
    x = next((n for n in ("devices", "batch") if len(_values(lines, n)) > 1), None)
    if x is None:
        axes.bar(_names(lines, x), [line[quantity] for line in lines], width=0.5)
    else:
        _draw_series(axes, lines, x, quantity)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(title)
    axes.grid(axis="y", alpha=0.3)


def _draw_series(axes: Any, lines: Sequence[Line], x: str, quantity: str) -> None:
    series: dict[str, list[Line]] = {}
    for name, line in zip(_names(lines, x), lines, strict=True):
        series.setdefault(name, []).append(line)
    for title, members in series.items():
        members.sort(key=lambda line: line[x])
        xs, ys = [m[x] for m in members], [m[quantity] for m in members]
        axes.plot(xs, ys, marker="o", label=title)
    ticks = sorted(_values(lines, x))
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, map(str, ticks))
    axes.minorticks_off()
    axes.set_xlabel(x)
    axes.legend(fontsize="small")


def _names(lines: Sequence[Line], x: str | None) -> list[str]:
    """Of the bar or the series over `x` that each line belongs to."""
    name = name_over_devices if x == "devices" else _name_over_batch
    forms = {"device_kind": "{}"}
    if x != "devices":
        forms["scaling"] = "{}"
    launches = {(line["devices"], line["processes"]) for line in lines}
    if x != "devices" or len(launches) > len(_values(lines, x)):
        forms["processes"] = "processes={}"  # which else go with the devices
    rest = differences(lines, forms)
    return [f"{name(n)} {more}".strip() for n, more in zip(lines, rest, strict=True)]


def name_over_devices(line: Line) -> str:
    """What lines share that are shown as a series over numbers of devices."""
    weak = line["scaling"] == "weak"
    batch = line["batch"] // line["devices"] if weak else line["batch"]
    return f"{label(line['sweep'])} batch {batch}{' per device' * weak}".strip()


def _name_over_batch(line: Line) -> str:
    return label(line["sweep"]) or line["config"]


def _values(lines: Sequence[Line], name: str) -> set[Any]:
    return {line[name] for line in lines}
