"""Blocks in a loop: the same network from the same parameters, in a smaller program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import aaformer, baseline
from reid_jax import experiment
from reid_jax.backbones.vit import VisionTransformer
from reid_jax.errors import UserError
from tests.variables import random_variables

FIELDS = {"image_size": (16, 16), "patch_size": 8, "stride": (8, 8), "width": 8}
FIELDS |= {"depth": 4, "heads": 2, "mlp_ratio": 2, "drop_path": 0.4}
IMAGES = np.random.default_rng(0).normal(size=(6, 16, 16, 3)).astype(np.float32)


def first_half(query, key, value):
    """An attention of one's own, that keeps something of each layer."""
    weights = jax.nn.softmax(jnp.einsum("blhd,bmhd->bhlm", query, key[:, :2]))
    kept = {"weights": weights}
    return jnp.einsum("bhlm,bmhd->blhd", weights, value[:, :2]), kept


def network(**changes):
    return VisionTransformer(**FIELDS | changes)


@pytest.fixture(scope="module")
def params():
    init = network().init
    return random_variables(
        lambda key, x: init(key, x, train=False, attend=first_half), IMAGES
    )["params"]


def outputs_and_gradients(model, *, train):
    def loss(params):
        outputs = model.apply(
            {"params": params},
            IMAGES,
            train=train,
            attend=first_half,
            rngs={"drop_path": jax.random.key(3)},
        )
        leaves = (x for x in jax.tree.leaves(outputs) if x.size)
        return sum(jnp.square(x).mean() for x in leaves), outputs

    return jax.jit(jax.grad(loss, has_aux=True))


@pytest.mark.parametrize(
    ("train", "changes"),
    [(True, {}), (True, {"remat": True}), (False, {})],
    ids=["train", "remat", "test"],
)
def test_the_same_outputs_and_gradients(params, train, changes):
    wanted, found = (
        outputs_and_gradients(network(scan_blocks=scan, **changes), train=train)(params)
        for scan in (False, True)
    )
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(found, wanted, strict=True):
        scale = max(np.abs(x).max() for x in jax.tree.leaves(other) if x.size)
        jax.tree.map(
            lambda a, b, s=scale: np.testing.assert_allclose(
                a, b, atol=1e-6 * s, rtol=0
            ),
            one,
            other,
        )


def test_paths_are_dropped(params):
    """Else the comparison above would say nothing about random numbers."""
    model = network(scan_blocks=True)
    _, trained = outputs_and_gradients(model, train=True)(params)
    _, tested = outputs_and_gradients(model, train=False)(params)
    assert np.abs(trained["cls"] - tested["cls"]).max() > 1e-3


def test_the_program_has_one_block(params):
    def products(**changes):
        step = outputs_and_gradients(network(**changes), train=True)
        return step.lower(params).as_text().count("stablehlo.dot_general")

    other = 2  # of the patches' embedding and its gradient
    assert products(scan_blocks=True) < products() / 4 + 2 * other


def test_the_same_parameters_at_first():
    trees = (
        network(scan_blocks=scan).init(jax.random.key(0), IMAGES, train=False)
        for scan in (False, True)
    )
    jax.tree.map(np.testing.assert_array_equal, *trees)


def test_layers_between_blocks_refuse(params):
    with pytest.raises(UserError, match="no place between"):
        network(scan_blocks=True).apply(
            {"params": params}, IMAGES, train=False, between=lambda _, tokens: tokens
        )


def test_configs_reach_the_backbone():
    for config, fields in (
        (aaformer.get_config("demo"), lambda c: c.model),
        (baseline.get_config("demo"), lambda c: c.model.options),
        (baseline.get_config("demo,backbone=transreid"), lambda c: c.model.options),
    ):
        fields(config).scan_blocks = True
        method = experiment.build_method(config, num_classes=2)
        assert method.module.backbone.scan_blocks
