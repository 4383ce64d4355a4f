"""4D convolutions against a dense 4-D one and a loop; the stack's published figures."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from reid_jax.benchmark.flops import count_flops
from reid_jax.errors import UserError
from reid_jax.layers.correlation4d import (
    STACK,
    CenterPivotConv4d,
    CorrelationStack,
    similarity,
)
from tests.variables import random_variables

# Kernel of the query and of the gallery, stride of the query and of the gallery.
CASES = {
    "plain": (3, 3, 1, 1),
    "paper": (5, 5, 2, 2),
    "unequal": (3, 5, 2, 1),
    "stride 3": (1, 3, 3, 2),
    "even": (4, 2, 2, 3),
    "rows and columns": ((3, 5), (1, 2), (2, 1), (1, 3)),
}


def two(size):
    return (size, size) if isinstance(size, int) else size


def layer(case, features=4, dtype=jnp.float32):
    kernels, strides = CASES[case][:2], CASES[case][2:]
    return CenterPivotConv4d(features, *kernels, *strides, dtype=dtype)


def example(module, shape=(2, 7, 4, 6, 5, 3), seed=0):
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return random_variables(module.init, values, seed=seed), values


def in_a_loop(params, values, strides):
    """Tap by tap in float64."""
    query, gallery = (
        {k: np.asarray(v, np.float64) for k, v in params[name].items()}
        for name in ("query", "gallery")
    )
    steps = two(strides[0]) + two(strides[1])
    shape = [range(-(-n // s)) for n, s in zip(values.shape[1:5], steps, strict=True)]
    features = query["bias"].size
    result = np.zeros((len(values), *map(len, shape), features))
    for place in itertools.product(*shape):
        at = [i * s for i, s in zip(place, steps, strict=True)]
        total = query["bias"] + gallery["bias"]
        for side, kernel in ((0, query["kernel"]), (2, gallery["kernel"])):
            for u, v in np.ndindex(kernel.shape[:2]):
                there = list(at)
                there[side] += u - kernel.shape[0] // 2
                there[side + 1] += v - kernel.shape[1] // 2
                inside = zip(there, values.shape[1:5], strict=True)
                if all(0 <= i < n for i, n in inside):
                    total = total + values[:, *there] @ kernel[u, v]
        result[:, *place] = total
    return result


def dense(params, values, strides):
    """One 4-D convolution; off the planes through its centre the kernel is zero."""
    query, gallery = params["query"]["kernel"], params["gallery"]["kernel"]
    extent = query.shape[:2] + gallery.shape[:2]
    kernel = np.zeros(extent + query.shape[2:], np.float32)
    kernel[:, :, extent[2] // 2, extent[3] // 2] += query
    kernel[extent[0] // 2, extent[1] // 2] += gallery
    result = jax.lax.conv_general_dilated(
        values,
        kernel,
        window_strides=two(strides[0]) + two(strides[1]),
        padding=[(k // 2, (k - 1) // 2) for k in extent],
        dimension_numbers=("NHWYXC", "HWYXIO", "NHWYXC"),
    )
    return result + params["query"]["bias"] + params["gallery"]["bias"]


@pytest.mark.parametrize("reference", [in_a_loop, dense])
@pytest.mark.parametrize("case", CASES)
def test_convolution_equals_references(case, reference):
    module = layer(case)
    variables, values = example(module)
    got = jax.jit(module.apply)(variables, values)
    expected = reference(variables["params"], values, CASES[case][2:])
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["paper", "unequal", "even"])
def test_gradients_of_the_convolution(case):
    variables, values = example(layer(case), (1, 4, 3, 3, 4, 2))
    with jax.enable_x64(True):
        to_double = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, float), tree)  # noqa: E731
        run = jax.jit(layer(case, dtype=jnp.float64).apply)
        arguments = to_double(variables), to_double(values)
        check_grads(run, arguments, order=1, modes=("rev",), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", ["paper", "unequal"])
def test_bfloat16_is_close(case):
    variables, values = example(layer(case))
    exact = jax.jit(layer(case).apply)(variables, values)
    rounded = jax.jit(layer(case, dtype=jnp.bfloat16).apply)(variables, values)
    assert rounded.dtype == jnp.bfloat16
    error = np.asarray(rounded, np.float32) - exact
    assert 0 < np.abs(error).max() < 0.02 * np.abs(exact).max()


def test_swapping_images_and_kernels_transposes_the_result():
    variables, values = example(layer("unequal"))
    got = jax.jit(layer("unequal").apply)(variables, values)
    kernels, strides = CASES["unequal"][1::-1], CASES["unequal"][:1:-1]
    swapped = CenterPivotConv4d(4, *kernels, *strides)
    params = variables["params"]
    params = {"query": params["gallery"], "gallery": params["query"]}
    values = values.transpose(0, 3, 4, 1, 2, 5)
    other = jax.jit(swapped.apply)({"params": params}, values)
    np.testing.assert_allclose(
        got, other.transpose(0, 3, 4, 1, 2, 5), rtol=1e-5, atol=1e-5
    )


def test_initial_weights_have_the_published_variance():
    module = CenterPivotConv4d(32, 3, 5)
    values = jnp.zeros((1, 2, 2, 2, 2, 16))
    params = jax.jit(module.init)(jax.random.key(0), values)["params"]
    for name, kernel in (("query", 3), ("gallery", 5)):
        assert not params[name]["bias"].any()
        weights = np.asarray(params[name]["kernel"])
        assert weights.shape == (kernel, kernel, 16, 32)
        expected = (2 / (kernel**2 * 32)) ** 0.5
        np.testing.assert_allclose(weights.std(), expected, rtol=0.05)
        assert np.abs(weights).max() > 3 * expected  # not truncated


def test_no_tensor_is_larger_than_needed():
    """With stride 2, three quarters of the other image's places are dropped first."""
    module, shape = CenterPivotConv4d(2, 5, 3, 2, 2), (3, 8, 6, 4, 10, 7)
    values = jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), values)
    jaxpr = jax.make_jaxpr(module.apply)(variables, values).jaxpr
    for equation in _equations(jaxpr):
        for result in equation.outvars:
            assert result.aval.size <= 3 * 48 * 40 * 7 // 4


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        inner = [p for p in equation.params.values() if hasattr(p, "jaxpr")]
        for closed in inner:
            yield from _equations(closed.jaxpr)
        if not inner:
            yield equation


def test_parameters_of_the_stack():
    """386,656: per layer two kernels, two biases, and the norm's scale and bias."""
    by_hand = (
        2 * (25 * 3 * 16 + 16) + 2 * 16,
        2 * (9 * 16 * 16 + 16) + 2 * 16,
        2 * (9 * 16 * 32 + 32) + 2 * 32,
        2 * (9 * 32 * 32 + 32) + 2 * 32,
        2 * (9 * 32 * 32 + 32) + 2 * 32,
        2 * (9 * 32 * 64 + 64) + 2 * 64,
        2 * (9 * 64 * 64 + 64) + 2 * 64,
        2 * (9 * 64 * 64 + 64) + 2 * 64,
        2 * (9 * 64 * 128 + 128) + 2 * 128,
    )
    assert sum(by_hand) == 386_656
    values = jax.ShapeDtypeStruct((1, 22, 11, 22, 11, 3), jnp.float32)
    shapes = jax.eval_shape(CorrelationStack().init, jax.random.key(0), values)
    for i, count in enumerate(by_hand):
        mine = [shapes["params"][f"{part}_{i}"] for part in ("conv", "norm")]
        assert sum(leaf.size for leaf in jax.tree.leaves(mine)) == count
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == sum(by_hand)


def test_multiplications_per_pair():
    """0.057 G in the stack and 0.045 G in the similarity, on 22 x 11 maps."""
    places, channels, by_hand = (22, 11), 3, 0
    for kernel, stride, features in STACK:
        places = tuple(-(-n // stride) for n in places)
        taps = 2 * kernel**2
        by_hand += taps * channels * features * np.prod(places) ** 2
        channels = features
    assert places == (3, 2)
    assert round(by_hand / 1e9, 3) == 0.057
    values = jax.ShapeDtypeStruct((1, 22, 11, 22, 11, 3), jnp.float32)
    variables = jax.eval_shape(CorrelationStack().init, jax.random.key(0), values)
    assert count_flops(CorrelationStack().apply, variables, values) == 2 * by_hand
    maps = jax.ShapeDtypeStruct((1, 3, 22, 11, 256), jnp.float32)
    assert count_flops(similarity, maps, maps) == 2 * (22 * 11) ** 2 * 3 * 256


def test_stack_equals_its_layers_in_numpy():
    stack = CorrelationStack(((3, 2, 8), (3, 1, 12)))
    variables, values = example(stack)
    result = jax.jit(stack.apply)(variables, values)
    params, expected = variables["params"], values.astype(np.float64)
    for i, stride in enumerate((2, 1)):
        expected = in_a_loop(params[f"conv_{i}"], expected, (stride, stride))
        norm = params[f"norm_{i}"]
        for pair in expected:
            for channels in np.split(np.arange(pair.shape[-1]), 4):
                group = pair[..., channels]
                group = (group - group.mean()) / np.sqrt(group.var() + 1e-5)
                group = group * norm["scale"][channels] + norm["bias"][channels]
                pair[..., channels] = np.maximum(group, 0)
    assert result["map"].shape == (2, 4, 2, 3, 3, 12)
    np.testing.assert_allclose(result["map"], expected, rtol=1e-4, atol=1e-5)
    mean = expected.reshape(2, -1, 12).mean(1)
    np.testing.assert_allclose(result["vector"], mean, rtol=1e-4, atol=1e-5)


def test_stack_in_bfloat16():
    stack, rounded = (
        CorrelationStack(((3, 2, 8), (3, 1, 12)), dtype)
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    variables, values = example(stack)
    exact = jax.jit(stack.apply)(variables, values)
    result = jax.jit(rounded.apply)(variables, values)
    assert (result["map"].dtype, result["vector"].dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(result["vector"], exact["vector"], rtol=0.05, atol=0.02)


@pytest.mark.parametrize("layer", [(0, 1, 8), (3, 0, 8), (3, 1, 6), (3, 1, 0)])
def test_layers_that_cannot_be(layer):
    stack = CorrelationStack((layer,))
    with pytest.raises(UserError, match="multiple of 4"):
        jax.eval_shape(stack.init, jax.random.key(0), jnp.zeros((1, 4, 4, 4, 4, 3)))


@pytest.fixture
def maps():
    rng = np.random.default_rng(0)
    query = rng.normal(size=(2, 1, 3, 4, 3, 6)).astype(np.float32)
    return query, rng.normal(size=(2, 5, 3, 2, 5, 6)).astype(np.float32)


def test_similarity_equals_a_loop(maps):
    query, gallery = maps
    got = jax.jit(similarity)(query, gallery)
    assert got.shape == (2, 5, 4, 3, 2, 5, 3)
    for q, k, a, b, c, d, level in np.ndindex(got.shape):
        left = query[q, 0, level, a, b].astype(np.float64)
        right = gallery[q, k, level, c, d].astype(np.float64)
        cosine = left @ right / (np.linalg.norm(left) * np.linalg.norm(right))
        np.testing.assert_allclose(
            got[q, k, a, b, c, d, level], max(cosine, 0), atol=1e-6
        )
    assert (got == 0).mean() > 0.3


def test_gradient_of_the_similarity(maps):
    query, gallery = maps
    query, gallery = query[:1, 0, :2, :2, :2], gallery[:1, 0, :2, :2, :2]
    with jax.enable_x64(True):
        arguments = jnp.asarray(query, float), jnp.asarray(gallery, float)
        check_grads(jax.jit(similarity), arguments, order=1, modes=("rev",), rtol=1e-5)


def test_similarity_of_nothing_is_zero_and_has_no_gradient(maps):
    query, gallery = maps
    query = query.copy()
    query[0, 0, 0, 1, 2] = 0
    value = jax.jit(similarity)(query, gallery)
    assert not value[0, :, 1, 2, :, :, 0].any()
    gradient = jax.jit(jax.grad(lambda q: similarity(q, gallery).sum()))(query)
    assert np.isfinite(gradient).all()
    assert not gradient[0, 0, 0, 1, 2].any()


def test_similarity_of_bfloat16_is_summed_in_float32(maps):
    rounded = [jnp.asarray(side, jnp.bfloat16) for side in maps]
    got = jax.jit(similarity)(*rounded)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, jax.jit(similarity)(*maps), atol=0.01)


def test_group_norm_is_over_places_and_channels_of_one_pair():
    """As torch.nn.GroupNorm, whatever another pair looks like."""
    stack = CorrelationStack(((1, 1, 8),))
    variables, values = example(stack)
    run = jax.jit(stack.apply)
    alone = run(variables, values[:1])
    beside = run(variables, np.concatenate([values[:1], 100 * values[1:]]))
    np.testing.assert_allclose(alone["vector"], beside["vector"][:1], rtol=1e-5)
