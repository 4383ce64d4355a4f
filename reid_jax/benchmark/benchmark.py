"""`--mode=benchmark`: how fast a config runs here, on random data.

What is measured, by the name in `--measure`:

  train    the training step of each of the method's stages, as the training loop jits
           it, donation and shardings included
  pmap     only where it is named: the same step by `jax.pmap`, in one process. Batch
           statistics, mining, pairs and banks are then of each device's rows alone, and
           gradients are averaged, so that it learns something else: a comparison
  embed    embedding of images, as the evaluation does
  pairs    for pair models, on one device: the maps of `evaluation.pair_block` images,
           and the scores of as many candidates with one query (or, where the whole
           gallery is scored, with `evaluation.query_block` queries)
  ranking  on one device and its host: distances of `evaluation.query_block` queries to
           a gallery of Market-1501's size, and the ranks of their matches

What is in a figure: the median over windows of back-to-back calls, with the device
waited for at the end of each. What is not: compilation, warm-up, and reading, decoding
and moving images; they lie on the device. FLOPs are those of matrix products and
convolutions in the traced function, a multiplication and an addition each; what
rematerialisation computes again counts again. MFU is always against the bf16 peak,
whatever the network computes in.

All points of a sweep are measured in one process, one after the other. So an
allocator's peak of memory is known only where it rose while a point was timed;
elsewhere it is what the compiler plans for inputs, outputs and workspace, and
`peak_bytes_from` says which.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from reid_jax import experiment, storage
from reid_jax.benchmark import peaks, timing, workloads
from reid_jax.benchmark.speed_report import Report
from reid_jax.benchmark.sweep import (
    Point,
    check_embedding,
    check_training,
    points,
    share_of_device,
)
from reid_jax.benchmark.workloads import (
    COMPARISONS,
    MEASURES,
    OutOfMemory,
    Work,
    memory_for,
)
from reid_jax.errors import UserError
from reid_jax.runtime import workdir as workdirs
from reid_jax.runtime.progress import said


@dataclasses.dataclass(frozen=True)
class Request:
    """What to measure, and where.

    Attributes:
      measures: some of `MEASURES` and `COMPARISONS`.
      devices: numbers of devices; () is all there are.
      batches: images per step; () is the config's own.
      per_device: whether `batches` count for each device (weak scaling) rather than
        for all of them (strong scaling).
      sweeps: "field=value,value" of the config.
      peak_tflops: of one device, to be used in place of the table of peaks.
      windows: how many a figure is the median of.

    Raises:
      UserError: for a name or a number that makes no sense.
    """

    measures: Sequence[str] = MEASURES
    devices: Sequence[int] = ()
    batches: Sequence[int] = ()
    per_device: bool = False
    sweeps: Sequence[str] = ()
    peak_tflops: float | None = None
    windows: int = 10

    def __post_init__(self) -> None:
        known = (*MEASURES, *COMPARISONS)
        unknown = ",".join(sorted(set(self.measures) - set(known)))
        if unknown:
            raise UserError(f"--measure={unknown}: known are {', '.join(known)}")
        if "pmap" in self.measures and jax.process_count() > 1:
            raise UserError("--measure=pmap: it is measured in one process only")
        if self.windows < 1 or min(self.batches, default=1) < 1:
            raise UserError("--windows and batches must be at least 1")
        if self.peak_tflops is not None and self.peak_tflops <= 0:
            raise UserError("--peak_tflops must be more than 0")


def benchmark(config: Any, folder: str, request: Request) -> list[dict[str, Any]]:
    """Measures every point of the sweep, and prints a table.

    Leaves `benchmark.jsonl` with a line for each figure, `manifest.json`, `table.md`
    and `benchmark.png` in `folder`. Lines of other points that are there stay, so that
    launches with different numbers of processes add up; a point that is measured again
    replaces its line.

    Args:
      config: see `configs/common.py`; neither data nor weights are needed.
      folder: where to write.
      request: what to measure.

    Returns:
      the new lines; process 0 writes each as it comes.

    Raises:
      UserError: before anything is measured, for a sweep that does not fit the config
        or the devices, or another config's measurements in `folder`.
    """
    todo = _checked_points(config, request)
    fields = config.to_dict()
    first = jax.process_index() == 0
    if first:
        storage.check_writable(folder)
    # All of them look: one that is refused must not leave the others waiting.
    report = Report(folder, fields)
    if first:
        workdirs.write_manifest(folder, fields)
    launch = about_launch(config, workdirs.manifest(fields))
    lines = []
    with without_compilation_cache():
        for point in todo:
            for line in _measure_point(point, request):
                lines.append(launch | line)
                if first:
                    report.add(lines[-1])
    if first:
        print(report.finish())
    return lines


def _checked_points(config: Any, request: Request) -> list[Point]:
    """The points, all of which can be measured."""
    todo = points(
        config,
        sweeps=request.sweeps,
        devices=request.devices,
        batches=request.batches,
        per_device=request.per_device,
    )
    checked = []
    for point in todo:
        method = experiment.build_method(point.config, num_classes=2)
        stages = experiment.build_stages(point.config, method)
        for stage in stages if "train" in request.measures else ():
            check_training(point, stage)
        for stage in stages if "pmap" in request.measures else ():
            check_training(point, stage)
            share_of_device(point.resize(stage), len(point.devices))
        if "embed" in request.measures:
            check_embedding(point)
        checked.append(point)
    return checked


def about_launch(config: Any, manifest: dict[str, Any]) -> dict[str, Any]:
    """What all lines of a launch share."""
    packages = manifest["packages"]
    return {
        "config": f"{config.name}-{config.variant}",
        "method": config.method,
        "command": manifest["command"],
        "cpu_count": os.cpu_count(),
        "processes": manifest["process_count"],
        "python": manifest["python"],
        "versions": {name: packages[name] for name in ("jax", "jaxlib", "flax")},
        "git_revision": manifest["git_revision"],
        "started": manifest["started"],
    }


@contextlib.contextmanager
def without_compilation_cache() -> Iterator[None]:
    """What another run has compiled would make compile times those of reading it."""
    name = "jax_enable_compilation_cache"
    before = getattr(jax.config, name)
    jax.config.update(name, False)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _measure_point(point: Point, request: Request) -> Iterator[dict[str, Any]]:
    """The lines of a point; where its memory does not suffice, one that says so."""
    try:
        with memory_for("initialisation", point.batch, point.devices):
            for work in workloads.workloads(point, request.measures):
                with memory_for(work.what, work.items, work.devices):
                    line = _measure(point, work, request)
                yield line
    except OutOfMemory as error:
        failed = {"what": error.what, "batch": error.items, "error": "out of memory"}
        yield _about(point, error.devices) | failed


def _measure(point: Point, work: Work, request: Request) -> dict[str, Any]:
    """The line of a work."""
    count = len(work.devices)
    before = timing.allocator_peak(work.devices)
    with said(f"timing {work.what}"):
        timed = timing.time_calls(work.call, work.devices, windows=request.windows)
    after = timing.allocator_peak(work.devices)
    rose = before is not None and after > before
    peak = peaks.find_peak(work.devices[0].device_kind, request.peak_tflops)
    mfu = peaks.mfu(work.flops, seconds=timed.seconds, devices=count, peak=peak)
    return _about(point, work.devices) | {
        "what": work.what,
        "unit": work.unit,
        "batch": work.items,
        "seconds": timed.seconds,
        "seconds_fastest": timed.fastest,
        "seconds_slowest": timed.slowest,
        "windows": timed.windows,
        "calls_per_window": timed.calls,
        "per_second": work.items / timed.seconds,
        "per_second_per_device": work.items / timed.seconds / count,
        "flops": work.flops,
        "mfu": mfu,
        "peak_tflops": peak.tflops if peak else None,
        "peak_source": peak.source if peak else None,
        "peak_bytes": after if rose else timing.planned_bytes(work.compiled),
        "peak_bytes_from": "allocator" if rose else "compiler",
        "compile_seconds": work.compile_seconds,
    }


def _about(point: Point, devices: Sequence[jax.Device]) -> dict[str, Any]:
    """What makes a line of this point."""
    return {
        "sweep": workdirs.flatten(point.fields),
        "scaling": "weak" if point.per_device else "strong",
        "devices": len(devices),
        "device_kind": devices[0].device_kind,
        "platform": devices[0].platform,
        "dtype": point.config.model.get("dtype", "float32"),
    }
