"""Gradients that are summed in float32, beside float64's of the same factors."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from reid_jax.backbones.osnet import Depthwise
from reid_jax.layers import gradients, linear
from reid_jax.layers.convolution import convolution
from reid_jax.layers.products import row_product

HALF = jnp.bfloat16
# Left to itself, a CPU's compiler leaves out a rounding that is followed by a cast.
EXACT = {"xla_allow_excess_precision": False}
NHWC = ("NHWC", "HWIO", "NHWC")
IMAGES = (4, 7, 6, 16)


def conv(form, stride, padding):
    return lambda x, kernel: form(x, kernel, (stride, stride), padding)


def einsum(x, kernel):
    return jnp.einsum("...c,cd->...d", x, kernel)


def lax_conv(stride, padding):
    return lambda x, kernel: lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=NHWC
    )


def depthwise(x, kernel):
    return Depthwise(HALF).apply({"params": {"kernel": kernel}}, x)


def grouped(x, kernel):
    return lax.conv_general_dilated(
        *(x, kernel, (1, 1), "SAME"),
        dimension_numbers=NHWC,
        feature_group_count=x.shape[-1],
    )


def same(stride, padding, form=gradients.convolved):
    return conv(form, stride, padding), lax_conv(stride, padding)


FORMS = {
    "product": (gradients.product, einsum, IMAGES, (16, 8)),
    "row product": (row_product, einsum, (40, 16), (16, 8)),
    "wide result": (
        lambda x, kernel: gradients.product(x, kernel, dtype=jnp.float32),
        *(einsum, IMAGES, (16, 8)),
    ),
    "pointwise": (*same(1, "VALID", convolution), IMAGES, (1, 1, 16, 8)),
    "strided": (*same(2, ((0, 0), (0, 0)), convolution), IMAGES, (1, 1, 16, 8)),
    "3x3": (*same(1, "SAME"), IMAGES, (3, 3, 16, 8)),
    "strided 3x3": (*same(2, ((1, 1), (1, 1)), convolution), IMAGES, (3, 3, 16, 8)),
    "unequal pads": (*same(3, ((2, 1), (0, 1))), IMAGES, (4, 2, 16, 8)),
    "patches": (*same(3, "VALID"), IMAGES, (4, 4, 16, 8)),
    "bias": (gradients.plus, jnp.add, IMAGES, (1, 1, 1, 16)),
    "map": (gradients.plus, jnp.add, IMAGES, (1, 7, 6, 16)),
    "depthwise": (depthwise, grouped, IMAGES, (3, 3, 1, 16)),
}


def arrays(*shapes):
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def differentiated(form, dtype, inputs, kernel, cotangent):
    """The result, and gradients of the inputs and of a float32 kernel."""

    def run(inputs, kernel, cotangent):
        def function(inputs, kernel):
            with gradients.summed_in(dtype):
                return form(inputs, gradients.cast(kernel, HALF))

        values, pulled = jax.vjp(function, inputs, kernel)
        return values, *pulled(cotangent.astype(values.dtype))

    return jax.jit(run, compiler_options=EXACT)(inputs, kernel, cotangent)


def digits_lost(found, wanted):
    return np.abs(np.float64(found) - wanted).max() / np.abs(wanted).max()


@pytest.mark.parametrize("case", FORMS)
def test_a_gradient_has_float32s_digits(case):
    form, reference, *shapes = FORMS[case]
    inputs, kernel = arrays(*shapes)
    with jax.enable_x64(True):
        inputs = inputs.astype(HALF)
        doubles = inputs.astype(np.float64), kernel.astype(HALF).astype(np.float64)
        values, pulled = jax.vjp(jax.jit(reference), *doubles)
        (cotangent,) = (x.astype(HALF) for x in arrays(values.shape))
        _, wanted = map(np.asarray, jax.jit(pulled)(cotangent.astype(np.float64)))
    given = inputs, kernel, cotangent
    narrow = differentiated(form, "compute", *given)
    wide = differentiated(form, "float32", *given)
    for ours, plain in zip(wide[:2], narrow[:2], strict=True):
        assert ours.dtype == plain.dtype
        np.testing.assert_array_equal(*(np.float32(x) for x in (ours, plain)))
    assert wide[2].dtype == narrow[2].dtype == np.float32
    assert digits_lost(wide[2], wanted) < 1e-6
    assert digits_lost(narrow[2], wanted) > 1e-4


LAYERS = {
    "dense": (linear.Dense(8), nn.Dense(8), (3, 5, 16)),
    "without bias": (linear.Dense(8, False), nn.Dense(8, use_bias=False), (5, 16)),
    "conv": (linear.Conv(8, 3, 2), nn.Conv(8, (3, 3), 2), IMAGES),
    "padded": (
        linear.Conv(8, 3, padding=2, use_bias=False),
        nn.Conv(8, (3, 3), padding=2, use_bias=False),
        IMAGES,
    ),
}


@pytest.mark.parametrize("dtype", [jnp.float32, HALF])
@pytest.mark.parametrize("case", LAYERS)
def test_layers_are_flaxs(case, dtype):
    ours, flaxs, shape = LAYERS[case]
    (inputs,) = arrays(shape)

    def lowered(layer):
        def gradient(params, inputs):
            return jax.grad(
                lambda *x: layer.apply(*x).astype(jnp.float32).sum(), argnums=(0, 1)
            )(params, inputs)

        layer = layer.clone(dtype=dtype)
        params = jax.jit(layer.init)(jax.random.key(0), inputs)
        return params, jax.jit(gradient).lower(params, inputs).as_text()

    (params, text), (wanted, theirs) = map(lowered, (ours, flaxs))
    jax.tree.map(np.testing.assert_array_equal, params, wanted)
    assert text == theirs
    # A float32 network has nothing to be cast.
    with gradients.summed_in("float32"):
        assert (lowered(ours)[1] == theirs) == (dtype == jnp.float32)


def test_the_dtype_holds_within_alone():
    def kept():
        return gradients.cast(jnp.ones(3), HALF).dtype == jnp.float32

    with gradients.summed_in("float32"):
        assert kept()
        with gradients.summed_in("compute"):
            assert not kept()
        assert kept()
    assert not kept()
