"""Where arrays of a mesh lie, and how they come to the host."""

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.runtime import sharding


def test_replicated_arrays_are_taken_from_one_device_without_a_copy():
    mesh = sharding.make_mesh()
    tree = {"a": jnp.arange(3, dtype=jnp.bfloat16), "b": [np.ones((2, 2), "f")]}
    placed = jax.device_put(tree, sharding.replicated(mesh))
    one, whole = sharding.local(placed)["a"], placed["a"]
    assert one.devices() == {mesh.devices[0]}
    pointers = {x.data.unsafe_buffer_pointer() for x in whole.addressable_shards}
    assert one.unsafe_buffer_pointer() in pointers
    fetched = sharding.fetch(placed)
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(fetched))
    jax.tree.map(np.testing.assert_array_equal, fetched, tree)
