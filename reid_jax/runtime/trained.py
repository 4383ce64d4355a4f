"""What a run was trained with, read back from the folder that it has left."""

from __future__ import annotations

from typing import Any

from etils import epath

from reid_jax.runtime import checkpoint, workdir


def config(path: str) -> dict[str, Any]:
    """The config of a checkpoint, nested as its file had it, in JSON's types.

    Args:
      path: a run's folder, or one step's.

    Raises:
      UserError: if there is no checkpoint.
    """
    step = checkpoint.locate(path)
    file = run_folder(step) / "config.json"
    nested = workdir.read_object(file) if file.exists() else {}
    known = workdir.flatten(nested)
    # The checkpoint has the last word: its run may have gone on with other fields.
    for field, value in checkpoint.read_meta(step)["config"].items():
        if field not in known or known[field] != value:
            _set(nested, field, value)
    return nested


def _set(nested: dict[str, Any], field: str, value: Any) -> None:
    *parents, name = field.split(".")
    for parent in parents:
        nested = nested.setdefault(parent, {})
    nested[name] = value


def run_folder(step: epath.Path) -> epath.Path:
    """The folder of the run that a step's folder belongs to; itself if it was moved."""
    kept = step.parent.parent
    return kept.parent if kept.name == "checkpoints" else step
