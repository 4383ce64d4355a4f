"""An exported network, read as the checkpoint that it was written from."""

from __future__ import annotations

from typing import Any

from etils import epath

from reid_jax.runtime import workdir

PARAMETERS = "params"
"""Folder of the network's variables, as `--mode=export` writes it."""


def holds(folder: epath.Path) -> bool:
    """Whether a folder is what `--mode=export` leaves."""
    return (folder / "export.json").exists() and (folder / PARAMETERS).is_dir()


def meta(folder: epath.Path) -> dict[str, Any]:
    """What `runtime.checkpoint.Meta` says, from the words of `export.json`.

    Raises:
      UserError: if that file is damaged.
    """
    about = workdir.read_object(folder / "export.json")
    return {
        "stage": about["stage"],
        "stage_index": 0,
        "step": about["step"],
        "global_step": about["step"],
        "method": about["method"],
        "num_classes": about["training_identities"],
        "process_count": 1,
        "best": {"entries": about["results"]},
        "config": about["config"],
    }
