"""Every row of Tables II to VI at the paper's size: shapes, parameters, FLOPs.

The numbers follow from the architecture by hand: D = 768, 12 layers, 16 x 16 patches
of 256 x 128 pixels (N = 128), 1041 identities (MSMT17).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

import configs.aaformer
from reid_jax import experiment
from reid_jax.benchmark.flops import count_flops
from reid_jax.errors import UserError
from reid_jax.models import aaformer, baseline
from reid_jax.models.method import parameter_count
from tests.models.headers import rows_of_header

D, LAYERS, N, CLASSES = 768, 12, 128, 1041

BLOCK = 12 * D**2 + 13 * D
"""qkv 3D^2 + 3D, projection D^2 + D, MLP 8D^2 + 5D, two LayerNorms of 2D."""

HEAD = D + D * CLASSES
"""Scale of the normalisation, and a classifier without bias."""

VIT = (16 * 16 * 3 * D + D) + D + (1 + N) * D + LAYERS * BLOCK + 2 * D
"""Patch projection, CLS, positions, blocks, final LayerNorm."""

# row of the config: tokens beside CLS, parts (heads beside the first)
ROWS = {
    "": (5, 5),
    "table2-vit": (0, 0),
    "table2-aaformer": (5, 5),
    "table3-vit": (0, 0),
    "table3-aaformer": (5, 5),
    "table4-vit": (0, 0),
    "table4-pool-pcb": (0, 6),
    "table4-pool-mgn": (0, 5),
    "table4-pool-spreid": (0, 5),
    "table4-pt-pcb": (6, 6),
    "table4-pt-mgn": (5, 5),
    "table4-pt-spreid": (5, 5),
    "table4-6cls": (5, 5),
    "table4-aaformer": (5, 5),
    "table5-nn": (5, 5),
    "table5-ot": (5, 5),
    "table6-4": (4, 4),
    "table6-5": (5, 5),
    "table6-6": (6, 6),
    "table6-23": (5, 5),
    "table6-34": (7, 7),
    "table6-234": (9, 9),
}


def abstract_batch(size=64):
    return {
        "image": jax.ShapeDtypeStruct((size, 256, 128, 3), jnp.uint8),
        "parts": jax.ShapeDtypeStruct((size, 256, 128), jnp.uint8),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32),
    }


@functools.cache
def traced(options):
    """Parameters, shape of the vector and FLOPs of an image; rows that are the same
    network under several names are traced once. Of a scan, one block is traced."""
    method = aaformer.Method(CLASSES, **dataclasses.asdict(options))
    variables, vector = trace(method, abstract_batch())
    one = abstract_batch(1)
    given = one["parts"] if method.embed_inputs else None
    flops = count_flops(method.embed, variables, one["image"], None, given)
    return parameter_count(variables), vector.shape, flops


def trace(method, batch):
    """Shapes of one training step, and of an embedding, without computing either."""
    variables = jax.eval_shape(method.init, jax.random.key(0), batch)

    def step(variables, batch):
        return method.objective(
            variables, batch, rng=jax.random.key(0), epoch=0.0, stage="train"
        )

    loss, _, collections = jax.eval_shape(step, variables, batch)
    assert loss.shape == ()
    expected = {name: variables[name] for name in variables if name != "params"}
    assert jax.tree.map(lambda leaf: leaf.shape, collections) == jax.tree.map(
        lambda leaf: leaf.shape, expected
    )
    parts = batch["parts"] if method.embed_inputs else None
    embedding = jax.eval_shape(method.embed, variables, batch["image"], None, parts)
    return variables, embedding["vector"]


def transformer_flops(patches, tokens):
    """Matrix products of one image: 2 x MACs, quadratic attention included."""
    length = 1 + tokens + patches
    layer = 24 * length * D**2 + 4 * length**2 * D
    return LAYERS * layer + 2 * patches * D * 16 * 16 * 3


def alignment_flops(fields, patches, parts):
    """What parts add: their scores, or pooling. Attention has their rows anyway."""
    if fields["tokens"] == "pool":
        return 2 * parts * patches * D
    if fields["tokens"] != "part":
        return 0
    assignment = fields["assignment"]
    scores = 2 * parts * patches * D if assignment in ("ot", "nn") else 0
    return LAYERS * scores


def test_every_row_of_the_config_is_here():
    assert {*ROWS} == {"", *configs.aaformer.ROWS}


def test_the_header_lists_every_row_with_its_fields():
    assert rows_of_header(aaformer.__doc__) == configs.aaformer.ROWS


def test_rows_are_trained_on_what_the_paper_measures_them_on():
    get = configs.aaformer.get_config
    sets = {"table2": "market1501", "table3": "occluded_duke"}
    for row in configs.aaformer.ROWS:
        wanted = sets.get(row.partition("-")[0], "msmt17")
        assert get(f"row={row}").data.dataset == wanted
    labelled = get("row=table4-pt-spreid,dataset=cuhk03np_labeled")
    assert labelled.data.dataset == "cuhk03np_labeled"
    assert labelled.model.part_kind == "lip"
    demo = get("demo,row=table4-pt-spreid")
    assert demo.data.dataset == "synthetic/holistic_demo"
    assert demo.model.part_kind == "parts"


def test_the_configs_fields_are_the_options_at_their_defaults():
    model = configs.aaformer.get_config().model.to_dict()
    assert aaformer.Options(**model) == aaformer.Options()
    assert {*model} == {field.name for field in dataclasses.fields(aaformer.Options)}


def test_another_backbone_comes_with_its_weights_and_statistics():
    config = configs.aaformer.get_config("backbone=vit_small,row=table6-4")
    assert (config.model.width, config.model.heads) == (384, 6)
    assert config.model.granularities == (4,)
    assert config.pretrained == "deit_small_patch16_224"
    assert config.model.mean == (0.485, 0.456, 0.406)
    assert config.variant == "vit_small-msmt17-table6-4"
    with pytest.raises(UserError, match=":demo has a Transformer of its own"):
        configs.aaformer.get_config("demo,backbone=vit_large")


@pytest.mark.parametrize("row", ROWS)
def test_row(row):
    tokens, parts = ROWS[row]
    config = configs.aaformer.get_config(f"row={row}")
    method = experiment.build_method(config, num_classes=CLASSES)
    fields = config.model.to_dict()
    scanned = dataclasses.replace(method.options, scan_blocks=row != "")
    parameters, shape, flops = traced(scanned)
    assert shape == (64, (1 + parts) * D)
    assert parameters == VIT + 2 * tokens * D + (1 + parts) * HEAD
    classifiers = (1 + parts) * 2 * D * CLASSES
    expected = transformer_flops(N, tokens) + alignment_flops(fields, N, parts)
    assert flops == expected + classifiers


# The README's table: Market-1501 has 751 identities. Forward GFLOPs per image. One of
# each network is traced block by block.
SCAN = {"scan_blocks": True}
MARKET = {
    "AAformer": (aaformer, SCAN, 89_219_328, 23.59),
    "AAformer, stride 12": (aaformer, {"stride": (12, 12)}, 89_282_304, 38.69),
    "ViT baseline": (baseline, {}, 86_323_968, 22.68),
    "ViT baseline, stride 12": (
        baseline,
        {"options": {"stride": (12, 12)} | SCAN},
        86_386_944,
        37.73,
    ),
}


@pytest.mark.parametrize("name", MARKET)
def test_market_figures(name):
    module, fields, parameters, gflops = MARKET[name]
    method = module.Method(751, **fields)
    variables, _ = trace(method, abstract_batch())
    assert parameter_count(variables) == parameters
    flops = count_flops(method.embed, variables, abstract_batch(1)["image"])
    assert round(flops / 1e9, 2) == gflops
