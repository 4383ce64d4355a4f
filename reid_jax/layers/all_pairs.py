"""All ordered pairs of a batch's images, in blocks: memory is that of one block."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, PartitionSpec

from reid_jax.layers import gradients

Rows = Any
"""A pytree of arrays with a leading axis of images."""

Function = Callable[[Any, Rows, Rows], tuple[Any, Any]]


def all_pairs(function: Function, weights: Any, rows: Rows, *, block: int) -> Any:
    """Applies a symmetric function to every ordered pair of rows.

    First images are scanned, `block` of them at a time, and each is compared with all
    at once, so that a product of its places with theirs is one of two matrices. What is
    held is `block` x B pairs of whatever the function needs.

    The gradient computes each block again. An image's is taken from the pairs in which
    it is the first: by symmetry these say all of it. So each is written once, and no
    sum over pairs passes through memory or between devices, for a third more products
    than with each pair once and the gradients of both its images.

    Within `jax.sharding.use_abstract_mesh`, as a training step is, each device computes
    the pairs whose first image it has: all images are gathered once.

    Args:
      function: of weights and two images' rows (without their leading axis): what u
        becomes given v, and what v becomes given u, two pytrees of one structure.
        Exchanging the images must exchange the two. It must not couple pairs: no batch
        statistics. What is differentiated must be among its arguments. Hashable.
      weights: of the function.
      rows: of all images, B of them.
      block: first images at once.

    Returns:
      A pytree with leaves [B, B, ...]: at [u, v], of u given v. Differentiated in
      reverse only.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size < 2 or len(jax.tree.leaves(rows)[0]) % mesh.size:
        mesh = None
    # Both are read where the function is traced: its derivative is traced later, where
    # they are no longer set.
    return _all_pairs(function, block, mesh, gradients.dtype_of_sums(), weights, rows)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _all_pairs(
    function: Function,
    block: int,
    mesh: AbstractMesh | None,
    summed_in: str,
    weights: Any,
    rows: Rows,
) -> Any:
    return _forward(function, block, mesh, summed_in, weights, rows)[0]


def _forward(
    function: Function,
    block: int,
    mesh: AbstractMesh | None,
    summed_in: str,
    weights: Any,
    rows: Rows,
) -> tuple[Any, tuple[Any, Rows, Rows]]:
    del summed_in
    everyone = _gathered(mesh, rows)

    def found(weights: Any, everyone: Rows, mine: Rows) -> Any:
        def of_one(image: Rows) -> Any:
            return _with_all(function, weights, image, everyone)[0]

        return jax.lax.map(of_one, mine, batch_size=block)

    saved = weights, rows, everyone
    return _split(found, mesh)(weights, everyone, rows), saved


def _backward(
    function: Function,
    block: int,
    mesh: AbstractMesh | None,
    summed_in: str,
    saved: tuple[Any, Rows, Rows],
    gradient: Any,
) -> tuple[Any, Rows]:
    """Of the weights, and of each image as the first of its pairs.

    Weights meet every pair twice, as (u, v) and as (v, u), each time with the gradients
    of both results.
    """
    weights, rows, everyone = saved

    def found(weights: Any, everyone: Rows, mine: Any) -> tuple[Any, Rows]:
        def of_one(inputs: tuple[Rows, tuple[Any, Any]]) -> tuple[Any, Rows]:
            image, pulled = inputs
            given = functools.partial(_with_all, function, everyone=everyone)
            with gradients.summed_in(summed_in):
                return jax.vjp(given, weights, image)[1](pulled)

        return jax.lax.map(of_one, mine, batch_size=block)

    turned = jax.tree.map(lambda x: x.swapaxes(0, 1), gradient)
    split = _split(found, mesh)
    of_weights, of_rows = split(weights, everyone, (rows, (gradient, turned)))
    return jax.tree.map(lambda x: x.sum(0) / 2, of_weights), of_rows


_all_pairs.defvjp(_forward, _backward)


def _with_all(
    function: Function, weights: Any, image: Rows, everyone: Rows
) -> tuple[Any, Any]:
    """Both results of an image's pairs with all images, [B, ...]."""
    return jax.vmap(functools.partial(function, weights, image))(everyone)


def _gathered(mesh: AbstractMesh | None, rows: Rows) -> Rows:
    """All rows on every device."""
    if mesh is None:
        return rows
    return jax.lax.with_sharding_constraint(rows, PartitionSpec())


def _split(function: Callable[..., Any], mesh: AbstractMesh | None) -> Any:
    """A function of weights, everyone, and rows that the devices share out."""
    if mesh is None:
        return function
    (axis,) = mesh.axis_names

    def of_a_device(weights: Any, everyone: Rows, mine: Any) -> Any:
        # Each device's own, or their gradients would be exchanged for each block.
        vary = functools.partial(jax.lax.pcast, axis_name=axis, to="varying")
        return function(jax.tree.map(vary, weights), everyone, mine)

    return jax.shard_map(
        of_a_device,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec(axis)),
        out_specs=PartitionSpec(axis),
    )
