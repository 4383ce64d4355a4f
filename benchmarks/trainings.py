"""Runs of `reid_jax.main`, each in a process and a folder of its own, none twice."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from typing import Any

from etils import epath

from reid_jax.errors import UserError
from reid_jax.runtime import workdir

RECORD = "run.json"
"""What is left in the folder of a run that has ended: its flags, step and seconds."""


def finished(
    config: str, folder: epath.Path, flags: Sequence[str], *, free: Sequence[str] = ()
) -> dict[str, Any]:
    """The `RECORD` of a run, which is trained now, or resumed, unless it has ended.

    Args:
      config: a config's file or name, and its arguments.
      folder: of the run.
      flags: what else makes the run what it is.
      free: flags that may be others when it is asked for again.

    Raises:
      UserError: if the run fails or is stopped, or another one lives in the folder.
    """
    what, found = [config, *flags], record(folder)
    if not found:
        start = time.perf_counter()
        launch([f"--config={config}", f"--workdir={folder}", *flags, *free])
        entries = workdir.read_objects(folder / "results.json")
        if not entries:
            raise UserError(f"{folder} was stopped; the same command goes on there")
        seconds = round(time.perf_counter() - start)
        found = {"run": what, "step": entries[0]["step"], "seconds": seconds}
        workdir.write_json(folder / RECORD, found)
    if found["run"] != what:
        raise UserError(
            f"{folder} is a run of {' '.join(found['run'])}, not of {' '.join(what)}: "
            "choose another --workdir"
        )
    return found


def record(folder: epath.Path) -> dict[str, Any]:
    """The `RECORD` of a run; empty if it has not ended."""
    path = folder / RECORD
    return workdir.read_object(path) if path.exists() else {}


def entries(
    folder: epath.Path, *, changed: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Of `results.json`, what the run's last state scored, by its config or another.

    Args:
      folder: of a run that has ended.
      changed: names of the fields that were changed for the evaluation.
    """
    last = record(folder)["step"]
    return [
        entry
        for entry in workdir.read_objects(folder / "results.json")
        if entry["step"] == last
        and not {"rerank", "run"} & entry.keys()
        and entry.get("changed", {}).keys() == set(changed)
    ]


def launch(flags: Sequence[str]) -> None:
    """Runs `reid_jax.main`. Ctrl-C reaches it as well, which saves and stops.

    Raises:
      UserError: if it fails or was stopped that way.
    """
    command = [sys.executable, "-m", "reid_jax.main", *flags]
    earlier = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        code = subprocess.run(command, check=False).returncode
    finally:
        signal.signal(signal.SIGINT, earlier)
    if code == 130:
        raise UserError("stopped; the same command goes on from here")
    if code:
        raise UserError(f"this run failed, see above: {' '.join(command[1:])}")
