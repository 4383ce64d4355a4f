"""The mesh, and how batches and states lie on it.

One axis, `data`: a batch is split over it, and so is what a method keeps of batches;
everything else is replicated. Under `jax.jit` a reduction over the batch axis then sees
the whole batch, whatever the number of devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from reid_jax.errors import UserError

DATA_AXIS = "data"


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A one-axis mesh over `devices` (default: all devices of all processes).

    The axis is Auto: Linen modules do not annotate their intermediate shardings,
    which Explicit axes (the default of `jax.make_mesh`) would demand.
    """
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def row_sharding(tree: Any, mesh: Mesh, *, axis: int) -> Any:
    """Shardings of a pytree of arrays (or shapes) with an axis of batch rows.

    That axis is split over the devices. Arrays that lack it, and those in which the
    devices do not divide it, lie on every device.
    """

    def one(array: Any) -> NamedSharding:
        if array.ndim <= axis or array.shape[axis] % mesh.size:
            return replicated(mesh)
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, DATA_AXIS))

    return jax.tree.map(one, tree)


def check_divides(batch_size: int, mesh: Mesh, *, field: str) -> None:
    """Raises UserError when the devices do not divide a batch.

    Args:
      batch_size: rows of the global batch.
      mesh: the mesh it is to be laid on.
      field: where the batch size is configured, for the message.
    """
    if batch_size % mesh.size:
        raise UserError(
            f"a batch of {batch_size} images cannot be split over {mesh.size} devices; "
            f"change {field} so that {mesh.size} divides it, or use fewer devices"
        )


def put_batch(
    batch: dict[str, np.ndarray | jax.Array], mesh: Mesh
) -> dict[str, jax.Array]:
    """Global arrays from this process's rows, split over the mesh.

    Arrays that are global already stay as they are.
    """
    sharding = batch_sharding(mesh)
    return {
        name: rows
        if isinstance(rows, jax.Array)
        else jax.make_array_from_process_local_data(sharding, rows)
        for name, rows in batch.items()
    }


def fetch(tree: Any) -> Any:
    """Host copies of a pytree of replicated arrays."""
    return jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), tree)
