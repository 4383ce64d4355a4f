"""The command line: flags to one verb.

python -m reid_jax.main --config=configs/aaformer.py:demo
python -m reid_jax.main --config=configs/aaformer.py:demo --mode=evaluate
python -m reid_jax.main --config=configs/aaformer.py:demo --mode=export
python -m reid_jax.main --config=configs/aaformer.py:demo --mode=benchmark
"""

from __future__ import annotations

import difflib
import pathlib
import runpy
import sys
from collections.abc import Sequence

import jax
from absl import app, flags, logging
from etils import epath
from ml_collections import ConfigDict, config_flags

from reid_jax.benchmark import benchmark
from reid_jax.errors import UserError
from reid_jax.evaluation import evaluate
from reid_jax.export import export
from reid_jax.runtime import compilation, processes
from reid_jax.runtime import workdir as workdirs
from reid_jax.training import train

CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "File of the configuration: configs/aaformer.py, configs/aaformer.py:demo, ...",
    lock_config=True,
)
WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run, also gs://BUCKET/FOLDER; default runs/<config>-<variant>.",
)
MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "evaluate", "export", "benchmark"], "What to do."
)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "For evaluate and export: a run's folder (its best checkpoint) or one step's "
    "folder; default the workdir.",
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

# For benchmark.
MEASURE = flags.DEFINE_list(
    "measure",
    list(benchmark.MEASURES),
    "What to measure; see reid_jax/benchmark/benchmark.py.",
)
DEVICES = flags.DEFINE_list("devices", [], "Numbers of devices, such as 1,2,4.")
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
PEAK_TFLOPS = flags.DEFINE_float(
    "peak_tflops", None, "Dense bf16 peak of a device, for MFU; known for many."
)
WINDOWS = flags.DEFINE_integer("windows", 10, "Windows that a time is the median of.")
BENCHMARK_FLAGS = (
    *(MEASURE, DEVICES, BATCH, BATCH_PER_DEVICE, SWEEP, PEAK_TFLOPS, WINDOWS),
)


def main(argv: Sequence[str]) -> None:
    """Runs the verb of `--mode`."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; flags start with --")
    if CONFIG.value is None:
        raise UserError(
            "no --config; for a first run: "
            "python -m reid_jax.main --config=configs/aaformer.py:demo"
        )
    processes.join(
        COORDINATOR.value,
        count=PROCESS_COUNT.value,
        index=PROCESS_INDEX.value,
        timeout=PROCESS_TIMEOUT.value,
    )
    _check_flags()
    if COMPILATION_CACHE.value:
        compilation.use_cache(COMPILATION_CACHE.value)
    config = CONFIG.value
    workdir = WORKDIR.value or f"runs/{config.name}-{config.variant}"
    checkpoint = CHECKPOINT.value or workdir
    match MODE.value:
        case "train":
            entries = train.train_and_evaluate(config, workdir)
        case "evaluate":
            entries = evaluate.evaluate_checkpoint(config, checkpoint, workdir=workdir)
        case "export":
            entries = []
            folder = export.export_checkpoint(
                config, checkpoint, directory=epath.Path(workdir) / "export"
            )
            print(f"exported to {folder}")
        case "benchmark":
            entries, folder = [], f"{workdir}/benchmark"
            benchmark.benchmark(config, folder, _benchmark_request())
            if jax.process_index() == 0:
                print(f"benchmark.jsonl, table.md and benchmark.png in {folder}")
    if jax.process_index() == 0:
        for entry in entries:
            print(evaluate.summary(entry))
        if entries:
            print(f"results in {workdir}/results.json, pictures in {workdir}/pictures")


def _check_flags() -> None:
    """Raises UserError for a flag that another mode would need."""
    if CHECKPOINT.value and MODE.value in ("train", "benchmark"):
        raise UserError(
            "--checkpoint is for evaluate and export; to start from a run's backbone, "
            f"--config.pretrained={CHECKPOINT.value}"
        )
    given = [flag.name for flag in BENCHMARK_FLAGS if flag.present]
    if given and MODE.value != "benchmark":
        raise UserError(f"--{given[0]} is for --mode=benchmark")


def _benchmark_request() -> benchmark.Request:
    if BATCH.value and BATCH_PER_DEVICE.value:
        raise UserError("give either --batch or --batch_per_device")
    return benchmark.Request(
        measures=MEASURE.value,
        devices=_numbers(DEVICES),
        batches=_numbers(BATCH) + _numbers(BATCH_PER_DEVICE),
        per_device=bool(BATCH_PER_DEVICE.value),
        sweeps=SWEEP.value,
        peak_tflops=PEAK_TFLOPS.value,
        windows=WINDOWS.value,
    )


def _numbers(flag: flags.FlagHolder) -> list[int]:
    try:
        return [int(text) for text in flag.value]
    except ValueError as error:
        raise UserError(f"--{flag.name}: {error}; write numbers as 1,2,4") from error


def _load_config() -> None:
    """Raises UserError for a file that cannot be read: it shows when it is used."""
    try:
        if CONFIG.value is not None:
            _ = CONFIG.value.name
    except OSError as error:
        path = pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"]))
        folder = path.parent if path.parent.is_dir() else pathlib.Path("configs")
        there = sorted(p.stem for p in folder.glob("[a-z]*.py") if p.stem != "common")
        raise UserError(
            f"--config={path} cannot be read; in {folder} there are: "
            f"{', '.join(there) or 'no configs'}"
        ) from error
    return CONFIG.value


def _parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, with the config's mistakes as messages of their own."""
    if "--help" in argv:
        print(f"{__doc__}\nFields of a config: configs/common.py.\n")
        print(flags.FLAGS.main_module_help())
        sys.exit(0)
    try:
        rest = flags.FLAGS(argv)
        _load_config()
        return rest
    except (AttributeError, KeyError) as error:
        for arg in argv:
            if arg.startswith("--config."):
                _check_field(arg, _plain_config(argv))
        raise UserError(f"--config: {error}") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"--config: {error}") from error
    except flags.Error as error:
        raise UserError(str(error)) from error


def _plain_config(argv: list[str]) -> ConfigDict:
    """The config of the command line without its overrides."""
    (value,) = (a.removeprefix("--config=") for a in argv if a.startswith("--config="))
    path, _, argument = value.partition(":")
    return runpy.run_path(path)["get_config"](argument)


def _check_field(override: str, config: ConfigDict) -> None:
    """Raises UserError if `--config.a.b=value` names no field; says which is near."""
    name = override.removeprefix("--config.").partition("=")[0]
    known = workdirs.flatten(config.to_dict())
    stem = name.partition("[")[0]
    if stem in known or any(field.startswith(stem + ".") for field in known):
        return
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UserError(f"the config has no field {name}{hint}")


def _run() -> None:
    """Console entry: user errors become one message and exit code 2."""
    logging.set_verbosity(logging.WARNING)
    try:
        app.run(main, flags_parser=_parse_flags)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the last checkpoint stands", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    _run()
