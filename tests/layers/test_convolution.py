"""1x1 convolutions as products and ReLU as a choice, beside lax's forms in float64."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from reid_jax.benchmark.flops import count_flops
from reid_jax.export.rewriting import rewritten
from reid_jax.layers import convolution as forms
from reid_jax.layers import linear
from reid_jax.layers.convolution import convolution, relu

LAX = functools.partial(
    lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC")
)
CASES = {
    "narrowing": ((3, 4, 5, 6), (1, 1, 6, 2), (1, 1), ((0, 0), (0, 0))),
    "widening": ((3, 4, 5, 2), (1, 1, 2, 6), (1, 1), ((0, 0), (0, 0))),
    "strided": ((2, 7, 6, 3), (1, 1, 3, 4), (2, 2), ((0, 0), (0, 0))),
    "unequal strides": ((2, 6, 8, 4), (1, 1, 4, 3), (1, 3), ((0, 0), (0, 0))),
    "padded": ((2, 4, 5, 3), (1, 1, 3, 4), (2, 1), ((1, 1), (0, 2))),
    "3x3": ((2, 7, 6, 3), (3, 3, 3, 4), (2, 2), ((1, 1), (1, 1))),
}


def arrays(*shapes, dtype=np.float32):
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(dtype) for shape in shapes]


def both(form, strides, padding, inputs, kernel, cotangent):
    """The values of a convolution and both gradients."""

    def function(inputs, kernel):
        return form(inputs, kernel, strides, padding)

    values, pulled = jax.vjp(function, inputs, kernel)
    return values, *pulled(cotangent)


@pytest.mark.parametrize("case", CASES)
def test_equals_lax_and_its_gradients(case):
    shape, size, *given = CASES[case]
    inputs, kernel = arrays(shape, size)
    with jax.enable_x64(True):
        doubles = inputs.astype(np.float64), kernel.astype(np.float64)
        out = jax.eval_shape(lambda *x: LAX(*x, *given), *doubles)
        (cotangent,) = arrays(out.shape)
        lax_form = jax.jit(functools.partial(both, LAX, *given))
        expected = lax_form(*doubles, cotangent.astype(np.float64))
        expected = [np.asarray(x) for x in expected]
    got = jax.jit(functools.partial(both, convolution, *given))
    for ours, wanted in zip(got(inputs, kernel, cotangent), expected, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-6)


def step(form, activation, inputs, kernel):
    """Gradients of a small residual network of either forms."""

    def loss(inputs, kernel):
        layer = linear.Conv(8, 1, 2, use_bias=False, convolution=form)
        values = layer.apply({"params": {"kernel": kernel}}, activation(inputs))
        return jnp.sum(activation(values) ** 2)

    return jax.grad(loss, argnums=(0, 1))(inputs, kernel)


def operations(function, platform, *args):
    """How often StableHLO's operations stand in the program for a platform."""
    lowered = jax.jit(function).trace(*args).lower(lowering_platforms=(platform,))
    text = lowered.as_text()
    return {
        name: text.count(f"stablehlo.{name}")
        for name in ("convolution", "dot_general", "maximum", "select", "pad")
    }


OURS = functools.partial(step, convolution, relu)
PLAIN = functools.partial(step, LAX, jax.nn.relu)


def test_accelerators_get_the_program_of_lax():
    given = arrays((2, 6, 4, 8), (1, 1, 8, 8))
    assert operations(OURS, "tpu", *given) == operations(PLAIN, "tpu", *given)
    assert operations(OURS, "cuda", *given) == operations(PLAIN, "cuda", *given)
    on_cpu = operations(OURS, "cpu", *given)
    assert (on_cpu["convolution"], on_cpu["dot_general"]) == (0, 3)
    assert on_cpu["maximum"] == 0


def test_equals_one_device_on_eight():
    given = arrays((16, 6, 4, 8), (1, 1, 8, 8))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    program = jax.jit(OURS).lower(jax.device_put(given[0], rows), given[1]).compile()
    assert not re.search(r"all-(gather|to-all)", program.as_text())
    got = program(jax.device_put(given[0], rows), given[1])
    for ours, wanted in zip(got, jax.jit(PLAIN)(*given), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-5)


def test_counts_as_many_operations():
    given = arrays((2, 6, 4, 8), (1, 1, 8, 8))
    assert count_flops(OURS, *given) == count_flops(PLAIN, *given)


def test_converters_see_the_plain_forms():
    inputs, kernel = arrays((2, 6, 4, 8), (1, 1, 8, 8))

    def function(inputs, kernel):
        values = convolution(inputs, kernel, (2, 2), ((0, 0), (0, 0)))
        return relu(values)

    traced = jax.make_jaxpr(function)(inputs, kernel)
    plain = jax.make_jaxpr(rewritten(traced))(inputs, kernel)
    names = {equation.primitive.name for equation in plain.jaxpr.eqns}
    assert "conv_general_dilated" in names
    assert not names & {"cond", "platform_index", "dot_general"}


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_relu_equals_jax_and_its_gradient(dtype):
    values = jnp.array([-jnp.inf, -2, -0.0, 0, 1e-30, 3, jnp.inf, jnp.nan], dtype)
    for ours, wanted in zip(
        jax.vmap(jax.value_and_grad(relu))(values),
        jax.vmap(jax.value_and_grad(jax.nn.relu))(values),
        strict=True,
    ):
        assert ours.dtype == dtype
        np.testing.assert_array_equal(*(np.float32(x) for x in (ours, wanted)))


def test_equal_layers_are_traced_once(monkeypatch):
    traced = []
    for name in ("_product", "_relu"):
        form = getattr(forms, name)

        def counted(*args, name=name, form=form):
            traced.append(name)
            return form(*args)

        monkeypatch.setattr(forms, name, counted)

    def network(values, kernel, *, depth):
        for _ in range(depth):
            values = relu(convolution(values, kernel, (1, 1), "VALID"))
        return values.sum()

    values, kernel = arrays((2, 11, 13, 7), (1, 1, 7, 7))  # shapes of no other test
    # The first layer alone has an input without a gradient.
    for depth, wanted in ((2, {"_relu", "_product"}), (6, set())):
        of_depth = functools.partial(network, depth=depth)
        jax.eval_shape(jax.grad(of_depth, argnums=1), values, kernel)
        assert set(traced) == wanted
        traced.clear()
