import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from reid_jax.errors import UserError
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

    expected = []
    scale = variables["params"]["scale"].astype(np.float64)
    for rows, cotangent in zip(
        np.split(inputs.astype(np.float64), groups),
        np.split(weights, groups),
        strict=True,
    ):
        deviation = np.sqrt(rows.var(0) + EPSILON)
        normed = (rows - rows.mean(0)) / deviation
        centred = cotangent - cotangent.mean(0) - normed * (cotangent * normed).mean(0)
        expected.append(scale / deviation * centred)
    np.testing.assert_allclose(
        jax.grad(loss)(inputs), np.concatenate(expected), rtol=1e-4, atol=1e-5
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
