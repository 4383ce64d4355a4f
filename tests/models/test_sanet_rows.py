"""Every row of Tables 3 and 4 at the paper's size: shapes and parameters by hand.

384 x 128 pixels, 24 x 8 places of 1024 channels after the third stage, 751 identities
(Market-1501), cells of 256 channels.
"""

import ast
import re

import jax
import jax.numpy as jnp
import pytest

from configs import sanet as config_file
from reid_jax import experiment
from reid_jax.models import sanet
from reid_jax.models.method import parameter_count

CLASSES, D, C, W = 751, 2048, 1024, 256
RESNET, STAGE = 23_508_032, 14_964_736
"""ResNet-50 without its classifier, and its fourth stage."""

HEAD = 4_719_361
"""9 D 256 + 2 * 256 (normalisation) + 256 + 1."""

IDENTITY = D + D * CLASSES + CLASSES
"""Scale of the normalisation, and a classifier with bias."""


def branches(count):
    """Three stages, and `count` fourth stages with heads."""
    return RESNET - STAGE + count * (STAGE + HEAD + IDENTITY)


def enhancement(*, cells, exits, downs, kernel=3, gates=True):
    """Reduction with normalisation, cells, gates with bias, down paths, expansion."""
    cell = kernel**2 * W**2 + 2 * W
    gate = exits * (W + 1) if gates else 0
    return C * W + 2 * W + cells * cell + gate + downs * 9 * W**2 + W * C


# Exits: 2 of the first layer, 2 + 3 of the second, 2 + 3 + 2 of each further one.
FIVE = {"cells": 12, "exits": 2 + 5 + 7 + 7, "downs": 1 + 2 + 2 + 2}

PARAMETERS = {
    "": branches(5) + enhancement(**FIVE),
    "table3-hpnet": branches(4),
    "table3-global": branches(5),
    "table3-fixed": branches(5) + enhancement(**FIVE, gates=False),
    "table4-3-layers": branches(5) + enhancement(cells=6, exits=7, downs=3),
    "table4-7-layers": branches(5) + enhancement(cells=18, exits=35, downs=11),
    "table4-1x1": branches(5) + enhancement(**FIVE, kernel=1),
    "table4-5x5": branches(5) + enhancement(**FIVE, kernel=5),
    "gate-norm": branches(5) + enhancement(**FIVE) + 2 * FIVE["exits"],
    "local-fixed": branches(4) + enhancement(**FIVE, gates=False),
    "local-adaptive": branches(4) + enhancement(**FIVE),
}


def trace_step(method, batch):
    """Shapes of one training step, without computing it."""
    variables = jax.eval_shape(method.init, jax.random.key(0), batch)

    def step(variables, batch):
        return method.objective(
            variables, batch, rng=jax.random.key(0), epoch=0.0, stage="train"
        )

    loss, _, collections = jax.eval_shape(step, variables, batch)
    assert loss.shape == ()
    shapes = jax.tree.map(lambda leaf: leaf.shape, collections["batch_stats"])
    kept = jax.tree.map(lambda leaf: leaf.shape, variables["batch_stats"])
    assert shapes == kept
    return variables


def test_sizes_of_the_fact_sheet():
    assert 9 * D * 256 + 2 * 256 + 256 + 1 == HEAD
    assert RESNET - STAGE + 5 * STAGE == 83_366_976
    assert RESNET - STAGE + 4 * STAGE == 68_402_240
    assert PARAMETERS[""] == 126_411_013


def test_every_row_is_here():
    assert set(PARAMETERS) == {"", *config_file.ROWS}
    assert set(config_file.LADDER) <= set(PARAMETERS)


def test_the_header_lists_the_rows_of_the_tables():
    listed = re.findall(r"^  (table\S+) +(\S.*)$", sanet.__doc__, re.MULTILINE)
    rows = {
        name: {field.removeprefix("model."): value for field, value in row.items()}
        for name, row in config_file.ROWS.items()
        if name.startswith("table")
    }
    calls = {
        name: ast.parse(f"dict({fields})").body[0].value for name, fields in listed
    }
    assert rows == {
        name: {k.arg: ast.literal_eval(k.value) for k in call.keywords}
        for name, call in calls.items()
    }
    assert {*sanet.Options.__dataclass_fields__} >= {
        f for r in rows.values() for f in r
    }


@pytest.mark.parametrize("row", PARAMETERS)
def test_row(row):
    config = config_file.get_config(f"row={row}" if row else None)
    method = experiment.build_method(config, num_classes=CLASSES)
    batch = experiment.example_batch(config, 64)
    variables = trace_step(method, batch)
    assert parameter_count(variables) == PARAMETERS[row]
    branches = 5 - (row == "table3-hpnet" or row.startswith("local"))
    images = jax.ShapeDtypeStruct((64, 384, 128, 3), jnp.uint8)
    embedding = jax.eval_shape(method.embed, variables, images)
    assert embedding["parts"].shape == (64, branches, D)
    assert embedding["visibility"].shape == (64, branches)
    assert embedding["parts"].dtype == jnp.float32
    distances = jax.eval_shape(method.distance, embedding, embedding)
    assert distances.shape == (64, 64)
    if not row:  # one image takes its own way through the code
        one = jax.eval_shape(
            method.embed, variables, images.update(shape=(1, 384, 128, 3))
        )
        assert one["parts"].shape == (1, branches, D)


@pytest.mark.parametrize("row", [config_file.LADDER[0], config_file.LADDER[-1]])
def test_the_ends_of_the_ladder_work_on_the_demo(row):
    config = config_file.get_config(f"demo,row={row}" if row else "demo")
    method = experiment.build_method(config, num_classes=9)
    trace_step(method, experiment.example_batch(config, 8))


def test_the_paper_is_the_default():
    config = config_file.get_config()
    assert (config.data.height, config.data.width) == (384, 128)
    assert (config.data.dataset, config.pretrained) == ("market1501", "resnet50")
    assert config.augment.steps == ("flip", "colour", "random_crop")
    train = config.stages.train
    assert (train.identities, train.images_per_identity, train.epochs) == (16, 4, 150)
    optimizer = train.optimizer
    assert (optimizer.name, optimizer.learning_rate) == ("sgd", 0.01)
    assert (optimizer.momentum, optimizer.weight_decay) == (0.9, 5e-4)
    assert (optimizer.warmup_epochs, optimizer.milestones) == (0, (120,))
    model = config.model
    assert (model.layers, model.operation, model.triplet_weight) == (5, 3, 0.1)
    assert (model.margin, model.temperature, model.last_stride) == (0.3, 1.0, 1)
    # Queries of section 4.1's data sets; trained on Market-1501.
    protocols = experiment.build_protocols(config)
    assert {p.name: p.valid_queries for p in protocols} == {
        "partial_reid": 300,
        "partial_ilids_o": 119,
        "partial_ilids_p": 119,
    }
    assert {p.train_dataset for p in protocols} == {"market1501"}


@pytest.mark.parametrize(
    ("arg", "kind", "head"),
    [
        ("", "pifpaf", 1),
        ("labels=hpnet", "hpnet", 1),
        ("dataset=synthetic/partial_demo", "parts", 1),
        ("demo", "parts", 1),
    ],
)
def test_labels(arg, kind, head):
    config = config_file.get_config(arg)
    method = experiment.build_method(config, num_classes=3)
    assert method.part_kind == kind
    assert len(method.options.part_groups) == 4
    assert head in method.options.part_groups[0]
    assert method.options.branch_names[0] == "head"
    assert config.evaluate_on == (
        () if "dataset" in arg or arg == "demo" else config_file.PARTIAL
    )
