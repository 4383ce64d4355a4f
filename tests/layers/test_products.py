"""Products of rows with a matrix, beside the plain product in float64."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from reid_jax.benchmark.flops import count_flops
from reid_jax.layers import linear
from reid_jax.layers.products import row_product

SHAPES = {
    "tokens": ((3, 5, 4), (4, 6)),
    "narrowing": ((2, 3, 2, 6), (6, 2)),
    "matrix": ((5, 3), (3, 4)),
    "vector": ((3,), (3, 4)),
    "no rows": ((0, 5, 3), (3, 4)),
}


def arrays(*shapes, dtype=np.float32):
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(dtype) for shape in shapes]


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("case", SHAPES)
def test_equals_the_plain_product_and_its_gradients(case, dtype):
    inputs, kernel = arrays(*SHAPES[case], dtype=dtype)
    cotangent = arrays((*inputs.shape[:-1], kernel.shape[-1]), dtype=dtype)[0]
    values, pulled = jax.jit(lambda *x: jax.vjp(row_product, *x))(inputs, kernel)
    got = values, *jax.jit(pulled)(cotangent)
    x, w, g = (y.astype(np.float64) for y in (inputs, kernel, cotangent))
    rows, columns = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    wanted = x @ w, g @ w.T, rows.T @ columns
    tolerance = {"rtol": 1e-6, "atol": 1e-6}
    if dtype != np.float32:
        tolerance = {"rtol": 2**-7, "atol": 2**-6}
    for ours, expected in zip(got, wanted, strict=True):
        assert ours.dtype == dtype
        assert ours.shape == expected.shape
        np.testing.assert_allclose(np.float64(ours), expected, **tolerance)


def step(product, inputs, kernels):
    """Gradients of two residual layers of either form."""

    def loss(inputs, kernels):
        for kernel in kernels:
            layer = linear.Dense(4, use_bias=False, product=product)
            inputs += jnp.tanh(layer.apply({"params": {"kernel": kernel}}, inputs))
        return jnp.sum(inputs**2)

    return jax.grad(loss, argnums=(0, 1))(inputs, kernels)


OURS = functools.partial(step, row_product)
PLAIN = functools.partial(step, jnp.matmul)
GIVEN = arrays((8, 5, 4), (2, 4, 4))


def products(function, platform):
    """The dimensions of StableHLO's products in the program for a platform."""
    lowered = jax.jit(function).trace(*GIVEN).lower(lowering_platforms=(platform,))
    found = re.findall(r"dot_general .*(contracting_dims.*?) :.*", lowered.as_text())
    return sorted(found)


def test_accelerators_get_the_program_of_lax():
    for platform in ("tpu", "cuda"):
        assert products(OURS, platform) == products(PLAIN, platform)
    assert any("[0, 1] x [0, 1]" in dims for dims in products(PLAIN, "cpu"))
    assert not any("[0, 1] x [0, 1]" in dims for dims in products(OURS, "cpu"))


def test_equals_one_device_on_eight():
    inputs, kernels = GIVEN
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split = jax.device_put(inputs, NamedSharding(mesh, PartitionSpec("data")))
    program = jax.jit(OURS).lower(split, kernels).compile()
    assert not re.search(r"all-(gather|to-all)", program.as_text())
    for ours, wanted in zip(
        program(split, kernels), jax.jit(PLAIN)(*GIVEN), strict=True
    ):
        np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-5)


def test_counts_as_many_operations():
    assert count_flops(OURS, *GIVEN) == count_flops(PLAIN, *GIVEN)
