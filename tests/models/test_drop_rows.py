"""Every row of Tables 4 to 9 at the paper's size: shapes, and parameters by hand.

702 identities (Occluded-Duke); HRNet-W32 with its widened streams has 30,881,856
parameters and ResNet-50 without its classifier 23,508,032.
"""

import ast
import dataclasses
import fnmatch
import functools
import re

import jax
import jax.numpy as jnp
import pytest

from configs import drop as configs
from reid_jax import experiment
from reid_jax.backbones.hrnet import HRNet
from reid_jax.errors import UserError
from reid_jax.models import drop
from reid_jax.models.method import parameter_count

CLASSES, BATCH, D, HP = 702, 64, 512, 128
HRNET, RESNET = 30_881_856, 23_508_032
P_REID = {"hrnet": 128 + 256 + 512 + 1024, "resnet": 2048}
STAGES = {"hrnet": 128 + 256 + 512 + 1024, "resnet": 256 + 512 + 1024 + 2048}


def parameters(*, trunk="hrnet", parts=8, decouple=True, axes=1, parsing=True):
    """Convolutions before a normalisation and its classifiers have no bias."""
    count = HRNET if trunk == "hrnet" else RESNET
    parsed = P_REID[trunk]
    if parsing and decouple:
        parsed = HP
        count += STAGES[trunk] * HP + 4 * 2 * HP  # DPU: four 1x1 convolutions, BN
        if axes:
            count += axes * HP + HP * HP + 2 * 2 * HP  # PPE
    if parsing:
        count += 2 * parsed + (parsed + 1) * (parts + 1)  # BN, K parts and background
    count += 3 * (P_REID[trunk] * D + 2 * D)  # reductions of G, F and the parts
    count += 2 * (D + D * CLASSES)  # BNNecks of G and F
    return count + parts * D + parts * D * CLASSES  # and of the parts, joined


# Row: the parameters, and how many vectors of 512 numbers are compared.
ROWS = {
    "table4-baseline": (parameters(decouple=False), 9),
    "table4-decouple": (parameters(axes=0), 9),
    "table4-ppf": (parameters(), 9),
    "table4-pct": (parameters(), 9),
    "table4-ss": (parameters(), 9),
    "table4-all": (parameters(), 9),
    "table5-hct": (parameters(), 9),
    "table5-part-average": (parameters(), 9),
    "table5-pct": (parameters(), 9),
    "table5-pcb-hct": (parameters(trunk="resnet", parts=6, parsing=False), 6),
    "table5-pcb-part-average": (parameters(trunk="resnet", parts=6, parsing=False), 6),
    "table5-pcb-pct": (parameters(trunk="resnet", parts=6, parsing=False), 6),
    "table6-head": (parameters(), 1),
    "table6-torso": (parameters(), 1),
    "table6-right-arm": (parameters(), 1),
    "table6-left-arm": (parameters(), 1),
    "table6-legs": (parameters(), 2),
    "table6-feet": (parameters(), 2),
    "table6-g": (parameters(), 1),
    "table6-f": (parameters(), 1),
    "table6-p": (parameters(), 8),
    "table6-gf": (parameters(), 2),
    "table6-fp": (parameters(), 9),
    "table6-gfp": (parameters(), 10),
    "table7-resnet50": (parameters(trunk="resnet"), 9),
    "table7-resnet50-ibn": (parameters(trunk="resnet"), 9),
    "table7-hrnet": (parameters(), 9),
    **{f"table8-{k}": (parameters(parts=k), 1 + k) for k in range(3, 9)},
    "table9-none": (parameters(axes=0), 9),
    "table9-1d": (parameters(), 9),
    "table9-2d": (parameters(axes=2), 9),
}


def test_the_full_system_by_hand():
    """30,881,856 + 246,784 + 17,024 + 1,417 + 2,952,192 + 3,599,360."""
    assert parameters() == 37_698_633


WHOLE = "table4-all"
"""The row that is traced with all of HRNet-W32. The others have a shorter one: most of
what takes the time, and the same for all."""

SHORT = (1, 0, 0)


@functools.cache
def left_out():
    """Parameters of HRNet-W32 that the shorter one has not."""
    init = functools.partial(HRNet(modules=SHORT).init, train=False)
    images = jax.ShapeDtypeStruct((1, 256, 128, 3), jnp.float32)
    return HRNET - parameter_count(jax.eval_shape(init, jax.random.key(0), images))


def shorten(config):
    """Makes an HRNet the shorter one; returns how many parameters it has less."""
    if config.model.backbone != "hrnet_w32":
        return 0
    config.model.options.modules = SHORT
    return left_out()


TRACED = {}


def traced(method, config):
    """Variables, and collections after a step; once for every network and loss."""
    # Rows that differ in what they test with have the training step in common.
    fields = {**config.model.to_dict(), "embeddings": ()}
    if repr(fields) in TRACED:
        return TRACED[repr(fields)]
    batch = experiment.example_batch(config, BATCH)

    def step(variables, batch):
        loss, _, collections = method.objective(
            variables, batch, rng=jax.random.key(0), epoch=0.0, stage="train"
        )
        return loss, collections

    variables = jax.eval_shape(method.init, jax.random.key(0), batch)
    loss, collections = jax.eval_shape(step, variables, batch)
    assert loss.shape == ()
    TRACED[repr(fields)] = variables, collections
    return variables, collections


@pytest.mark.parametrize("row", ROWS)
def test_row(row):
    config = configs.get_config(f"row={row}")
    assert config.variant == f"occluded_duke-{row}"
    less = 0 if row == WHOLE else shorten(config)
    method = experiment.build_method(config, num_classes=CLASSES)
    variables, collections = traced(method, config)
    wanted, vectors = ROWS[row]
    assert parameter_count(variables) == wanted - less
    rest = {name: value for name, value in variables.items() if name != "params"}
    assert jax.tree.map(lambda x: x.shape, collections) == jax.tree.map(
        lambda x: x.shape, rest
    )
    if method.options.triplet == "pct":
        parts = len(method.options.parts)
        assert collections["bank"]["embeddings"].shape == (4, BATCH, parts, D)
    assert len(method.options.tokens) == vectors


@pytest.mark.parametrize("row", ["table4-all", "table5-pcb-pct", "table6-legs"])
def test_embeddings_and_distances(row):
    config = configs.get_config(f"dataset=occluded_duke,row={row}")
    shorten(config)
    method = experiment.build_method(config, num_classes=CLASSES)
    variables, _ = traced(method, config)
    images = experiment.example_batch(config, BATCH)["image"]
    embedding = jax.eval_shape(method.embed, variables, images)
    vectors = ROWS[row][1]
    assert embedding["parts"].shape == (BATCH, vectors, D)
    assert embedding["visibility"].shape == (BATCH, vectors)
    distance = jax.eval_shape(method.distance, embedding, embedding)
    assert distance.shape == (BATCH, BATCH)


def test_all_rows_are_tested_and_work_on_the_demo():
    assert set(configs.ROWS) == set(ROWS)
    assert set(configs.LADDER) <= {"", *ROWS}
    for data in ("", ",dataset=synthetic/occluded_demo"):
        for row in ROWS:
            config = configs.get_config(f"demo{data},row={row}")
            method = experiment.build_method(config, num_classes=9)
            assert method.part_kind == "parts"
            weights = "none" if row.endswith("-ibn") else "shipped/"
            assert config.pretrained.startswith(weights)
    expected = configs.ROWS["table8-5"]
    for name, value in expected.items():
        assert configs.get_config()[name.split(".")[0]][name.split(".")[1]] == value


DEPENDENT = ("options", "part_groups", "part_names")
"""Fields whose values depend on the labels and the backbone: the header names them."""


def test_the_header_lists_what_every_row_sets():
    table = re.findall(
        r"^  (table\S+) +(.*(?:\n {10,}.*)*)$", drop.__doc__, re.MULTILINE
    )
    listed = {row: {} for row in configs.ROWS}
    for pattern, text in table:
        rows = fnmatch.filter(listed, pattern)
        assert rows, pattern
        fields = ast.parse(f"f({'' if text == 'the defaults' else text})").body[0].value
        for row in rows:
            listed[row] |= {name.id: None for name in fields.args}
            listed[row] |= {k.arg: ast.literal_eval(k.value) for k in fields.keywords}
    named = {row for pattern, _ in table for row in fnmatch.filter(listed, pattern)}
    assert named == set(configs.ROWS)
    for row, fields in configs.ROWS.items():
        assert listed[row] == {
            name.removeprefix("model."): None if name.endswith(DEPENDENT) else value
            for name, value in fields.items()
            if name.startswith("model.")
        }, row


def test_the_config_has_the_fields_of_the_method_and_their_defaults():
    config = configs.get_config("dataset=occluded_duke,part_kind=parts")
    method = experiment.build_method(config, num_classes=3)
    assert method.options == drop.Options()
    config.model.update(margin=0.5, position="2d", embeddings=("global",))
    method = experiment.build_method(config, num_classes=3)
    changed = {"margin": 0.5, "position": "2d", "embeddings": ("global",)}
    assert method.options == dataclasses.replace(drop.Options(), **changed)


def test_the_paper_s_section_4_1():
    config = configs.get_config("dataset=occluded_duke")
    assert (config.data.height, config.data.width) == (256, 128)
    assert config.augment.steps == ("flip", "pad_crop", "random_erasing")
    assert config.augment.pad_crop.pad == 10
    train = config.stages.train
    assert (train.identities * train.images_per_identity, train.epochs) == (64, 120)
    assert (train.optimizer.name, train.optimizer.learning_rate) == ("adam", 3.5e-4)
    assert train.optimizer.milestones == (40, 70)
    model = config.model
    assert (model.bank_batches, model.margin, model.label_smoothing) == (4, 0.3, 0.1)
    assert (model.parsing_weight, model.spatial_smoothing) == (0.4, 0.5)
    assert (model.visible_above, model.embeddings) == (0.4, ("foreground", "parts"))
    assert config.pretrained == "hrnet_w32"


@pytest.mark.parametrize(
    ("dataset", "parts", "kind"),
    [
        ("occluded_duke", 8, "pifpaf"),
        ("occluded_reid_half", 8, "pifpaf"),
        ("p_dukemtmc", 8, "pifpaf"),
        ("market1501", 5, "pifpaf"),
        ("dukemtmc", 5, "pifpaf"),
        ("synthetic/occluded_demo", 8, "parts"),
        ("synthetic/holistic_demo", 5, "parts"),
    ],
)
def test_the_data_set_decides_the_parts(dataset, parts, kind):
    model = configs.get_config(f"dataset={dataset}").model
    assert len(model.part_groups) == len(model.part_names) == parts
    assert model.part_kind == kind
    if kind == "pifpaf" and parts == 8:  # class 1 + c is channel c
        head = sorted(channel + 1 for channel in (*range(5), *range(29, 36)))
        assert sorted(model.part_groups[0]) == head


def test_labels_in_other_numbers():
    model = configs.get_config("dataset=mine,part_kind=parts").model
    assert model.part_kind == "parts"
    assert model.part_groups[0] == (1,)


@pytest.mark.parametrize("kind", ["lip", "hpnet", "nose"])
def test_labels_that_do_not_tell_the_parts_apart(kind):
    with pytest.raises(UserError, match=f"part_kind={kind}: .* parts or pifpaf"):
        configs.get_config(f"dataset=mine,part_kind={kind},row=table8-3")
