import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.backbones.attention import attention
from reid_jax.backbones.fused_attention import (
    backward_kernel,
    forward_kernel,
    fused_attention,
    mask_of,
)

# Heads by two, which fill a register, and all at once.
SHAPES = {"two by two": (2, 11, 4, 64), "all at once": (1, 9, 3, 8)}
PARTS = 3


def inputs(shape, dtype=np.float32):
    batch, length, heads, _ = shape
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.normal(size=shape), dtype) for _ in range(4)]
    own = rng.random((batch, heads, PARTS, length)) < 0.4
    own[0, 0, 1] = False  # a part without patches
    return arrays, own


def by_loops(arrays, own, parts_visible):
    """The output in float64, a token at a time."""
    query, key, value = (np.float64(x) for x in arrays[:3])
    output = np.zeros(query.shape)
    for b, t, h in np.ndindex(query.shape[:3]):
        sees = np.ones(query.shape[1], bool)
        if 1 <= t <= PARTS:
            sees = own[b, h, t - 1]
        elif not parts_visible:
            sees[1 : 1 + PARTS] = False
        if not sees.any():
            continue
        logits = key[b, sees, h] @ query[b, t, h] / np.sqrt(query.shape[-1])
        shares = np.exp(logits - logits.max())
        output[b, t, h] = shares @ value[b, sees, h] / shares.sum()
    return output


@pytest.mark.parametrize("parts_visible", [True, False])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_kernel_equals_loops(shape, parts_visible):
    (*arrays, _), own = inputs(shape)
    found = forward_kernel(parts_visible, *arrays, own, interpret=True)
    wanted = by_loops(arrays, own, parts_visible)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert not found[0, 2, 0].any()  # of the part without patches


@pytest.mark.parametrize("parts_visible", [True, False])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_kernels_gradients_are_those_of_the_plain_form(shape, parts_visible):
    (*arrays, gradient), own = inputs(shape)
    mask = mask_of(own, parts_visible)

    @jax.jit
    def plain(*arrays):
        return jax.vjp(lambda *x: attention(*x, mask)[0], *arrays)[1](gradient)

    found = backward_kernel(parts_visible, *arrays, own, gradient, interpret=True)
    for one, wanted in zip(found, plain(*arrays), strict=True):
        np.testing.assert_allclose(one, wanted, atol=1e-5)
        assert np.isfinite(one).all()


def test_half_precision_has_its_own_digits():
    (*arrays, gradient), own = inputs(SHAPES["two by two"], jnp.bfloat16)
    output = forward_kernel(True, *arrays, own, interpret=True)
    assert output.dtype == jnp.bfloat16
    wanted = by_loops(arrays, own, True)
    np.testing.assert_allclose(np.float64(output), wanted, atol=0.03)
    found = backward_kernel(True, *arrays, own, gradient, interpret=True)
    assert {x.dtype for x in found} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("own", [True, False])
def test_elsewhere_it_is_the_plain_form(own):
    (*arrays, gradient), subsets = inputs(SHAPES["all at once"])
    subsets = subsets if own else None
    mask = mask_of(subsets, False) if own else None

    def both(function):
        @jax.jit
        def run(*arrays):
            output, pull = jax.vjp(function, *arrays)
            return output, *pull(gradient)

        return run(*arrays)

    fused = functools.partial(fused_attention, own=subsets, parts_visible=False)
    found = both(lambda *x: fused(*x) if own else fused_attention(*x))
    for one, wanted in zip(found, both(lambda *x: attention(*x, mask)[0]), strict=True):
        np.testing.assert_allclose(one, wanted, atol=1e-5)


def test_a_tpu_has_a_kernel_each_way():
    (*arrays, gradient), own = inputs(SHAPES["two by two"], jnp.bfloat16)

    @jax.jit
    def step(*arrays):
        output, pull = jax.vjp(lambda *x: fused_attention(*x, own), *arrays)
        return output, *pull(gradient)

    lowered = step.trace(*arrays).lower(lowering_platforms=("tpu",)).as_text()
    assert lowered.count("tpu_custom_call") == 2
    assert "exponential" not in lowered  # the plain form is not beside it
