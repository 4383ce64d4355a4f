"""A broken network is no poor one: what is not finite is named, and not ranked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax import experiment
from reid_jax.errors import UserError
from reid_jax.evaluation import finite
from reid_jax.evaluation.evaluate import Evaluator
from reid_jax.export import export
from reid_jax.runtime import sharding
from tests import toy_method
from tests.evaluation.test_evaluate import toy as toy  # a fixture


@pytest.fixture
def ranked(toy_config, toy):
    """Evaluates the toy's first stage with the variables given."""
    method, _ = toy
    mesh = sharding.make_mesh()
    (protocol,) = experiment.build_protocols(toy_config)
    place = sharding.replicated(mesh)

    def evaluate(variables):  # with a method as it is then
        evaluator = Evaluator(method, mesh, experiment.build_evaluation(toy_config))
        placed = jax.device_put(variables, place)
        return evaluator.evaluate(placed, protocol, stage="first", step=1)

    return evaluate


def test_the_parameter_is_named(toy, ranked):
    _, variables = toy
    # What embeds is whole: it is the network that is not.
    variables["params"]["classifier"]["kernel"][2, 3] = np.nan
    with pytest.raises(UserError, match=r"params/classifier/kernel \(1 of 54\)"):
        ranked(variables)


@pytest.mark.parametrize("name", ["vector", "visibility"])
def test_the_images_are_named(toy, ranked, monkeypatch, name):
    _, variables = toy
    embed = toy_method.Method.embed

    def broken(self, variables, images, camera=None, parts=None):
        out = embed(self, variables, images)
        out["visibility"] = out["visibility"].astype(jnp.float32)
        dark = images.mean((1, 2, 3)) < 110
        out[name] = out[name].at[:, 0].set(jnp.where(dark, jnp.nan, out[name][:, 0]))
        return out

    monkeypatch.setattr(toy_method.Method, "embed", broken)
    with pytest.raises(UserError, match=rf"`{name}` of \d+ of 15 query .*_c1s1_.*jpg"):
        ranked(variables)


def test_a_query_whose_distances_overflow_is_named(toy, ranked, monkeypatch):
    _, variables = toy
    distance = toy_method.Method.distance

    def overflowing(self, query, gallery):
        keys = distance(self, query, gallery)
        return keys.at[2].multiply(1e38).at[2].multiply(1e38)

    monkeypatch.setattr(toy_method.Method, "distance", overflowing)
    with pytest.raises(UserError, match=r"distances of 1 queries .*0020_c1s1_000002"):
        ranked(variables)


def test_half_precision_counts_too():
    x = jnp.array([1.0, jnp.inf, jnp.nan], jnp.bfloat16)
    with pytest.raises(UserError, match=r"params/a \(2 of 3\)"):
        finite.check_variables({"params": {"a": x, "b": np.arange(3)}})
    finite.check_variables({"params": {"a": x[:1]}})


def test_a_broken_network_is_not_exported(toy, toy_config, tmp_path, monkeypatch):
    method, variables = toy
    variables["params"]["base"]["bias"][0] = np.inf
    meta = {"config": {}, "stage": "first"}
    monkeypatch.setattr(export.checkpoint, "find", lambda path: path)
    monkeypatch.setattr(export.checkpoint, "read_meta", lambda folder: meta)
    monkeypatch.setattr(experiment, "restore", lambda *_: (method, variables))
    with pytest.raises(UserError, match="params/base/bias"):
        export.export_checkpoint(toy_config, "run", directory=tmp_path / "out")
    assert not list(tmp_path.iterdir())
