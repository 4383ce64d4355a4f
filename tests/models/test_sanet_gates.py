"""A small task in which the best exit depends on scale, see `benchmarks.gates`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import gates, routing
from benchmarks.routing import at_random, bits
from reid_jax import experiment
from reid_jax.models import sanet
from tests.variables import random_variables


def test_gates_see_scale_where_they_are_normalised():
    variant, routes = gates.VARIANTS["normalised"], ("most probable", "all, weighted")
    variables = gates.trained(variant, seed=0, steps=300)
    figures = gates.tested(variant, variables, routes)
    assert all(figures[name] > 0.95 for name in routes)
    assert 1.2 < figures["bits"] <= np.log2(3)


def test_bits_are_the_mutual_information():
    """H(routes) + H(scales) - H(both), counted one by one."""
    rng = np.random.default_rng(0)
    routes, scales = rng.integers(0, 2, (50, 2, 2)), rng.integers(0, 3, 50)
    routes[:, 0, 0] = scales > 1
    named = [tuple(route.ravel()) for route in routes]

    def entropy(values):
        shares = [values.count(value) / len(values) for value in set(values)]
        return -sum(share * np.log2(share) for share in shares)

    both = list(zip(named, scales.tolist(), strict=True))
    expected = entropy(named) + entropy(scales.tolist()) - entropy(both)
    np.testing.assert_allclose(bits(routes, scales), expected, rtol=1e-9)
    np.testing.assert_allclose(bits(scales, scales), entropy(scales.tolist()))
    assert abs(bits(np.zeros((50, 3)), scales)) < 1e-9


def test_random_routes_are_one_hot_even_and_drawn_by_each_cell():
    decide, logits = at_random(0), np.zeros((3000, 3), np.float32)
    logits[:, 1] = 50  # does not matter
    first, second = (np.asarray(decide(logits)) for _ in range(2))
    for drawn in (first, second):
        assert set(drawn.ravel()) == {0, 1}
        np.testing.assert_array_equal(drawn.sum(1), 1)
        # Four standard deviations of a frequency.
        np.testing.assert_allclose(drawn.mean(0), 1 / 3, atol=4 * (2 / 9 / 3000) ** 0.5)
    assert abs((first == second).all(1).mean() - 1 / 3) < 0.05


def test_a_protocol_is_scored_with_other_routes(sanet_config):
    method = experiment.build_method(sanet_config, num_classes=3)
    variables = random_variables(method.init, experiment.example_batch(sanet_config, 2))
    variables = jax.tree.map(jnp.asarray, variables)
    (protocol,) = experiment.build_protocols(sanet_config)
    lines = list(routing._scores(sanet_config, method, variables, protocol))
    assert [x["routes"] for x in lines] == ["most probable", "all, weighted", "random"]
    assert all(0 < line["mAP"] <= 1 for line in lines)


def test_other_decisions_take_other_routes():
    method = sanet.Method(3, layers=3, enhancement_width=4)
    maps = np.random.default_rng(0).normal(size=(9, 4, 3, 8)).astype(np.float32)
    init = functools.partial(method.module.enhancement.init, train=False)
    variables = random_variables(init, maps, scale=0.6)
    taken = {}
    for name, decide in {"random": at_random(0), "soft": jax.nn.softmax}.items():
        afe = routing.rerouted(method, decide).module.enhancement
        apply = functools.partial(afe.apply, train=False)
        _, routes = jax.jit(apply)(variables, maps)
        taken[name] = np.nan_to_num(routes["activity"])
    assert set(taken["random"].ravel()) == {0, 1}
    assert len(np.unique(taken["random"].reshape(9, -1), axis=0)) > 1
    assert ((taken["soft"][:, 1, :2] > 0) & (taken["soft"][:, 1, :2] < 1)).all()
    assert method.module.enhancement.cell is sanet.Cell
