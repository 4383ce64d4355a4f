"""What the tests of CpaCol's extractor do not see of its attention."""

import functools

import jax
import numpy as np
import pytest

from reid_jax.layers.contrast_attn import ContrastAttn
from tests.variables import random_variables

GRID = (6, 4)


@pytest.mark.parametrize("wanted", [False, True])
def test_the_embedding_has_no_gradient_into_the_features_unless_asked(wanted):
    layer = ContrastAttn(GRID, gradient=wanted)
    features = np.random.default_rng(0).normal(size=(2, 24, 12)).astype(np.float32)
    init = functools.partial(layer.init, train=False)
    variables = random_variables(init, features)

    def total(features):
        return layer.apply(variables, features, train=False)["focused"].sum()

    gradient = np.asarray(jax.jit(jax.grad(total))(features))
    assert (gradient != 0).any() == wanted


def test_it_starts_as_the_authors_does():
    """The convolution at N(0, 2 / 9); necks without a bias, as BoT's."""
    layer = ContrastAttn(GRID, num_classes=5)
    init = jax.jit(functools.partial(layer.init, train=False))
    params = init(jax.random.key(0), np.zeros((1, 24, 512), np.float32))["params"]
    kernel = params["conv"]["kernel"]
    assert kernel.shape == (3, 3, 512, 1)
    np.testing.assert_allclose(np.std(kernel), (2 / 9) ** 0.5, rtol=0.05)
    assert params["auxiliary"]["bn"].keys() == {"scale"}
    assert params["auxiliary"]["classifier"].keys() == {"kernel"}
