"""The mesh, and how batches and states lie on it.

One axis, `data`: a batch is split over it, and so is what a method keeps of batches,
and parameters with their optimizer state where a run says so; everything else is
replicated. Under `jax.jit` a reduction over the batch axis then sees the whole batch,
whatever the number of devices.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from reid_jax.errors import UserError

DATA_AXIS = "data"

LEAST_SPLIT = 2**14
"""Elements of the smallest parameter that is split. Each one that is takes a collective
of its own to gather, whose time hardly depends on so small a size. Biases and scales,
about a thousandth of a network's parameters, are all smaller; kernels are larger."""


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A one-axis mesh over `devices` (default: all devices of all processes).

    The axis is Auto: Linen modules do not annotate their intermediate shardings,
    which Explicit axes (the default of `jax.make_mesh`) would demand.
    """
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def batch_sharding(mesh: Mesh, *, axis: int = 0) -> NamedSharding:
    """An axis, the leading one unless told otherwise, split over the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, DATA_AXIS))


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
        return batch_sharding(mesh, axis=axis)

    return jax.tree.map(one, tree)


def largest_axis_sharding(tree: Any, mesh: Mesh) -> Any:
    """Shardings of a pytree of parameters (or shapes, or optimizer state).

    Of each array the largest axis that the devices divide is split over them, the first
    of equal ones. Arrays without such an axis, and those of fewer than `LEAST_SPLIT`
    elements, lie on every device.
    """

    def one(array: Any) -> NamedSharding:
        axes = [i for i, n in enumerate(array.shape) if n % mesh.size == 0]
        if array.size < LEAST_SPLIT or not axes:
            return replicated(mesh)
        axis = max(axes, key=lambda i: array.shape[i])
        return batch_sharding(mesh, axis=axis)

    return jax.tree.map(one, tree)


def constrain(tree: Any, shardings: Any) -> Any:
    """Says within a jitted function where arrays lie; nothing where it is None.

    Args:
      tree: of arrays.
      shardings: a prefix of it, or None.
    """
    if shardings is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, shardings)


def within(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """Lets layers see the mesh that they are traced for, if there is one.

    They find it as `jax.sharding.get_abstract_mesh()`; without, it is empty.
    """
    if mesh is None:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def gather(tree: Any, mesh: Mesh) -> Any:
    """The same arrays, each whole on every device; those that are stay as they are."""
    return jax.device_put(tree, replicated(mesh))


def check_divides(
    batch_size: int, mesh: Mesh, *, field: str, kind: str = "batch"
) -> None:
    """Raises UserError when the devices do not divide a batch.

    Args:
      batch_size: rows of the global batch.
      mesh: the mesh it is to be laid on.
      field: where the batch size is configured, for the message.
      kind: what is split, for the message.
    """
    if batch_size % mesh.size:
        raise UserError(
            f"a {kind} of {batch_size} images cannot be split over {mesh.size} "
            f"devices; change {field} so that {mesh.size} divides it, or use fewer "
            "devices"
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


def local(tree: Any) -> Any:
    """A pytree of replicated arrays as this process's first device of them has it."""
    return jax.tree.map(lambda x: x.addressable_data(0), tree)


def fetch(tree: Any) -> Any:
    """Host copies of a pytree of replicated arrays; all start before one is awaited."""
    return jax.device_get(local(tree))
