"""`parameter` beside flax's own way."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax.errors import ScopeParamNotFoundError, ScopeParamShapeError

from reid_jax.layers.parameters import parameter

INIT = nn.initializers.normal(0.5)


class Flaxs(nn.Module):
    size: int = 3

    @nn.compact
    def __call__(self):
        return self.param("table", INIT, (self.size, 2))


class Ours(Flaxs):
    @nn.compact
    def __call__(self):
        return parameter(self, "table", INIT, (self.size, 2))


class Twice(nn.Module):
    @nn.compact
    def __call__(self):
        inner = Ours(name="inner")
        return inner() + inner()


def test_it_starts_and_is_read_as_flaxs():
    key = jax.random.key(1)
    ours, flaxs = (module.init(key) for module in (Ours(), Flaxs()))
    np.testing.assert_array_equal(ours["params"]["table"], flaxs["params"]["table"])
    np.testing.assert_array_equal(Ours().apply(ours), ours["params"]["table"])


def test_a_module_that_is_called_twice_has_one():
    variables = Twice().init(jax.random.key(0))
    (table,) = jax.tree.leaves(variables["params"])
    np.testing.assert_array_equal(Twice().apply(variables), 2 * table)


@pytest.mark.parametrize("module", [Flaxs, Ours])
def test_another_shape_and_an_absent_one_are_flaxs_errors(module):
    variables = module().init(jax.random.key(0))
    with pytest.raises(ScopeParamShapeError, match=r'in "/".*\(4, 2\).*\(3, 2\)'):
        module(size=4).apply(variables)
    with pytest.raises(ScopeParamNotFoundError, match="table"):
        module().apply({"params": {"other": 1.0}})


def test_the_initializer_is_called_to_start_alone():
    calls = []

    class Counted(nn.Module):
        @nn.compact
        def __call__(self):
            def init(key, shape):
                calls.append(shape)
                return INIT(key, shape)

            return parameter(self, "table", init, (3, 2))

    variables = Counted().init(jax.random.key(0))
    Counted().apply(variables)
    assert calls == [(3, 2)]
