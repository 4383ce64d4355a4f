import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.retrieval.packing import DTYPES, packed, unpacked


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("computed", ["float32", "bfloat16"])
def test_what_is_packed_comes_back_as_the_network_needs_it(stored, computed):
    values = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    kept = packed({"map": jnp.asarray(values), "own": jnp.asarray(values)}, stored)
    assert {x.dtype for x in kept.values()} == {jnp.dtype(stored)}
    found = unpacked(kept, computed, wide=("own",))
    assert found["map"].dtype == jnp.dtype(computed)
    assert found["own"].dtype == jnp.float32
    expected = values.astype(jnp.dtype(stored))
    np.testing.assert_array_equal(found["own"], expected.astype(np.float32))
    np.testing.assert_array_equal(found["map"], expected.astype(jnp.dtype(computed)))
