import jax
import jax.numpy as jnp
import pytest

from reid_jax.backbones.vit import VisionTransformer
from reid_jax.benchmark.flops import count_flops


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def test_batched_product():
    def function(a, b):
        return jnp.tanh(jnp.einsum("bij,bjk->bik", a, b)) + 1

    assert count_flops(function, shape(2, 3, 4), shape(2, 4, 5)) == 2 * 2 * 3 * 4 * 5


def convolve(images, kernel, groups=1):
    return jax.lax.conv_general_dilated(
        images,
        kernel,
        (2, 2),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def test_convolution_and_its_gradients():
    images, kernel = shape(2, 8, 6, 3), shape(3, 3, 3, 5)
    forward = 2 * (2 * 4 * 3 * 5) * (3 * 3 * 3)
    assert count_flops(convolve, images, kernel) == forward
    _, cotangents = jax.eval_shape(lambda i, k: (None, convolve(i, k)), images, kernel)
    backward = count_flops(
        lambda i, k, c: jax.vjp(convolve, i, k)[1](c), images, kernel, cotangents
    )
    assert 2.9 < backward / forward < 3.1  # the forward pass, and one for each input


def test_grouped_convolution():
    images, kernel = shape(1, 4, 4, 6), shape(1, 1, 2, 9)
    flops = count_flops(lambda i, k: convolve(i, k, groups=3), images, kernel)
    assert flops == 2 * (3 * 3 * 9) * 2


def test_loops_calls_and_branches():
    product = 2 * 4 * 4 * 4
    square = shape(4, 4)

    def scanned(x):
        return jax.lax.scan(lambda c, _: (jax.jit(jnp.matmul)(c, x), None), x, length=7)

    assert count_flops(scanned, square) == 7 * product

    def branching(x):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ x @ x, lambda: x @ x)

    assert count_flops(branching, square) == 2 * product
    assert count_flops(jax.vmap(lambda x: x @ x), shape(3, 4, 4)) == 3 * product

    def loss(x):
        return jax.checkpoint(lambda x: jnp.sin(jnp.sin(x @ x) @ x))(x).sum()

    recomputed = count_flops(jax.grad(loss), square)
    assert recomputed == (2 + 2 + 4) * product


def test_custom_derivative_is_followed():
    @jax.custom_vjp
    def function(x):
        return x @ x

    function.defvjp(lambda x: (x @ x, x), lambda x, c: (c @ x,))
    assert count_flops(function, shape(4, 4)) == 2 * 4**3
    assert count_flops(jax.grad(lambda x: function(x).sum()), shape(4, 4)) == 4 * 4**3


def test_while_loop_is_refused_only_when_it_matters():
    def loop(body):
        return lambda x: jax.lax.while_loop(lambda c: c.sum() < 9, body, x)

    assert count_flops(loop(lambda c: c + 1), shape(4, 4)) == 0
    with pytest.raises(ValueError, match="while loop"):
        count_flops(loop(lambda c: c @ c), shape(4, 4))


@pytest.mark.parametrize(
    ("size", "stride", "tokens", "published"),
    [
        ((224, 224), 16, 197, 105.4e9 / 3),
        ((256, 128), 16, 129, 68.0e9 / 3),
        ((256, 128), 12, 211, 113.2e9 / 3),
    ],
)
def test_vit_base(size, stride, tokens, published):
    model = VisionTransformer(image_size=size, stride=(stride, stride))
    images = shape(1, *size, 3)
    variables = jax.eval_shape(
        lambda images: model.init(jax.random.key(0), images, train=False), images
    )
    flops = count_flops(
        lambda v, i: model.apply(v, i, train=False)["cls"], variables, images
    )
    layers = 12 * (24 * tokens * 768**2 + 4 * tokens**2 * 768)
    assert flops == layers + 2 * (tokens - 1) * 768**2
    assert abs(flops / published - 1) < 1e-3
