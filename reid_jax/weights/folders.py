"""Folders of this library that hold weights: converted ones, exports and runs."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from reid_jax import storage
from reid_jax.errors import UserError, first_line
from reid_jax.runtime import checkpoint, digests
from reid_jax.runtime import workdir as workdirs
from reid_jax.weights import damage, grids

GRID = "position_grid"
"""Under which converted weights keep their grid."""

_CUSTOM = "_CHECKPOINT_METADATA"
"""Orbax's file for it. A run's is not beside its arrays, and Orbax warns of that."""

_WANTED = ("params", "batch_stats", "collections", "average")


def read(path: storage.PathLike) -> tuple[dict[str, Any], grids.Grid | None]:
    """Variables, and the grid of their position embedding.

    Args:
      path: a folder that `write` made, an export, its `params`, or a run.

    Raises:
      UserError: if there are none, or they are damaged.
    """
    folder = _find(epath.Path(path))
    if changed := digests.differences(folder):
        raise UserError(f"{folder} is damaged ({changed[0]}); convert or export again")
    handler = ocp.PyTreeCheckpointHandler()
    with _explained(folder):
        stored = handler.metadata(folder).tree
        wanted = {name: stored[name] for name in _WANTED if name in stored}
        _check_size(folder, jax.tree.leaves(wanted))
        with ocp.Checkpointer(handler) as reader:
            tree = reader.restore(
                folder,
                args=ocp.args.PyTreeRestore(
                    item=wanted,
                    restore_args=jax.tree.map(
                        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted
                    ),
                    partial_restore=True,
                ),
            )
        averages = tree.pop("average", {})  # of a run: what it is evaluated by
        variables = {"params": tree.get("params", {}), **tree.get("collections", tree)}
        return variables | averages, _grid(folder)


def _find(path: epath.Path) -> epath.Path:
    """The folder with the arrays."""
    for folder in (path, path / "params"):
        if (folder / "_METADATA").is_file():
            return storage.absolute(folder)
    return checkpoint.find(os.fspath(path)) / "state"


def _check_size(folder: epath.Path, arrays: list[Any]) -> None:
    """Raises ValueError if the folder cannot hold arrays of these shapes."""
    total = sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in arrays)
    size = sum(file.stat().length for file in storage.files_below(folder))
    if total > damage.capacity(size):
        raise ValueError(f"{size:,} bytes that claim to hold {total:,}")


def _grid(folder: epath.Path) -> grids.Grid | None:
    """What the conversion wrote, or what the run's config says."""
    if (folder / _CUSTOM).exists():
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            stated = reader.metadata(folder).custom_metadata.get(GRID)
        if stated is not None:
            return grids.parse(stated, f"{folder}: {GRID}")
    if (folder.parent / "meta").is_dir():
        return grids.of_run(checkpoint.read_meta(folder.parent).get("config", {}))
    if (about := folder.parent / "export.json").is_file():
        return grids.of_run(workdirs.read_object(about).get("config", {}))
    return None


@contextlib.contextmanager
def _explained(folder: epath.Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # Orbax and TensorStore raise many kinds.
        raise UserError(
            f"{folder} is damaged, or no checkpoint of this library "
            f"({type(error).__name__}: {damage.shown(first_line(error))})"
        ) from error


def write(
    folder: storage.PathLike, tree: dict[str, Any], grid: grids.Grid | None = None
) -> None:
    """Writes variables and the grid of their position embedding, with digests."""
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as writer:
        writer.save(
            storage.absolute(folder),
            tree,
            custom_metadata={GRID: list(grid)} if grid else None,
        )
    digests.write(folder)
