"""`config.gradient_dtype`: a step whose gradients are summed in float32."""

import functools
import importlib
import operator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Literal

from configs import run
from reid_jax import experiment
from reid_jax.backbones.resnet import ResNet
from reid_jax.backbones.vit import VisionTransformer
from reid_jax.benchmark import workloads
from reid_jax.layers.gradients import summed_in
from reid_jax.layers.linear import Conv, Dense
from reid_jax.runtime import sharding
from reid_jax.training import train
from tests.variables import as_a_run_begins, random_variables

# Without, a CPU's compiler leaves out roundings.
EXACT = {"xla_allow_excess_precision": False}

VIT = {"image_size": (16, 16), "patch_size": 8, "stride": (8, 8), "width": 12}
VIT |= {"depth": 2, "heads": 2, "dtype": "bfloat16"}
RESNET = {"blocks": (1, 1), "width": 4, "non_local": True, "dtype": "bfloat16"}
NETWORKS = {"ViT": VisionTransformer(**VIT), "ResNet": ResNet(**RESNET)}


def gradients_and_factors(model, dtype):
    """Gradients of parameters; by path each layer, its inputs and result's gradient.

    The last are gradients of zeros that are added to the results.
    """
    images = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype(np.float32)
    variables = as_a_run_begins(
        random_variables(lambda key, x: model.init(key, x, train=False), images)
    )
    layers = {}

    def forward(params, zeros):
        inputs, results = {}, {}

        def keep(layer, args, kwargs, context):
            module = context.module
            if not isinstance(module, Dense | Conv):
                return layer(*args, **kwargs)
            path = "/".join(module.path)
            layers[path] = module
            inputs[path] = args[0].astype(module.dtype)
            results[path] = layer(*args, **kwargs)
            return results[path] + zeros.get(path, 0)

        with summed_in(dtype), nn.intercept_methods(keep):
            outputs, _ = model.apply(
                {**variables, "params": params},
                images,
                train=True,
                mutable=["batch_stats"],
            )
        leaves = [x for x in jax.tree.leaves(outputs) if x.size]
        loss = sum(jnp.sin(x.astype(jnp.float32)).sum() for x in leaves)
        return loss, (inputs, results)

    params = variables["params"]
    _, (_, shapes) = jax.eval_shape(lambda params: forward(params, {}), params)
    zeros = {path: jnp.zeros(x.shape, x.dtype) for path, x in shapes.items()}
    run = jax.grad(forward, argnums=(0, 1), has_aux=True)
    (found, pulled), (inputs, _) = jax.jit(run, compiler_options=EXACT)(params, zeros)
    return found, {path: (layers[path], inputs[path], pulled[path]) for path in inputs}


def of_kernel(module, inputs, gradient):
    """The kernel's gradient in float64."""
    x, g = np.float64(inputs), np.float64(gradient)
    if isinstance(module, Dense):
        return np.einsum("nc,nd->cd", *(y.reshape(-1, y.shape[-1]) for y in (x, g)))
    size, stride, pad = module.size, module.stride, module.padding
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    high, wide = g.shape[1:3]
    total = np.empty((size, size, x.shape[-1], g.shape[-1]))
    for row, column in np.ndindex(size, size):
        seen = x[:, row:, column:][:, ::stride, ::stride][:, :high, :wide]
        total[row, column] = np.einsum("nhwc,nhwd->cd", seen, g)
    return total


@pytest.mark.parametrize("kind", ["ViT", "ResNet"])
def test_kernels_and_biases_have_float32s_digits(kind):
    lost = {}
    for dtype in ("compute", "float32"):
        found, layers = gradients_and_factors(NETWORKS[kind], dtype)
        assert len(layers) > 5
        lost[dtype] = []
        for path, (module, inputs, gradient) in layers.items():
            own = functools.reduce(operator.getitem, path.split("/"), found)
            wanted = {"kernel": of_kernel(module, inputs, gradient)}
            if module.use_bias:
                rows = np.float64(gradient).reshape(-1, gradient.shape[-1])
                wanted["bias"] = rows.sum(0)
            assert set(own) == set(wanted)
            for name, expected in wanted.items():
                error = np.abs(np.float64(own[name]) - expected).max()
                lost[dtype].append(error / np.abs(expected).max())
    assert max(lost["float32"]) < 2e-6
    assert np.median(lost["compute"]) > 1e-4


CONFIGS = {
    "ViT": ("baseline", "demo", {"model.options.depth": 1}),
    "loop": (
        *("baseline", "demo"),
        {"model.options.scan_blocks": True, "model.options.depth": 2},
    ),
    "sliding": (
        *("baseline", "demo,backbone=transreid"),
        {"model.options.stride": (12, 12), "model.options.depth": 1},
    ),
    "ResNet": ("baseline", "demo,backbone=resnet50", {"model.remat": True}),
    "AAformer": ("aaformer", "demo", {"model.depth": 1}),
    "CpaCol": ("cpacol", "demo", {}),
    "CACE-Net": ("cacenet", "demo", {}),
    "CACE-Net's code": ("cacenet", "demo,mode=code", {}),
    "DROP": ("drop", "demo,row=table7-resnet50", {}),
    "SANet": ("sanet", "demo", {"model.layers": 2}),
}


def differentiated(kind, dtype):
    """Of each stage the jaxpr of all gradients, and their parameters' names."""
    module, argument, fields = CONFIGS[kind]
    config = importlib.import_module(f"configs.{module}").get_config(argument)
    config.update_from_flattened_dict(fields | {"model.dtype": "bfloat16"})
    method = experiment.build_method(config, num_classes=9)
    batch = experiment.example_batch(config, 8)
    variables = jax.eval_shape(method.init, jax.random.key(0), batch)

    def loss(params, rest, batch, key, stage):
        with summed_in(dtype):
            variables = {**rest, "params": params}
            given = {"rng": key, "epoch": 1.0, "stage": stage}
            return method.objective(variables, batch, **given)[0]

    rest = {name: value for name, value in variables.items() if name != "params"}
    paths, _ = jax.tree.flatten_with_path(variables["params"])
    for stage in method.stages:
        gradient = jax.grad(functools.partial(loss, stage=stage))
        traced = jax.make_jaxpr(gradient)(
            variables["params"], rest, batch, jax.random.key(0)
        )
        yield traced.jaxpr, [jax.tree_util.keystr(path) for path, _ in paths]


SUMS = ("dot_general", "conv_general_dilated", "reduce_sum")


def was_narrow(jaxpr, variable):
    """Whether an array was bfloat16 between the sum that it is and its use."""
    makers = {out: made for made in jaxpr.eqns for out in made.outvars}
    seen, ahead = set(), [variable]
    while ahead:
        one = ahead.pop()
        if isinstance(one, Literal) or one in seen or one not in makers:
            continue
        seen.add(one)
        if one.aval.dtype == jnp.bfloat16:
            return True
        made = makers[one]
        if made.primitive.name in SUMS:
            # What a loop has stacked are sums already, and added up here.
            ahead += [x for x in made.invars if of_a_loop(x, makers)]
            continue
        programs = [
            getattr(program, "jaxpr", program)
            for value in made.params.values()
            for program in (value if isinstance(value, tuple) else (value,))
            if hasattr(getattr(program, "jaxpr", program), "eqns")
        ]
        place = made.outvars.index(one)
        if any(was_narrow(inner, inner.outvars[place]) for inner in programs):
            return True
        if not programs:
            ahead += [x for x in made.invars if x.aval.size == one.aval.size]
    return False


def of_a_loop(variable, makers):
    """Whether an array is what a loop has stacked, in whatever shape."""
    made = makers.get(variable)
    while made and made.primitive.name == "reshape":
        made = makers.get(made.invars[0])
    return made is not None and made.primitive.name == "scan"


def narrow(kind, dtype):
    """Names of parameters whose gradients were summed in bfloat16."""
    return [
        name
        for jaxpr, names in differentiated(kind, dtype)
        for name, variable in zip(names, jaxpr.outvars, strict=True)
        if was_narrow(jaxpr, variable)
    ]


def test_a_narrow_sum_is_seen():
    found = set(narrow("ViT", "compute"))
    layers = {"attn": ("proj", "qkv"), "mlp": ("fc1", "fc2")}
    assert found == {
        f"['backbone']{path}['{name}']"
        for path in (
            "['patch_embed']['proj']",
            *(f"['blocks_0']['{a}']['{b}']" for a in layers for b in layers[a]),
        )
        for name in ("kernel", "bias")
    }


@pytest.mark.parametrize("kind", CONFIGS)
def test_no_parameter_is_left_out(kind):
    assert not narrow(kind, "float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_takes_the_configs_dtype(baseline_config, dtype):
    baseline_config.model.dtype = dtype

    def program():
        """As a plan, a benchmark and a run build it."""
        mesh = sharding.make_mesh(jax.devices()[:2])
        method = experiment.build_method(baseline_config, num_classes=9)
        (stage,) = experiment.build_stages(baseline_config, method)
        shapes = experiment.example_batch(baseline_config, stage.batch_size)
        made = workloads.stage_program(baseline_config, method, stage, mesh, shapes)
        return made.step.lower(made.abstract(), shapes).as_text()

    texts = [program()]
    for chosen in ("compute", "float32"):
        baseline_config.gradient_dtype = chosen
        texts.append(program())
    assert texts[0] == texts[1]
    assert (texts[1] == texts[2]) == (dtype == "float32")


def test_a_run_takes_the_configs_dtype(toy_config, tmp_path, monkeypatch):
    class Seen(Exception):
        pass

    def see(*args, gradient_dtype, **options):
        raise Seen(gradient_dtype)

    monkeypatch.setattr(train, "StageProgram", see)
    toy_config.gradient_dtype = "float32"
    with pytest.raises(Seen, match="float32"):
        train.train_and_evaluate(toy_config, str(tmp_path))
    # The config of a run of an earlier version.
    del toy_config.gradient_dtype
    with pytest.raises(Seen, match="compute"):
        train.train_and_evaluate(run.restored(toy_config.to_dict()), str(tmp_path))
