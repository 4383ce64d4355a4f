"""The verbs of a config: train, evaluate, export, benchmark, plan.

python -m reid_jax.main --config=configs/aaformer.py:demo
python -m reid_jax.main --workdir=runs/aaformer-demo --mode=evaluate
python -m reid_jax.main --workdir=runs/aaformer-demo --mode=export
python -m reid_jax.main --config=configs/aaformer.py:demo --mode=benchmark
python -m reid_jax.main --config=configs/aaformer.py --mode=plan --topology=v5e:2x2

`reid-jax` is the same in any folder, and finds the library's configs by name:

reid-jax --config=aaformer:demo
reid-jax evaluate --workdir=runs/aaformer-demo
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Sequence
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from reid_jax import command_line, errors, storage
from reid_jax.errors import UserError
from reid_jax.runtime import compilation, interrupts, processes

CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "File of the configuration, or a name of the library's: configs/aaformer.py, "
    "aaformer, aaformer:demo, ... "
    "Evaluation and export take that of the run in --checkpoint or --workdir.",
    lock_config=True,
)
WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run, also gs://BUCKET/FOLDER; default runs/<config>-<variant>.",
)
MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "evaluate", "export", "benchmark", "plan"],
    "What to do.",
)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "For evaluate and export: a run's folder (its best checkpoint) or one step's "
    "folder; default the workdir.",
)
EXTEND = flags.DEFINE_bool(
    "extend",
    False,
    "For train: the run in the workdir goes on from its last checkpoint with changed "
    "epochs and schedules (config.stages). The learning rate of a step is that of the "
    "new schedule, as if it had been the run's from its start.",
)
FORMAT = flags.DEFINE_enum(
    "format",
    None,
    ["jax", "onnx"],
    "For export: jax (the default; in export/), or onnx for onnxruntime and the like, "
    "in export-onnx/.",
)
COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache",
    None,
    "Folder, also gs://BUCKET/FOLDER, in which compiled programs are kept for later "
    "processes; all processes of a run have to see it.",
)
COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "host:port of process 0 for a run of several processes, or 'auto' where the "
    "cluster (Cloud TPU, Slurm, Kubernetes) tells.",
)
PROCESS_COUNT = flags.DEFINE_integer("process_count", None, "Processes of the run.")
PROCESS_INDEX = flags.DEFINE_integer("process_index", None, "This process, from 0.")
PROCESS_TIMEOUT = flags.DEFINE_integer(
    "process_timeout",
    300,
    "Seconds to wait for the other processes at the start; one that is silent for a "
    "third of it later is taken for dead.",
)

# For benchmark and plan.
MEASURE = flags.DEFINE_list(
    "measure",
    None,
    "What to measure: train, embed, pairs and ranking (the default; for plan "
    "train,embed), or comparisons, such as pmap.",
)
BATCH = flags.DEFINE_list(
    "batch", [], "Images per step over all devices, such as 64,128 (strong scaling)."
)
BATCH_PER_DEVICE = flags.DEFINE_list(
    "batch_per_device", [], "Images per step of each device (weak scaling)."
)
SWEEP = flags.DEFINE_multi_string(
    "sweep",
    [],
    "Values of a field of the config, such as model.dtype=float32,bfloat16; may be "
    "given several times.",
)
SWEEP_FLAGS = (MEASURE, BATCH, BATCH_PER_DEVICE, SWEEP)

# For benchmark.
DEVICES = flags.DEFINE_list("devices", [], "Numbers of devices, such as 1,2,4.")
PEAK_TFLOPS = flags.DEFINE_float(
    "peak_tflops", None, "Dense bf16 peak of a device, for MFU; known for many."
)
WINDOWS = flags.DEFINE_integer("windows", 10, "Windows that a time is the median of.")
BENCHMARK_FLAGS = (DEVICES, PEAK_TFLOPS, WINDOWS)

# For plan.
TOPOLOGY = flags.DEFINE_list(
    "topology",
    [],
    "Chips to plan for, such as v5e:2x2,v5p:2x2x1,h200:8; none of them is needed.",
)


def main(argv: Sequence[str]) -> None:
    """Runs the verb of `--mode`."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; flags start with --")
    if CONFIG.value is None:
        raise UserError(
            "no --config; for a first run: "
            "python -m reid_jax --config=aaformer:demo; to evaluate or export a run, "
            "name its --workdir"
        )
    if MODE.value == "plan":  # compilers alone answer: a device here is left in peace
        jax.config.update("jax_platforms", "cpu")
    processes.join(
        COORDINATOR.value,
        count=PROCESS_COUNT.value,
        index=PROCESS_INDEX.value,
        timeout=PROCESS_TIMEOUT.value,
    )
    _check_flags()
    processes.check_devices()
    if COMPILATION_CACHE.value:
        compilation.use_cache(COMPILATION_CACHE.value)
    config = CONFIG.value
    workdir = WORKDIR.value or f"runs/{config.name}-{config.variant}"
    storage.absolute(workdir)  # says at once what is no path
    verb = {
        "train": _train,
        "evaluate": _evaluate,
        "export": _export,
        "benchmark": _benchmark,
        "plan": _plan,
    }[MODE.value]
    with storage.written(workdir), interrupts.acknowledged():
        verb(config, workdir)


# Each verb imports what it needs: `--help` and a wrong flag are answered at once.


def _train(config: Any, workdir: str) -> None:
    from reid_jax.training import closing, train

    entries = train.train_and_evaluate(config, workdir, extend=EXTEND.value)
    if entries and jax.process_index() == 0:
        pictured = config.evaluation.pictures
        print(closing.summary(entries, workdir, pictured=pictured))


def _evaluate(config: Any, workdir: str) -> None:
    from reid_jax.evaluation import evaluate

    path = CHECKPOINT.value or workdir
    entries = evaluate.evaluate_checkpoint(config, path, workdir=workdir)
    _report(entries, workdir, pictured=config.evaluation.pictures)


def _report(entries: Sequence[dict[str, Any]], workdir: str, *, pictured: bool) -> None:
    """What is printed of a checkpoint that has been evaluated."""
    from reid_jax.evaluation import results

    if jax.process_index() != 0 or not entries:
        return
    for entry in entries:
        print(results.summary(entry))
    pictures = f", pictures in {workdir}/pictures" if pictured else ""
    print(f"results in {workdir}/results.json{pictures}")
    page = f"python -m reid_jax report {shlex.quote(workdir)}"
    print(f"a page with all of it: {page}")


def _export(config: Any, workdir: str) -> None:
    from reid_jax.export import export

    form = FORMAT.value or "jax"
    name = "export" if form == "jax" else f"export-{form}"
    folder = export.export_checkpoint(
        config,
        CHECKPOINT.value or workdir,
        directory=storage.absolute(workdir) / name,
        form=form,
    )
    print(f"exported to {folder}")


def _benchmark(config: Any, workdir: str) -> None:
    from reid_jax.benchmark import benchmark

    request = benchmark.Request(
        measures=MEASURE.value or benchmark.MEASURES,
        devices=_numbers(DEVICES),
        batches=_numbers(BATCH) + _numbers(BATCH_PER_DEVICE),
        per_device=bool(BATCH_PER_DEVICE.value),
        sweeps=SWEEP.value,
        peak_tflops=PEAK_TFLOPS.value,
        windows=WINDOWS.value,
    )
    folder = f"{workdir}/benchmark"
    benchmark.benchmark(config, folder, request)
    if jax.process_index() == 0:
        print(f"benchmark.jsonl, table.md and benchmark.png in {folder}")


def _plan(config: Any, workdir: str) -> None:
    from reid_jax.plan import plan

    request = plan.Request(
        topologies=TOPOLOGY.value,
        measures=MEASURE.value or plan.Request.measures,
        batches=_numbers(BATCH) + _numbers(BATCH_PER_DEVICE),
        per_device=bool(BATCH_PER_DEVICE.value),
        sweeps=SWEEP.value,
    )
    folder = f"{workdir}/plan"
    plan.plan(config, folder, request)
    print(f"plan.jsonl, table.md and plan.png in {folder}")


def _check_flags() -> None:
    """Raises UserError for a flag that another mode would need, or one too many."""
    if CHECKPOINT.value and MODE.value in ("train", "benchmark", "plan"):
        raise UserError(
            "--checkpoint is for evaluate and export; to start from a run's backbone, "
            f"--config.pretrained={CHECKPOINT.value}"
        )
    if FORMAT.value and MODE.value != "export":
        raise UserError("--format is for --mode=export")
    if EXTEND.value and MODE.value != "train":
        raise UserError("--extend is for --mode=train")
    for verbs, of_them in (
        (("benchmark", "plan"), SWEEP_FLAGS),
        (("benchmark",), BENCHMARK_FLAGS),
        (("plan",), (TOPOLOGY,)),
    ):
        given = [flag.name for flag in of_them if flag.present]
        if given and MODE.value not in verbs:
            modes = " and ".join(f"--mode={verb}" for verb in verbs)
            raise UserError(f"--{given[0]} is for {modes}")
    if MODE.value == "plan" and jax.process_count() > 1:
        raise UserError("--mode=plan runs in one process")
    if BATCH.value and BATCH_PER_DEVICE.value:
        raise UserError("give either --batch or --batch_per_device")


def _numbers(flag: flags.FlagHolder) -> list[int]:
    try:
        return [int(text) for text in flag.value]
    except ValueError as error:
        raise UserError(f"--{flag.name}: {error}; write numbers as 1,2,4") from error


def run(argv: Sequence[str] | None = None) -> None:
    """Console entry: user errors become one message and exit code 2.

    Args:
      argv: the program's name and the flags; default those of the process.
    """
    logging.set_verbosity(logging.WARNING)
    compilation.silence_notes()
    parser = functools.partial(command_line.parse, config=CONFIG, about=__doc__)
    with errors.answered(interrupted="interrupted; the last checkpoint stands"):
        app.run(main, argv=argv and list(argv), flags_parser=parser)


if __name__ == "__main__":
    run()
