"""Finding the network that a place stands for."""

from __future__ import annotations

import os
import pathlib
import types
from collections.abc import Sequence

import jax

from reid_jax import errors
from reid_jax.errors import UserError
from reid_jax.extractor import exported
from reid_jax.extractor.extractor import Extractor
from reid_jax.runtime import sharding

Place = str | os.PathLike[str]
SHIPPED = "shipped/"
"""Beginning of the names of what the library brings; `weights.included`, which is slow,
has it, too."""


def load(place: Place, *, devices: Sequence[jax.Device] | None = None) -> Extractor:
    """See `reid_jax.load`."""
    mesh = sharding.make_mesh(devices or jax.local_devices())
    if os.fspath(place).startswith(SHIPPED):
        return Extractor(_trained().read_shipped(os.fspath(place), mesh), mesh)
    folder = _folder(os.fspath(place))
    if exported.holds(folder):
        return Extractor(exported.read(folder), mesh)
    if not os.fspath(place) or not folder.is_dir():
        raise UserError(_nowhere(os.fspath(place)))
    return Extractor(_trained().read(os.fspath(place), mesh), mesh)


def _trained() -> types.ModuleType:
    """Flax, Orbax and the data's libraries take seconds, and an export needs none."""
    errors.check_own("configs")
    from reid_jax.extractor import trained

    return trained


def _folder(place: str) -> pathlib.Path:
    """On a disk, or in a bucket, whose paths have the same methods."""
    if "://" not in place:
        try:
            return pathlib.Path(place).expanduser()
        except RuntimeError as error:
            raise UserError(f"{place}: there is no such user's home") from error
    from reid_jax import storage

    storage.check_reachable(place)
    return storage.absolute(place)


def _nowhere(place: str) -> str:
    """What is said of a place that is not there."""
    runs = sorted(
        str(path.parent) for path in pathlib.Path("runs").glob("*/config.json")
    )
    there = f"; here are {', '.join(runs[:6])}" if runs else ""
    from reid_jax.weights import included  # slow, too

    return (
        f"there is no network in {place!r}: name a run's folder, one of its "
        f"checkpoints, or an export{there}. The library brings "
        f"{', '.join(included.names())}, to try things with: they have seen rendered "
        "people only"
    )
