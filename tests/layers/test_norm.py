import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from reid_jax.errors import UserError
from reid_jax.layers import norm
from reid_jax.layers.norm import BatchNorm

EPSILON = 1e-5


def reference(inputs, scale, bias, groups):
    """torch.nn.BatchNorm per group of rows, float64: outputs, means and variances."""
    outputs, means, variances = [], [], []
    for rows in np.split(inputs.astype(np.float64), groups):
        flat = rows.reshape(-1, rows.shape[-1])
        mean, var = flat.mean(0), flat.var(0)
        outputs.append((rows - mean) / np.sqrt(var + EPSILON) * scale + bias)
        means.append(mean)
        variances.append(flat.var(0, ddof=1))
    return np.concatenate(outputs), np.mean(means, 0), np.mean(variances, 0)


def input_gradient(inputs, cotangent, scale):
    """Of one group, in float64, by the formula of Ioffe and Szegedy."""
    rows, cotangent = inputs.astype(np.float64), cotangent.astype(np.float64)
    axes = tuple(range(inputs.ndim - 1))
    deviation = np.sqrt(rows.var(axes) + EPSILON)
    normed = (rows - rows.mean(axes)) / deviation
    passed = normed * (cotangent * normed).mean(axes)
    return scale / deviation * (cotangent - cotangent.mean(axes) - passed)


def make(shape, seed=0):
    rng = np.random.default_rng(seed)
    channels = shape[-1]
    inputs = (3 + 2 * rng.normal(size=shape)).astype(np.float32)
    params = {"scale": rng.normal(size=channels), "bias": rng.normal(size=channels)}
    stats = {"mean": rng.normal(size=channels), "var": 1 + rng.random(channels)}
    variables = {"params": params, "batch_stats": stats}
    return inputs, jax.tree.map(lambda leaf: leaf.astype(np.float32), variables)


@functools.cache
def train_step(groups):
    module = BatchNorm(groups=groups)
    return jax.jit(functools.partial(module.apply, train=True, mutable=["batch_stats"]))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("shape", [(8, 5), (4, 3, 2, 5)])
def test_training_equals_torch(shape, groups):
    inputs, variables = make(shape)
    outputs, updated = train_step(groups)(variables, inputs)
    scale, bias = variables["params"]["scale"], variables["params"]["bias"]
    expected, mean, var = reference(inputs, scale, bias, groups)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)
    old, new = variables["batch_stats"], updated["batch_stats"]
    np.testing.assert_allclose(new["mean"], 0.9 * old["mean"] + 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(new["var"], 0.9 * old["var"] + 0.1 * var, rtol=1e-5)


def test_test_mode_uses_running_statistics_and_row_alone():
    inputs, variables = make((4, 5))
    outputs = BatchNorm().apply(variables, inputs[:1], train=False)
    stats, params = variables["batch_stats"], variables["params"]
    expected = (inputs[:1] - stats["mean"]) / np.sqrt(stats["var"] + EPSILON)
    expected = expected * params["scale"] + params["bias"]
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("groups", [1, 2])
def test_gradient_equals_formula(groups):
    inputs, variables = make((8, 5))
    weights = np.random.default_rng(1).normal(size=inputs.shape).astype(np.float32)

    def loss(inputs):
        return jnp.sum(weights * train_step(groups)(variables, inputs)[0])

    scale = variables["params"]["scale"]
    expected = [
        input_gradient(rows, cotangent, scale)
        for rows, cotangent in zip(
            np.split(inputs, groups), np.split(weights, groups), strict=True
        )
    ]
    np.testing.assert_allclose(
        jax.grad(loss)(inputs), np.concatenate(expected), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_a_mean_that_the_running_one_is_near_costs_no_digits(weighted):
    """Values of 1000 with a deviation of 1 have three digits less to begin with; plain
    E[x²] - E[x]² would lose three more and find variances of 0 to 2."""
    rng = np.random.default_rng(0)
    inputs = (1000 + rng.normal(size=(16, 4, 4, 5))).astype(np.float32)
    cotangent = rng.normal(size=inputs.shape).astype(np.float32)
    _, variables = make((1, 5))
    variables["batch_stats"]["mean"] += 1000
    weights = np.ones(16, np.float32) if weighted else None

    def loss(inputs):
        outputs, updated = apply(variables, inputs, weights)
        return jnp.sum(cotangent * outputs), (outputs, updated["batch_stats"])

    def apply(variables, inputs, weights):
        return BatchNorm().apply(
            variables, inputs, train=True, weights=weights, mutable=["batch_stats"]
        )

    gradient, (outputs, stats) = jax.jit(jax.grad(loss, has_aux=True))(inputs)
    scale, bias = variables["params"]["scale"], variables["params"]["bias"]
    expected, _, var = reference(inputs, scale, bias, 1)
    np.testing.assert_allclose(outputs, expected, atol=2e-4)  # a rounding of 1000
    wanted = 0.9 * variables["batch_stats"]["var"] + 0.1 * var
    np.testing.assert_allclose(stats["var"], wanted, rtol=1e-6)
    np.testing.assert_allclose(
        gradient, input_gradient(inputs, cotangent, scale), atol=2e-4
    )


@pytest.mark.parametrize("far", [1, 10, 100])
def test_the_error_of_a_batch_that_is_far_from_the_running_mean_is_bounded(far):
    """n standard deviations away, n² roundings: as in the first steps of a network."""
    rng = np.random.default_rng(0)
    inputs = (far + rng.normal(size=(64, 4, 4, 5))).astype(np.float32)
    outputs, _ = BatchNorm(use_bias=False).init_with_output(
        jax.random.key(0), inputs, train=True
    )
    expected, *_ = reference(inputs, np.ones(5), 0, 1)
    np.testing.assert_allclose(
        outputs, expected, rtol=(1 + far**2) * 2e-7, atol=(1 + far) * 2e-7
    )


@pytest.mark.parametrize("groups", [1, 2])
def test_statistics_are_those_of_the_global_batch_on_eight_devices(groups):
    inputs, variables = make((16, 5))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(inputs, NamedSharding(mesh, PartitionSpec("data")))
    one = train_step(groups)(variables, inputs)
    eight = train_step(groups)(variables, sharded)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, eight
    )


def test_constant_input_and_single_row_stay_finite():
    for inputs in (np.full((4, 3), 7, np.float32), np.ones((1, 3), np.float32)):
        outputs, variables = BatchNorm().init_with_output(
            jax.random.key(0), inputs, train=True
        )
        assert np.all(np.asarray(outputs) == 0)
        assert np.all(np.asarray(variables["batch_stats"]["mean"]) == 0)


def test_no_bias_parameter_and_half_precision():
    module = BatchNorm(use_bias=False)
    inputs = jnp.ones((4, 3), jnp.bfloat16)
    outputs, variables = module.init_with_output(jax.random.key(0), inputs, train=False)
    assert set(variables["params"]) == {"scale"}
    assert outputs.dtype == jnp.bfloat16


def test_groups_that_do_not_divide_the_batch():
    with pytest.raises(UserError, match="bn_groups=3"):
        BatchNorm(groups=3).init(jax.random.key(0), np.ones((4, 2)), train=True)


def weighted_step(groups=1):
    module = BatchNorm(groups=groups)

    def run(variables, inputs, weights):
        return module.apply(
            variables, inputs, train=True, weights=weights, mutable=["batch_stats"]
        )

    return jax.jit(run)


@pytest.mark.parametrize("shape", [(8, 5), (8, 3, 2, 5)])
def test_weights_of_zero_and_one_leave_rows_out(shape):
    inputs, variables = make(shape)
    weights = np.array([1, 0, 1, 1, 0, 0, 1, 0], np.float32)
    outputs, updated = weighted_step()(variables, inputs, weights)
    kept = weights > 0
    expected, remaining = train_step(1)(variables, inputs[kept])
    np.testing.assert_allclose(np.asarray(outputs)[kept], expected, atol=1e-5)
    for name in ("mean", "var"):
        np.testing.assert_allclose(
            updated["batch_stats"][name], remaining["batch_stats"][name], rtol=1e-5
        )


def test_even_weights_change_nothing():
    inputs, variables = make((8, 3, 2, 5))
    expected = train_step(2)(variables, inputs)
    found = weighted_step(2)(variables, inputs, np.full(8, 0.3, np.float32))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        found,
        expected,
    )


def test_weighted_statistics_equal_float64():
    inputs, variables = make((8, 3, 2, 5))
    weights = np.random.default_rng(2).random(8).astype(np.float32)
    outputs, updated = weighted_step()(variables, inputs, weights)
    flat = inputs.reshape(-1, 5).astype(np.float64)
    every = np.repeat(weights.astype(np.float64), 6)
    mean = np.average(flat, axis=0, weights=every)
    var = np.average((flat - mean) ** 2, axis=0, weights=every)
    normed = (inputs - mean) / np.sqrt(var + EPSILON)
    params, old = variables["params"], variables["batch_stats"]
    expected = normed * params["scale"] + params["bias"]
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    new = updated["batch_stats"]
    np.testing.assert_allclose(new["mean"], 0.9 * old["mean"] + 0.1 * mean, rtol=1e-5)
    unbiased = np.cov(flat, rowvar=False, aweights=every).diagonal()
    np.testing.assert_allclose(new["var"], 0.9 * old["var"] + 0.1 * unbiased, rtol=1e-5)


def test_groups_without_weight_use_and_keep_the_running_averages():
    inputs, variables = make((8, 5))
    weights = np.array([1, 1, 1, 1, 0, 0, 0, 0], np.float32)
    outputs, updated = weighted_step(2)(variables, inputs, weights)
    first, expected = train_step(1)(variables, inputs[:4])
    np.testing.assert_allclose(outputs[:4], first, atol=1e-5)
    tested = BatchNorm().apply(variables, inputs[4:], train=False)
    np.testing.assert_allclose(outputs[4:], tested, rtol=1e-5, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updated, expected
    )
    outputs, updated = weighted_step(2)(variables, inputs, np.zeros(8, np.float32))
    np.testing.assert_allclose(outputs[4:], tested, rtol=1e-5, atol=1e-5)
    jax.tree.map(
        np.testing.assert_array_equal,
        updated["batch_stats"],
        variables["batch_stats"],
    )


def test_small_weights_have_finite_gradients():
    inputs, variables = make((4, 2, 5))

    def loss(inputs, weights):
        return (weighted_step()(variables, inputs, weights)[0] ** 2).sum()

    for size in (0, 1e-30, 1e-12, 1e-5):
        weights = np.full(4, size, np.float32)
        for gradient in jax.jit(jax.grad(loss, (0, 1)))(inputs, weights):
            assert np.isfinite(gradient).all()


def test_equal_layers_are_traced_once(monkeypatch):
    shapes = []

    def counted(centre, values):
        shapes.append(values.shape)
        return moments(centre, values)

    moments = norm._moments_about
    monkeypatch.setattr(norm, "_moments_about", counted)

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            for _ in range(4):
                inputs = BatchNorm()(inputs, train=True)
            return inputs.sum()

    inputs = jnp.ones((2, 13, 11, 7))  # a shape of no other test
    variables = jax.eval_shape(Stack().init, jax.random.key(0), inputs)

    def loss(params, rest):
        return Stack().apply({"params": params, **rest}, inputs, mutable="batch_stats")

    params = variables.pop("params")
    jax.eval_shape(jax.grad(loss, has_aux=True), params, variables)
    assert shapes == [(1, *inputs.shape)]
