"""The command line: flags to one verb.

python -m reid_jax.main --config=configs/aaformer.py:demo
python -m reid_jax.main --config=configs/aaformer.py:demo --mode=evaluate
python -m reid_jax.main --config=configs/aaformer.py:demo --mode=export
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from reid_jax import evaluate, export, train
from reid_jax.errors import UserError

CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "File of the configuration: configs/aaformer.py, configs/aaformer.py:demo, ...",
    lock_config=True,
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; default runs/<config>-<variant>."
)
MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "evaluate", "export"], "What to do."
)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "For evaluate and export: a run's folder (its best checkpoint) or one step's "
    "folder; default the workdir.",
)
COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "host:port of process 0 for a run of several processes, or 'auto' where the "
    "cluster (Cloud TPU, Slurm, Kubernetes) tells.",
)
PROCESS_COUNT = flags.DEFINE_integer("process_count", None, "Processes of the run.")
PROCESS_INDEX = flags.DEFINE_integer("process_index", None, "This process, from 0.")


def main(argv: Sequence[str]) -> None:
    """Runs the verb of `--mode`."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; flags start with --")
    if CONFIG.value is None:
        raise UserError(
            "no --config; for a first run: "
            "python -m reid_jax.main --config=configs/aaformer.py:demo"
        )
    _initialize_processes()
    config = _load_config()
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
                config, checkpoint, directory=pathlib.Path(workdir) / "export"
            )
            print(f"exported to {folder}")
    if jax.process_index() == 0:
        for entry in entries:
            print(evaluate.summary(entry))
        if entries:
            print(f"results in {workdir}/results.json, pictures in {workdir}/pictures")


def _load_config() -> ConfigDict:
    """The config; a file that could not be read shows only when it is first used."""
    try:
        _ = CONFIG.value.name
    except OSError as error:
        raise UserError(f"--config: {error}") from error
    return CONFIG.value


def _initialize_processes() -> None:
    """Joins the processes of one run, before anything touches a device."""
    if COORDINATOR.value is None:
        return
    if COORDINATOR.value == "auto":
        jax.distributed.initialize()
        return
    if PROCESS_COUNT.value is None or PROCESS_INDEX.value is None:
        raise UserError("--coordinator needs --process_count and --process_index")
    jax.distributed.initialize(
        coordinator_address=COORDINATOR.value,
        num_processes=PROCESS_COUNT.value,
        process_id=PROCESS_INDEX.value,
    )


def _parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, with config mistakes as one message."""
    try:
        return flags.FLAGS(argv)
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        text = error.args[0] if error.args else error
        raise UserError(f"--config: {text}") from error
    except flags.Error as error:
        raise UserError(str(error)) from error


def _run() -> None:
    """Console entry: user errors become one message and exit code 2."""
    logging.set_verbosity(logging.WARNING)
    try:
        app.run(main, flags_parser=_parse_flags)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    _run()
