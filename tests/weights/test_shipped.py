"""The weights that the library brings, and the demos that start from them."""

import re

import jax
import numpy as np
import pytest

import reid_jax
from configs import aaformer, baseline, cacenet, cpacol, drop, pretrain, sanet
from data_pipelines.synthetic import beds, render, sets
from reid_jax import experiment, weights
from reid_jax.extractor import load
from reid_jax.weights import files, included, shipping


@pytest.mark.parametrize("demo", [aaformer, baseline, cacenet, cpacol, drop, sanet])
def test_demos_start_from_what_is_shipped(demo):
    config = demo.get_config("demo")
    method, variables = _shapes(config)
    loaded, report = weights.load_pretrained(
        variables,
        config.pretrained,
        position_grid=method.position_grid,
        copies=method.pretrained_copies,
    )
    assert jax.tree.structure(loaded) == jax.tree.structure(variables)
    params = {f"params/{path}": path for path in files.flatten(variables["params"])}
    filled = {*report.loaded, *report.copied}
    fresh = {path for name, path in params.items() if name not in filled}
    assert not {path for path in fresh if re.match("backbone/(?!extra_)", path)}
    # What the weights do not fill, and nothing else, learns faster.
    groups = config.stages.train.optimizer.groups
    faster = {name: re.compile(group.pattern) for name, group in groups.items()}
    faster.pop("biases", None)  # CpaCol's, of all layers
    assert fresh == {
        path
        for path in params.values()
        if any(pattern.match(path) for pattern in faster.values())
    }
    mean, std = config.model.mean, config.model.std
    assert weights.other_statistics(config.pretrained, mean, std) == ""


@pytest.mark.parametrize("name", included.names())
def test_what_is_shipped_is_what_its_recipe_makes(name):
    backbone = name.removeprefix(included.PREFIX)
    config = pretrain.get_config(f"backbone={backbone}")
    _, variables = _shapes(config)
    card, arrays = shipping.read(name)
    wanted = {
        path: leaf.shape
        for path, leaf in files.flatten(variables).items()
        if "/classifier/" not in path
    }
    assert {path: array.shape for path, array in arrays.items()} == wanted
    assert card["numbers"] == sum(array.size for array in arrays.values())
    assert card["data"]["name"] == config.data.dataset == "synthetic/pretrain"
    epochs = config.stages.train.epochs
    assert card["config"]["stages"]["train"]["epochs"] == epochs
    assert set(card["metrics"]) == set(config.evaluate_on)


def test_light_and_slow_modules_mean_the_same_names():
    assert load.SHIPPED == included.PREFIX


def test_the_second_stage_of_cpacol_has_one_rate():
    groups = cpacol.get_config("demo").stages.correlate.optimizer.groups
    assert groups == cpacol.get_config("demo,scratch").stages.correlate.optimizer.groups


def test_shipped_weights_know_people_that_they_have_not_seen():
    """Pictures of a test bed, whose people are in no training set."""
    shots = {
        split: [shot for shot in sets.shots("bed_crowd_00", split) if shot.person <= 8]
        for split in beds.SPLITS
    }
    extractor = reid_jax.load("shipped/vit")
    query, gallery = (
        extractor.embed(
            [render.render(shot)[0] for shot in shots[split]], progress=False
        )
        for split in beds.SPLITS
    )
    person = {s: np.array([shot.person for shot in shots[s]]) for s in beds.SPLITS}
    camera = {s: np.array([shot.camera for shot in shots[s]]) for s in beds.SPLITS}
    distance = extractor.distance(query, gallery)
    distance[camera["query"][:, None] == camera["gallery"]] = np.inf
    right = person["gallery"][distance.argmin(1)] == person["query"]
    assert right.mean() > 0.8  # chance is 1/8


def _shapes(config):
    method = experiment.build_method(config, num_classes=3)
    batch = experiment.example_batch(config, 2)
    shapes = dict(jax.eval_shape(method.init, jax.random.key(0), batch))
    kept = ("params", "batch_stats")
    return method, {name: shapes[name] for name in kept if name in shapes}
