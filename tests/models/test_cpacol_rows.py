"""Every row of Tables IV-VI and Figures 7 and 8 at the paper's size: shapes, parameters
and FLOPs, and Table VI's figures.

The numbers follow from the architecture by hand: D = 768, 12 layers, 16 x 16 patches of
256 x 128 pixels at stride 11 (22 x 11 = 242), and Occluded-Duke's 702 identities.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import configs.cpacol
from data_pipelines import transforms
from reid_jax import experiment
from reid_jax.benchmark.flops import count_flops
from reid_jax.errors import UserError
from reid_jax.layers.correlation4d import STACK
from reid_jax.models import cpacol
from reid_jax.models.method import parameter_count

D, LAYERS, ROWS, COLUMNS, CLASSES = 768, 12, 22, 11, 702
N = ROWS * COLUMNS

NORM = 2 * D
BLOCK = 12 * D**2 + 13 * D
"""qkv 3D^2 + 3D, projection D^2 + D, MLP 8D^2 + 5D, two LayerNorms of 2D."""

PATCHES = 16 * 16 * 3 * D + D
TABLE6_BASELINE = PATCHES + (LAYERS + 1) * BLOCK + 2 * NORM
"""Patch projection, 12 blocks and LayerNorm, and the copies of the last ones."""

EMBEDDINGS = D + (1 + N) * D
"""CLS and positions, which the paper's count leaves out."""

HEADS = 5 * (D + D * CLASSES)
"""Five BNNecks (no additive parameter) with classifiers, left out as well."""

HALF = D // 2
MLP = D * HALF + HALF**2 + HALF * D + 2 * (2 * HALF)
"""Three layers without biases and two LayerNorms."""

ATTENTION = 2 * MLP + (HALF + HALF + D) + 9 * D + 2
"""MLP_r, MLP_e with its biases, a 3 x 3 convolution to one channel and its BN."""

AUXILIARY = D + D * CLASSES
"""A BNNeck on the attended mean."""

FROZEN = D
"""The bias of such a neck, which stays 0: the paper's counts include it."""

CHANNELS = 256
OMEGA = 9 * D * CHANNELS + 2 * CHANNELS
HEAD = 128 * 128 + 128 + 128 + 1


def stack(levels):
    """Two biased 2-D kernels and the scale and bias of a GroupNorm in each layer."""
    total, before = 0, levels
    for kernel, _, channels in STACK:
        total += 2 * (kernel**2 * before * channels + channels) + 2 * channels
        before = channels
    return total


def correl(levels, *, alpha=True):
    return levels * OMEGA + stack(levels) + HEAD + alpha * N**2


def test_the_papers_parameter_counts():
    """Table VI counts backbone and branch, ContrastAttn with its heads, and omega."""
    assert TABLE6_BASELINE == 92_736_000
    attention = 3 * (ATTENTION + AUXILIARY + FROZEN)
    assert attention == 6_080_262
    assert 3 * OMEGA == 5_309_952
    in_millions = [
        TABLE6_BASELINE,
        TABLE6_BASELINE + attention,
        TABLE6_BASELINE + attention + 3 * OMEGA,
    ]
    # The text rounds 104.126 up.
    assert [-(-n // 10_000) / 100 for n in in_millions] == [92.74, 98.82, 104.13]
    assert (stack(3), HEAD, N**2) == (386_656, 16_641, 58_564)
    assert correl(3) == 5_771_813


# Row: levels of ContrastAttn, whether there is CorreL, and alpha, fields of the method.
THREE, EXTRACTOR = (3, 5, 7), {"correlation": False}
EXPECTED = {
    "": (THREE, True, {"correlate": "tokens"}),
    "table4-baseline": ((), False, {}),
    "table4-inter": (THREE, False, {"inter_weight": 1.0, "intra_weight": 0.0}),
    "table4-intra": (THREE, False, {"inter_weight": 1.0, "intra_weight": 0.5}),
    "table4-4d": (THREE, True, {"position_embedding": False}),
    "table5-end-to-end": (THREE, True, {"two_stage": False}),
    "table6-baseline": ((), False, {}),
    "table6-attention": (THREE, False, {}),
    "fig7-baseline": ((), False, {}),
    "fig7-idenattn": (THREE, False, {"inter_weight": 0.0, "intra_weight": 0.0}),
    "fig7-inter": (THREE, False, {"inter_weight": 1.0, "intra_weight": 0.0}),
    "fig7-contrastattn": (THREE, False, {"inter_weight": 1.0, "intra_weight": 0.5}),
    "fig8a-1": ((3,), False, {}),
    "fig8a-2": ((3, 5), False, {}),
    "fig8a-3": (THREE, False, {}),
    "fig8a-4": ((3, 5, 7, 9), False, {}),
    "fig8b-135": ((1, 3, 5), False, {}),
    "fig8b-357": (THREE, False, {}),
    "fig8b-579": ((5, 7, 9), False, {}),
    "fig8b-7911": ((7, 9, 11), False, {}),
    **{
        f"fig8c-{w}": (THREE, False, {"inter_weight": w, "intra_weight": 0.0})
        for w in (0.1, 0.5, 1.0, 2.0)
    },
    **{
        f"fig8d-{w}": (THREE, False, {"inter_weight": 1.0, "intra_weight": w})
        for w in (0.1, 0.5, 1.0, 2.0)
    },
    "text-rates": (THREE, True, {}),
    "text-features": (THREE, True, {"correlate": "attended"}),
    "authors-code": (
        THREE,
        True,
        {
            "accumulate": True,
            "rank_decays": (0.75, 0.05, 0.1),
            "contrast_from": 1.0,
            "base_weight": 0.5,
            "verification_reduction": "sum",
            "verification_margin": 0.3,
            "mining": "hard",
            "mining_from": 20.0,
            "fusion_score": "logit",
            "fusion_weight": 0.3,
            "bn_groups": 2,
            "mining_groups": 2,
            "cameras": 8,
        },
    ),
}


def abstract_batch(size=64):
    return {
        "image": jax.ShapeDtypeStruct((size, 256, 128, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32),
        "camera": jax.ShapeDtypeStruct((size,), jnp.int32),
    }


def trace_stage(method, variables, batch, stage):
    """The metrics of one training step, without computing it."""

    def step(variables, batch):
        return method.objective(
            variables,
            batch,
            rng=jax.random.key(0),
            epoch=jnp.float32(0),
            stage=stage,
        )

    loss, metrics, collections = jax.eval_shape(step, variables, batch)
    assert loss.shape == ()
    expected = {"batch_stats": variables["batch_stats"]}
    assert jax.tree.map(jnp.shape, collections) == jax.tree.map(jnp.shape, expected)
    return {*metrics}


@functools.cache
def trace(options):
    """Shapes of parameters, metrics of each stage, of embedding, maps and scores.

    Rows that are the same network under two names are traced once.
    """
    method = cpacol.Method(CLASSES, (256, 128), **dataclasses.asdict(options))
    batch = abstract_batch()
    variables = jax.eval_shape(method.init, jax.random.key(0), batch)
    metrics = {s: trace_stage(method, variables, batch, s) for s in method.stages}
    vector = jax.eval_shape(method.embed, variables, batch["image"])["vector"]
    scorer = method.pair_scorer(method.stages[-1])
    shapes = [vector.shape]
    if scorer is not None:
        maps = jax.eval_shape(scorer.pair_maps, variables, batch["image"])
        query = jax.ShapeDtypeStruct((2, *maps.shape[1:]), maps.dtype)
        candidates = jax.ShapeDtypeStruct((2, 32, *maps.shape[1:]), maps.dtype)
        scores = jax.eval_shape(scorer.score_pairs, variables, query, candidates)
        shapes += [maps.shape, scores.shape]
    return parameter_count(variables), metrics, shapes


def metrics_of(layers, fields):
    """Terms of Eq. 12 that a row has."""
    names = {"loss_id", "loss_triplet", "accuracy"}
    if layers:
        weights = {"inter": 1.0, "intra": 0.5, "auxiliary": 1.0}
        for name, weight in weights.items():
            if fields.get(f"{name}_weight", weight):
                names.add(f"loss_{name}")
    return names


VERIFICATION = {"loss_verification", "pair_accuracy"}
RANKING = {"loss_ranking"}


def test_every_row_of_the_config_is_here():
    assert {*EXPECTED} == {"", *configs.cpacol.ROWS}
    assert {*configs.cpacol.LADDER} <= {*EXPECTED}


@pytest.mark.parametrize("row", EXPECTED)
def test_row(row):
    layers, has_correl, fields = EXPECTED[row]
    config = configs.cpacol.get_config(f"row={row}")
    method = experiment.build_method(config, num_classes=CLASSES)
    for name, value in fields.items():
        assert getattr(method.options, name) == value
    assert method.options.layers == layers
    # The size of these weights is no matter of shapes, unless they are 0.
    weights = ("inter_weight", "intra_weight")
    same = {name: float(getattr(method.options, name) != 0) for name in weights}
    parameters, metrics, shapes = trace(dataclasses.replace(method.options, **same))

    alpha = fields.get("position_embedding", True)
    expected = TABLE6_BASELINE + EMBEDDINGS + HEADS
    expected += len(layers) * (ATTENTION + AUXILIARY)
    expected += has_correl * correl(len(layers), alpha=alpha)
    expected += fields.get("cameras", 0) * D
    assert parameters == expected

    wanted = {"train": metrics_of(layers, fields)}
    if has_correl and fields.get("two_stage", True):
        margin = "verification_margin" in fields
        wanted["correlate"] = VERIFICATION | (RANKING if margin else set())
    elif has_correl:
        wanted["train"] |= VERIFICATION
    assert metrics == wanted
    assert set(method.stages) <= set(config.stages)

    assert shapes[0] == (64, 3840)
    assert len(shapes) == 1 + 2 * has_correl
    if has_correl:
        assert shapes[1:] == [(64, len(layers), ROWS, COLUMNS, CHANNELS), (2, 32)]


# Table VI's GFLOPs: multiply-accumulates of linear layers and convolutions, and four
# operations for each element of a LayerNorm; the products inside attention, the
# classifiers and all that happens between two images are left out.

TOKENS = 1 + N
LINEAR = PATCHES - D, 12 * D**2, 2 * D * HALF + HALF**2
"""MACs of a patch, of a token in a block, and of a patch in MLP_e or MLP_r."""

BASELINE_MACS = N * LINEAR[0] + (LAYERS + 1) * TOKENS * LINEAR[1]
ATTENTION_MACS = 3 * N * (2 * LINEAR[2] + 9 * D)
OMEGA_MACS = 3 * N * 9 * D * CHANNELS
INSIDE_ATTENTION = (LAYERS + 1) * 2 * TOKENS**2 * D
CLASSIFIERS = 5 * D * CLASSES
LAYER_NORMS = 4 * TOKENS * D * (2 * (LAYERS + 1) + 2)
SMALL_NORMS = 4 * 3 * N * 4 * HALF


def test_the_papers_gflops():
    baseline = BASELINE_MACS + LAYER_NORMS
    attention = baseline + ATTENTION_MACS + SMALL_NORMS
    assert [
        round(n / 1e9, 2) for n in (baseline, attention, attention + OMEGA_MACS)
    ] == [22.52, 23.60, 24.89]
    # The differences that the table prints.
    assert round(ATTENTION_MACS / 1e9, 2) == 1.08
    assert round((OMEGA_MACS + 3 * N * 4 * CHANNELS) / 1e9, 2) == 1.29


STRIPE_MACS = 3 * 2 * ROWS * 4 * D
"""The stripes of Eq. 6 are a product of rows and members."""


@pytest.mark.parametrize(
    ("row", "macs"),
    [
        ("table6-baseline", 0),
        ("table6-attention", ATTENTION_MACS + STRIPE_MACS + 3 * D * CLASSES),
    ],
)
def test_the_network_has_these_multiplications(row, macs):
    config = configs.cpacol.get_config(f"row={row}")
    method = experiment.build_method(config, num_classes=CLASSES)
    one = abstract_batch(1)
    variables = jax.eval_shape(method.init, jax.random.key(0), one)
    expected = BASELINE_MACS + INSIDE_ATTENTION + CLASSIFIERS + macs
    assert count_flops(method.embed, variables, one["image"]) == 2 * expected


def test_correlation_has_these_multiplications():
    """omega for each image; for each pair, Eq. 9 and the 4D stack."""
    method = experiment.build_method(configs.cpacol.get_config(), num_classes=CLASSES)
    one = abstract_batch(1)
    variables = jax.eval_shape(method.init, jax.random.key(0), one)
    scorer = method.pair_scorer("correlate")
    image = BASELINE_MACS + INSIDE_ATTENTION + CLASSIFIERS + ATTENTION_MACS
    image += STRIPE_MACS + 3 * D * CLASSES + OMEGA_MACS
    assert count_flops(scorer.pair_maps, variables, one["image"]) == 2 * image

    maps = jax.ShapeDtypeStruct((1, 3, ROWS, COLUMNS, CHANNELS), jnp.float32)
    pair = jax.ShapeDtypeStruct((1, *maps.shape), jnp.float32)
    similarity, before, size = 3 * N**2 * CHANNELS, 3, (ROWS, COLUMNS)
    convolutions = 0
    for kernel, stride, channels in STACK:
        size = tuple(-(-n // stride) for n in size)
        places = (size[0] * size[1]) ** 2
        convolutions += 2 * kernel**2 * before * channels * places
        before = channels
    head = 128 * 128 + 128
    expected = similarity + convolutions + head
    assert count_flops(scorer.score_pairs, variables, maps, pair) == 2 * expected
    assert [round(n / 1e9, 3) for n in (similarity, convolutions)] == [0.045, 0.057]


# The config against the text and the fact sheet.


def test_config_is_the_papers_section_4b():
    config = configs.cpacol.get_config()
    model = config.model
    assert config.data.dataset == "occluded_duke"
    assert (config.data.height, config.data.width) == (256, 128)
    assert (model.patch_size, model.stride) == (16, (11, 11))
    assert (model.depth, model.width, model.heads) == (12, 768, 12)
    assert (model.attention_layers, model.stripes, model.parts) == ((3, 5, 7), 4, 4)
    assert (model.inter_weight, model.intra_weight) == (1.0, 0.5)
    assert model.correlation_channels == 256
    assert config.augment.steps == ("flip", "pad_crop", "random_erasing")
    for stage, rate, epochs in (("train", 8e-3, 140), ("correlate", 1e-2, 180)):
        stage = config.stages[stage]
        assert (stage.identities, stage.images_per_identity) == (16, 4)
        assert stage.epochs == epochs
        optimizer = stage.optimizer
        assert (optimizer.name, optimizer.momentum) == ("sgd", 0.9)
        assert (optimizer.learning_rate, optimizer.weight_decay) == (rate, 1e-4)
        assert (optimizer.warmup_epochs, optimizer.warmup_from) == (5, rate / 100)


@pytest.mark.parametrize(
    ("argument", "images", "rates", "epochs"),
    [
        ("row=text-rates", 64, (0.08, 0.01), (140, 180)),
        ("row=authors-code", 128, (8e-3, 1e-3), (140, 180)),
        ("row=authors-code,dataset=market1501", 128, (8e-3, 1e-3), (120, 120)),
    ],
)
def test_rows_with_other_stages(argument, images, rates, epochs):
    config = configs.cpacol.get_config(argument)
    train, correlate = config.stages.train, config.stages.correlate
    assert train.identities * train.images_per_identity == 64
    assert correlate.identities * correlate.images_per_identity == images
    assert (train.epochs, correlate.epochs) == epochs
    for stage, rate in zip((train, correlate), rates, strict=True):
        assert stage.optimizer.learning_rate == rate
        assert stage.optimizer.warmup_from == pytest.approx(rate / 100)
    # The code has no cameras where the data are not Duke's.
    assert config.model.cameras == (8 if images == 128 and epochs[1] == 180 else 0)


def test_the_authors_augmentation_can_be_built():
    config = configs.cpacol.get_config("row=authors-code")
    fields = config.augment.to_dict()
    steps = fields.pop("steps")
    erasing = transforms.build(steps, fields).steps[-1]
    assert (erasing.mode, erasing.log_aspect) == ("pixel", True)
    with pytest.raises(UserError, match="bank"):
        transforms.build((*steps, "paste_occluder"), fields)


def test_the_authors_noise_is_drawn_in_front_of_the_normalisation():
    """N(0, 1) where black is 0 and white is 1: half of it is black, a sixth white."""
    fields = configs.cpacol.get_config("row=authors-code").augment.to_dict()
    erasing = transforms.build(fields.pop("steps"), fields).steps[-1]
    always = dataclasses.replace(erasing, p=1.0, area=(0.3, 1 / 3))
    image, labels = np.full((256, 128, 3), 7, np.uint8), np.ones((256, 128), np.uint8)
    image, labels = always(image, labels, np.random.default_rng(0))
    noise = image[labels == 0]
    assert len(noise) > 0.29 * labels.size
    assert (noise == 0).mean() == pytest.approx(0.5, abs=0.015)
    assert (noise == 255).mean() == pytest.approx(0.1587, abs=0.015)


def test_every_field_of_the_method_can_be_set_by_the_config():
    config = configs.cpacol.get_config()
    assert config.model.margin is None
    config.model.margin = 0.3
    config.model.attention_layers = (1, 2, 3)
    method = experiment.build_method(config, num_classes=3)
    changed = {"margin": 0.3, "attention_layers": (1, 2, 3)}
    assert method.options == dataclasses.replace(cpacol.Options(), **changed)
