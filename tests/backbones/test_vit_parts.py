import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.backbones import vit, vit_parts
from reid_jax.errors import UserError
from tests.variables import random_variables

TINY = {"image_size": (14, 10), "patch_size": 4, "stride": (4, 4), "width": 12}
TINY |= {"depth": 2, "heads": 3, "mlp_ratio": 2}


def numbered(count):
    """Patches [1, N, 1] that carry their number."""
    return jnp.arange(count)[None, :, None]


def shuffled(count, **arguments):
    found = vit_parts.shift_and_shuffle(numbered(count), **arguments)
    return np.asarray(found)[0, :, 0].tolist()


def test_shift_and_shuffle_by_hand():
    assert shuffled(8, shift=3, groups=2) == [3, 7, 4, 0, 5, 1, 6, 2]
    assert shuffled(6, shift=0, groups=3) == [0, 2, 4, 1, 3, 5]
    assert shuffled(5, shift=0, groups=1) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("count", "groups"), [(128, 2), (210, 2), (242, 2), (12, 4)])
def test_shift_and_shuffle_equals_a_loop(count, groups):
    moved = [(index + 5) % count for index in range(count)]
    length = count // groups
    expected = [
        moved[group * length + place]
        for place in range(length)
        for group in range(groups)
    ]
    assert shuffled(count, shift=5, groups=groups) == expected


def test_last_but_one_patch_fills_the_groups():
    # 1 2 3 4 0 becomes 1 2 3 4 0 4, in groups 1 2 3 and 4 0 4.
    assert shuffled(5, shift=1, groups=2) == [1, 4, 2, 0, 3, 4]


def test_runs_follow_one_another_and_drop_the_rest():
    found = vit_parts.runs(numbered(242), 4)[0, :, :, 0]
    np.testing.assert_array_equal(found, np.arange(240).reshape(4, 60))
    found = vit_parts.runs(numbered(7), 2, length=2)[0, :, :, 0]
    np.testing.assert_array_equal(found, [[0, 1], [2, 3]])


def test_every_part_gets_the_cls_token():
    rng = np.random.default_rng(0)
    cls, parts = rng.normal(size=(2, 3)), rng.normal(size=(2, 4, 5, 3))
    found = np.asarray(vit_parts.with_cls(jnp.asarray(cls), jnp.asarray(parts)))
    assert found.shape == (2, 4, 6, 3)
    for part in range(4):
        np.testing.assert_allclose(found[:, part, 0], cls, rtol=1e-6)
    np.testing.assert_allclose(found[:, :, 1:], parts, rtol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: vit_parts.runs(numbered(3), 4),
        lambda: vit_parts.runs(numbered(3), 2, length=2),
        lambda: vit_parts.shift_and_shuffle(numbered(3), shift=3, groups=1),
        lambda: vit_parts.shift_and_shuffle(numbered(3), shift=1, groups=4),
    ],
)
def test_too_few_patches_are_user_errors(wrong):
    with pytest.raises(UserError, match="patches"):
        wrong()


def test_local_branch_with_the_last_block_s_weights_repeats_it():
    model = vit.VisionTransformer(**TINY)
    images = jnp.asarray(np.random.default_rng(1).normal(size=(2, 14, 10, 3)))
    init = functools.partial(model.init, train=False)
    variables = random_variables(init, images)
    branch = vit_parts.LocalBranch(heads=3, mlp_ratio=2)
    params = variables["params"]
    copied = {"params": {"block": params["blocks_1"], "norm": params["norm"]}}

    @jax.jit
    def run(images):
        outputs = model.apply(variables, images, train=False)
        local = branch.apply(copied, outputs["before_last"], train=False)
        return outputs, local

    outputs, local = run(images)
    np.testing.assert_allclose(local[:, 0], outputs["cls"], atol=1e-6)
    np.testing.assert_allclose(local[:, 1:], outputs["patches"], atol=1e-6)


def test_parameter_count_with_a_local_branch_is_that_of_the_literature():
    """CpaCol's Table VI: 92.74 M, without tokens, positions and classifiers."""
    model = vit.VisionTransformer((256, 128), stride=(11, 11), **vit.SIZES["base"])
    branch = vit_parts.LocalBranch(heads=12)

    def init(images):
        key = jax.random.key(0)
        outputs, backbone = model.init_with_output(key, images, train=False)
        local = branch.init(key, outputs["before_last"], train=False)
        return {"backbone": backbone["params"], "local": local["params"]}

    params = jax.eval_shape(init, jax.ShapeDtypeStruct((1, 256, 128, 3), jnp.float32))
    del params["backbone"]["cls_token"], params["backbone"]["pos_embed"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 92_736_000
