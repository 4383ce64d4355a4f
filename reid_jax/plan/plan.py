"""`--mode=plan`: what a config needs of TPUs and GPUs that are not here, and what it
could reach there at most.

Every point of a sweep is compiled as a run would compile it, by the accelerators' own
compilers, which need no device. What is planned, by the name in `--measure`: train
(the step of each stage), embed, pairs and ranking, as for the benchmark.

What a line says of each chip: bytes of arguments, outputs, workspace and code, and
whether their sum fits; how many of the donated arrays were taken over; FLOPs, by our
own count (matrix products and convolutions) and by the compiler's; bytes between chip
and HBM; collectives and the bytes that they send; the largest buffers and what makes
them. From these follows a bound: the time that the busiest of matrix unit, memory and
links takes at their published peaks. Nothing is measured; no run beats its bound.

Where a training step does not fit, the library's levers are tried, and the line says
which smallest change fits; its figures are a line of their own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from reid_jax import checks, storage
from reid_jax.benchmark import peaks
from reid_jax.benchmark.benchmark import about_launch, without_compilation_cache
from reid_jax.benchmark.sweep import (
    Point,
    check_embedding,
    check_training,
    points_over,
    with_fields,
)
from reid_jax.benchmark.workloads import build
from reid_jax.errors import UserError
from reid_jax.plan import compile as compiling
from reid_jax.plan import program as programs
from reid_jax.plan import roofline, topologies
from reid_jax.plan.compile import MEASURES, Compiled, Work
from reid_jax.plan.levers import levers
from reid_jax.plan.plan_report import Line, Report
from reid_jax.plan.topologies import Topology
from reid_jax.runtime import workdir as workdirs
from reid_jax.runtime.progress import said

LARGEST = 10
"""Buffers that a line names."""

_COMPILERS = {"tpu": "libtpu", "cuda": "jax-cuda13-plugin"}


@dataclasses.dataclass(frozen=True)
class Request:
    """What to plan, and for which chips.

    Attributes:
      topologies: their names.
      measures: some of `MEASURES`.
      batches, per_device, sweeps: as of the benchmark's.

    Raises:
      UserError: for a name or a number that makes no sense.
    """

    topologies: Sequence[str]
    measures: Sequence[str] = ("train", "embed")
    batches: Sequence[int] = ()
    per_device: bool = False
    sweeps: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.topologies:
            raise UserError("--mode=plan needs --topology, such as v5e:2x2,h200:8")
        unknown = ",".join(sorted(set(self.measures) - set(MEASURES)))
        if unknown:
            raise UserError(f"--measure={unknown}: known are {', '.join(MEASURES)}")
        if min(self.batches, default=1) < 1:
            raise UserError("batches must be at least 1")


def plan(config: Any, folder: str, request: Request) -> list[Line]:
    """Plans every point of the sweep, and prints a table.

    Leaves `plan.jsonl`, `manifest.json`, `table.md` and `plan.png` in `folder`. A line
    that is there is kept, and its program not compiled again, as long as program and
    compiler are the same: what was interrupted goes on.

    Args:
      config: see `configs/common.py`; neither data nor weights are needed.
      folder: where to write.
      request: what to plan.

    Returns:
      the lines of the request, old and new.

    Raises:
      UserError: before anything is compiled, for a topology or a sweep that makes no
        sense, a compiler that is not installed, or another config's lines in `folder`.
    """
    todo = [
        (topology, point)
        for topology in map(topologies.find, request.topologies)
        for point in _checked_points(config, topology, request)
    ]
    fields = config.to_dict()
    storage.check_writable(folder)
    report = Report(folder, fields)
    workdirs.write_manifest(folder, fields)
    launch = about_launch(config, workdirs.manifest(fields))
    planner = _Planner(report, launch)
    with without_compilation_cache():
        for topology, point in todo:
            for work in compiling.works(point, request.measures):
                planner.add(topology, point, work)
    print(report.finish())
    return planner.lines


def _checked_points(
    config: Any, topology: Topology, request: Request
) -> Iterator[Point]:
    """The points of a topology, all of which can be run."""
    for point in points_over(
        [topology.devices],
        config,
        sweeps=request.sweeps,
        batches=request.batches,
        per_device=request.per_device,
    ):
        trained = "train" in request.measures
        for stage in build(point, trained)[1] if trained else ():
            check_training(point, stage)
        if "embed" in request.measures:
            check_embedding(point)
        yield point


class _Planner:
    """Makes the lines of works.

    Args:
      report: that gets them.
      launch: what all of them share.

    Attributes:
      lines: so far.
    """

    def __init__(self, report: Report, launch: Mapping[str, Any]):
        self._report, self._launch = report, launch
        self.lines: list[Line] = []

    def add(self, topology: Topology, point: Point, work: Work) -> None:
        """Plans a work; where it does not fit, also with the change that does."""
        line = self._planned(topology, point, work)
        if line.get("fits_with"):
            self.lines += self._as_changed(line)
        elif not line["fits"] and work.stage and "fits_with" not in line:
            line |= {"fits_with": self._change_that_fits(topology, point, work)}
            self._report.add(line)
        self.lines.append(line)

    def _as_changed(self, line: Line) -> list[Line]:
        """The line that is there of the change with which a line's program fits."""
        sweep = line["sweep"] | line["fits_with"]
        key = self._report.key(line | {"sweep": sweep})
        return [old for old in self._report.lines if self._report.key(old) == key]

    def _change_that_fits(
        self, topology: Topology, point: Point, work: Work
    ) -> dict[str, Any] | None:
        """The first of the levers that makes it fit; None if there is none."""
        devices = len(point.devices)
        for fields in levers(point.config, work.stage, devices=devices):
            changed = with_fields(point.config, fields)
            checks.check_config(changed)
            other = dataclasses.replace(
                point, config=changed, fields={**point.fields, **fields}, first=False
            )
            same = next(
                w for w in compiling.works(other, ["train"]) if w.what == work.what
            )
            line = self._planned(topology, other, same)
            if line["fits"]:
                self.lines.append(line)
                return fields
        return None

    def _planned(self, topology: Topology, point: Point, work: Work) -> Line:
        """The line of a work: the one that is there, or a new one."""
        about = self._launch | _about(topology, point, work)
        with said(f"tracing {work.what}"):
            lowered = work.lower()
        digest = hashlib.sha256(lowered.as_text().encode()).hexdigest()[:12]
        about |= {"program": digest, "compiler": _compiler(topology)}
        old = self._report.find(about)
        if old:
            return old
        made = compiling.compiled(work, lowered, topology)
        line = about | {"compile_seconds": made.seconds}
        line |= _figures(made, work, topology) if made.program else _too_large(made)
        self._report.add(line)
        return line


def _compiler(topology: Topology) -> str:
    name = _COMPILERS[topology.chip.platform]
    return f"{name} {importlib.metadata.version(name)}"


def _about(topology: Topology, point: Point, work: Work) -> Line:
    """What makes a line of this work."""
    return {
        "what": work.what,
        "unit": work.unit,
        "batch": work.items,
        "sweep": workdirs.flatten(point.fields),
        "scaling": "weak" if point.per_device else "strong",
        "topology": topology.name,
        "chip": topology.kind,
        "devices": len(work.devices),
        "device_kind": topology.chip.kind,
        "dtype": point.config.model.get("dtype", "float32"),
        "hbm_bytes": topology.chip.hbm_bytes,
    }


def _too_large(made: Compiled) -> Line:
    """Of a program that its compiler refuses."""
    return {"fits": False, "error": "out of memory", "total_bytes": made.wanted}


def _figures(made: Compiled, work: Work, topology: Topology) -> Line:
    """What the compiled program says, per chip."""
    program, chips = programs.Program(made.program.as_text()), len(work.devices)
    memory = _memory(made.program)
    exchanged = programs.count(program.collectives(), chips)
    flops, moved = work.flops(), program.hbm_bytes()
    sent = sum(kind["bytes"] for kind in exchanged.values())
    own = flops / chips if flops is not None else None
    cost = made.program.cost_analysis() or {}
    theirs = cost.get("flops")
    return {
        **memory,
        "fits": memory["total_bytes"] <= topology.chip.usable_bytes,
        "donated": work.donated,
        "taken_over": program.aliased,
        "flops": flops,
        "flops_per_chip": own,
        "flops_by_compiler": theirs,
        "flops_ratio": own / theirs if own and theirs else None,
        "hbm_traffic_bytes": moved,
        "collectives": exchanged,
        "link_bytes": sent,
        "unknown": _unknown(topology),
        "largest_buffers": [
            {"bytes": size, "op": line.opcode, "made_by": line.op_name}
            for line, size in program.largest(LARGEST)
        ],
        **_bound(own, moved, sent, work, topology),
    }


def _memory(program: Any) -> Line:
    plan = program.memory_analysis()
    parts = {
        "argument_bytes": plan.argument_size_in_bytes,
        "output_bytes": plan.output_size_in_bytes,
        "alias_bytes": plan.alias_size_in_bytes,
        "workspace_bytes": plan.temp_size_in_bytes,
        "code_bytes": plan.generated_code_size_in_bytes,
    }
    total = sum(parts.values()) - 2 * parts["alias_bytes"]
    return parts | {"total_bytes": total}


def _unknown(topology: Topology) -> list[str]:
    """What no compiler knows without the device."""
    if topology.chip.platform == "tpu":
        return []
    return [
        "kernels that autotuning would choose, and their workspace",
        "which engine cuDNN takes for a convolution",
        "FLOPs by the compiler's count",
        "what the L2 cache keeps: HBM bytes are those of kernels' inputs and outputs",
    ]


def _bound(
    flops: float | None, moved: float, sent: float, work: Work, topology: Topology
) -> Line:
    peak = peaks.PEAKS[topology.chip.kind]
    found = roofline.bound(
        flops=flops or 0.0,
        hbm_bytes=moved,
        link_bytes=sent,
        chip=topology.chip,
        peak=peak,
    )
    chips, seconds = len(work.devices), found.seconds
    return {
        "bound_seconds": seconds,
        "bound_by": found.binds,
        "bound_parts": dataclasses.asdict(found),
        "share_of_links": found.share_of_links,
        "bound_per_second": work.items / seconds,
        "mfu_at_bound": peaks.mfu(
            flops and round(flops * chips), seconds=seconds, devices=chips, peak=peak
        ),
        "peaks": {
            "tflops": peak.tflops,
            "hbm_rate": topology.chip.hbm_rate,
            "link_rate": topology.chip.link_rate,
            "sources": [peak.source, topology.chip.source],
        },
    }
