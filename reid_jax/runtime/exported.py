"""An exported network, read as the checkpoint that it was written from."""

from __future__ import annotations

from typing import Any

from etils import epath

from reid_jax.runtime import digests, workdir

PARAMETERS = "params"
"""Folder of the network's variables, as `--mode=export` writes it."""


def holds(folder: epath.Path) -> bool:
    """Whether a folder is what `--mode=export` leaves."""
    return (folder / "export.json").exists() and (folder / PARAMETERS).is_dir()


def sealed(folder: epath.Path) -> epath.Path:
    """The folder whose digests say whether an export is whole.

    Older versions kept those of the parameters alone.
    """
    whole = (folder / digests.NAME).exists()
    return folder if whole else folder / PARAMETERS


def meta(folder: epath.Path) -> dict[str, Any]:
    """What `runtime.checkpoint.Meta` says, from the words of `export.json`.

    Raises:
      UserError: if that file is damaged.
    """
    about = workdir.read_object(folder / "export.json")
    names = {
        "stage": "stage",
        "step": "step",
        "global_step": "step",
        "method": "method",
        "num_classes": "training_identities",
        "config": "config",
    }
    found = {name: about[there] for name, there in names.items() if there in about}
    best = {"entries": about.get("results", [])}
    return {"stage_index": 0, "process_count": 1, "best": best} | found
