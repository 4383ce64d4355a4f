"""Rematerialised blocks and implementations of attention: the same, in less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import aaformer, baseline, cacenet, cpacol, drop, sanet
from reid_jax import experiment
from reid_jax.backbones import hrnet, resnet, vit, vit_parts
from reid_jax.backbones.self_attention import self_attention
from reid_jax.errors import UserError
from tests.variables import random_variables

VIT = {"image_size": (16, 16), "patch_size": 8, "stride": (8, 8), "width": 8}
VIT |= {"depth": 3, "heads": 2, "mlp_ratio": 2, "drop_path": 0.3}
NETWORKS = {
    "vit": (vit.VisionTransformer, VIT, (2, 16, 16, 3)),
    "local branch": (vit_parts.LocalBranch, {"heads": 2, "drop_path": 0.3}, (2, 5, 8)),
    "resnet": (
        resnet.ResNet,
        {"blocks": (1, 2), "width": 2, "ibn": True},
        (2, 8, 8, 3),
    ),
    "stage": (resnet.Stage, {"blocks": 2, "width": 2}, (2, 4, 4, 6)),
    "hrnet": (
        hrnet.HRNet,
        {"width": 2, "modules": (1, 0, 0), "blocks": 2, "stem": 2, "incre": 1},
        (2, 32, 32, 3),
    ),
}


def _objective(kind, **changes):
    """A loss of parameters that all outputs count in, and where they start."""
    made, fields, shape = NETWORKS[kind]
    model, inputs = (
        made(**fields | changes),
        jax.random.normal(jax.random.key(2), shape),
    )
    variables = random_variables(lambda key, x: model.init(key, x, train=False), inputs)

    def loss(params):
        outputs, new = model.apply(
            {**variables, "params": params},
            inputs,
            train=True,
            mutable=["batch_stats"],
            rngs={"drop_path": jax.random.key(1)},
        )
        there = (x for x in jax.tree.leaves(outputs) if x.size)
        return sum(jnp.square(x).mean() for x in there), new

    return loss, variables["params"]


def _assert_close(found, wanted):
    """To 1e-4 of the largest number of the tree: small ones are sums that cancel.

    Beside float64 the HRNet's gradients have an error of 6e-5 of it, in either form.
    """
    scale = max((np.abs(x).max() for x in jax.tree.leaves(wanted)), default=0)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4 * scale),
        found,
        wanted,
    )


def _compiled(function, *args, **options):
    return jax.jit(function).lower(*args).compile(options)


@pytest.mark.parametrize("kind", NETWORKS)
def test_rematerialised_blocks_have_the_same_gradients_and_keep_less(kind):
    found, kept = [], []
    for remat in (False, True):
        loss, params = _objective(kind, remat=remat)

        def run(params, loss=loss):
            value, back, new = jax.vjp(loss, params, has_aux=True)
            return (value, new, back(jnp.ones(()))), back

        (value, new, gradients), back = _compiled(run, params)(params)
        found.append((value, new, gradients, params))
        kept.append(sum(x.nbytes for x in jax.tree.leaves(back)))
    for one, other in zip(*found, strict=True):
        _assert_close(other, one)
    assert kept[1] < kept[0]


def test_the_compiler_needs_less_memory():
    sizes = []
    for remat in (False, True):
        loss, params = _objective("vit", depth=4, remat=remat)
        # A CPU's compiler drops the barriers that keep blocks from being computed
        # again all at once; accelerators' keep them.
        compiled = _compiled(
            jax.grad(loss, has_aux=True),
            params,
            xla_disable_hlo_passes="cse_barrier_expander",
        )
        sizes.append(compiled.memory_analysis().temp_size_in_bytes)
    assert sizes[1] < 0.6 * sizes[0]


@pytest.mark.parametrize("kind", ["vit", "local branch"])
def test_implementations_of_attention_agree(kind):
    found = []
    for implementation in ("einsum", "xla", "pallas"):
        loss, params = _objective(kind, attention_implementation=implementation)
        run = _compiled(jax.value_and_grad(loss, has_aux=True), params)
        found.append((run(params), params))
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            _assert_close(other, one)


def test_attention_is_the_kernel_s(monkeypatch):
    """In training the one that is asked for; in test mode one that runs anywhere."""
    seen = []

    def kernel(query, key, value, *, implementation):
        seen.append(implementation)
        return query

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    tokens = jnp.ones((1, 2, 1, 4))
    for name in ("einsum", "xla", "cudnn"):
        for train in (True, False):
            self_attention(name, train=train)(tokens, tokens, tokens)
    assert seen == ["xla", "xla", "cudnn", "xla"]
    odd = jnp.ones((1, 3, 1, 4))
    with pytest.raises(
        UserError, match=r"an even number of tokens; these are 3: 'xla'"
    ):
        self_attention("cudnn", train=True)(odd, odd, odd)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_implementation": "flash"}, "one of einsum, xla, cudnn"),
        ({"attention_implementation": "cudnn"}, "bfloat16"),
        (
            {"attention_implementation": "cudnn", "dtype": "bfloat16", "heads": 4},
            "heads of 2",
        ),
    ],
)
def test_implementations_that_cannot_run(changes, message):
    with pytest.raises(UserError, match=message):
        vit.VisionTransformer(**VIT | changes)


def test_what_a_gpu_trains_is_opened_anywhere(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    fields = VIT | {"width": 16, "dtype": "bfloat16", "depth": 1}
    model = vit.VisionTransformer(**fields, attention_implementation="cudnn")
    both = jax.random.key(0), jnp.zeros((1, 16, 16, 3))
    assert jax.eval_shape(lambda *x: model.init(*x, train=False), *both)
    with pytest.raises(UserError, match="NVIDIA GPU, and JAX runs on cpu here: 'xla'"):
        jax.eval_shape(lambda *x: model.init(*x, train=True), *both)


def test_own_attention_is_refused():
    model = vit.VisionTransformer(**VIT, attention_implementation="xla")
    attend = self_attention("einsum", train=False)
    images = jnp.zeros((1, 16, 16, 3))
    with pytest.raises(UserError, match="this network has its own"):
        model.init(jax.random.key(0), images, train=False, attend=attend)


@pytest.mark.parametrize(
    ("arg", "config", "message"),
    [
        ("demo", aaformer, "AAformer's own"),
        ("demo,backbone=resnet50", baseline, "resnet50' has no attention"),
    ],
)
def test_methods_without_ordinary_attention_refuse(arg, config, message):
    made = config.get_config(arg)
    made.model.attention_implementation = "xla"
    with pytest.raises(UserError, match=message):
        experiment.build_method(made, num_classes=2)


@pytest.mark.parametrize("paper", [aaformer, baseline, cacenet, cpacol, drop, sanet])
def test_every_config_reaches_its_backbone(paper):
    config = paper.get_config("demo")
    config.model.remat = True
    method = experiment.build_method(config, num_classes=2)
    assert method.module.backbone.remat
    if "attention_implementation" in config.model and paper is not aaformer:
        config.model.attention_implementation = "xla"
        method = experiment.build_method(config, num_classes=2)
        assert method.module.backbone.attention_implementation == "xla"
