"""Values of a config that make no sense end in one message that names the field."""

import importlib
import math
import typing

import pytest

from configs import aaformer, baseline, common
from reid_jax import checks, experiment
from reid_jax.errors import UserError
from reid_jax.runtime import workdir


def _set(config, field, value):
    *parents, name = field.split(".")
    for parent in parents:
        config = config[parent]
    with config.ignore_type():
        config[name] = value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("data.height", h) for h in (7, 0, 100_000_000)),
        ("data.width", 1),
        *(("stages.train.epochs", x) for x in (0.0, -1, math.inf, math.nan, 1e308)),
        *(("stages.train.optimizer.warmup_epochs", x) for x in (math.inf, math.nan)),
        *(("evaluation.every_epochs", x) for x in (math.inf, math.nan, 1e308)),
        ("checkpoint.every_epochs", math.nan),
        ("stages.train.optimizer.name", "lion"),
        ("stages.train.optimizer.milestones", ("a",)),
        ("stages.train.optimizer.milestones", (math.nan,)),
        ("stages.train.optimizer.groups", {"a": 1}),
        ("stages.train.optimizer.learning_rate", math.nan),
        ("stages.train.images_per_identity", 100_000),
        ("stages.train.identities", True),
        ("seed", 99999999999999999999),
        ("evaluate_on", 5),
        ("evaluate_on", (5,)),
        *(("gradient_dtype", x) for x in ("bfloat16", "", True, 32)),
        *(("profile_steps", x) for x in ((15, 10), (10,), (10, 10), (0, 5), (-2, 5))),
        *(("profile_steps", x) for x in (("10:15",), (1, 2.0), (1, True), 7, "none")),
        ("trackers", "wandb"),
        ("trackers", ("jsonl", "tensorbord")),
        ("data.data_dir", "data\0"),
        ("pretrained", "a\0b"),
        ("model.width", 0),
        ("model.stride", (16, 0)),
        ("model.bn_groups", 0),
        ("model.depth", 2**40),
        *(("model.drop_path", x) for x in (1.0, -0.1, math.nan)),
        ("model.label_smoothing", 3.0),
        *(("model.mean", x) for x in ((0.5, 0.5), 0.5)),
        ("model.std", (0.5, 0.5, 0.5, 0.5)),
        ("stages.train.optimizer.momentum", math.nan),
        ("model.stride", ()),
        ("evaluation.pictured", ([1],)),
        ("evaluation.pictured", 5),
        ("augment.steps", ([1],)),
        ("evaluation.rerank", "flip"),
        ("evaluation.rerank", ("flop",)),
        ("evaluation.rerank", (5,)),
        ("evaluation.rerank", ("flip", "flip")),
        ("evaluation.rerank", ("k_reciprocal", "query_expansion")),
        ("evaluation.rerank", ("query_expansion", "flip")),
        ("evaluation.k_reciprocal.k1", 30),
        ("evaluation.query_expansion.alpha", 1.0),
        ("evaluation.search.recall", 0.5),
        ("evaluation.search.by", "sort"),
        ("evaluation.search.by", "approx_max_k"),
    ],
)
def test_a_value_without_sense_is_named(field, value):
    config = aaformer.get_config("demo,scratch")
    checks.check_config(config)
    _set(config, field, value)
    with pytest.raises(UserError, match=rf"^config\.{field}") as error:
        checks.check_config(config)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("k1", 5), ("k2", 21), ("k2", 0), ("lambda_value", 1.2), ("lambda_value", -0.1)],
)
def test_a_field_of_k_reciprocal_without_sense_is_named(field, value):
    config = aaformer.get_config("demo,scratch")
    config.evaluation.rerank = ("flip", "k_reciprocal")
    config.evaluation.k_reciprocal.k1 = 10
    checks.check_config(config)
    _set(config, f"evaluation.k_reciprocal.{field}", value)
    with pytest.raises(UserError, match=r"^config\.evaluation\.k_reciprocal") as error:
        checks.check_config(config)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("heads", 0), ("depth", -1), ("stride", ()), ("stride", ("x",))),
        *(("drop_path", 1.0), ("cameras", -1)),
    ],
)
def test_an_option_of_a_backbone_without_sense_is_named(field, value):
    config = baseline.get_config("demo,scratch")
    checks.check_config(config)
    config.model.options[field] = value
    with pytest.raises(UserError, match=rf"^config\.model\.options\.{field}") as error:
        checks.check_config(config)
    assert len(str(error.value).splitlines()) == 1


def test_options_as_a_whole_dict():
    """As a command line can give them: what is left out has its usual value."""
    config = aaformer.get_config("demo,scratch")
    config.evaluation.rerank = ("k_reciprocal",)
    config.evaluation.k_reciprocal = {"k1": 8}
    checks.check_config(config)
    config.evaluation.k_reciprocal = {"k1": 5}
    with pytest.raises(UserError, match=r"k2 is 6; it is at most k1, which is 5$"):
        checks.check_config(config)
    for given, said in (
        ({"k": 8}, r"\.k is 8; k_reciprocal has k1, k2,"),
        ({"k1": 8.5}, r"\.k1 is 8\.5; it is of type int$"),
        ({"squared": "no"}, r"\.squared is 'no'; it is of type bool$"),
    ):
        config.evaluation.k_reciprocal = given
        with pytest.raises(UserError, match=rf"^config\.evaluation\.k_reci.*{said}"):
            checks.check_config(config)


def test_a_warm_up_that_a_stage_does_not_reach_is_a_remark():
    config = aaformer.get_config("demo,scratch")
    assert list(checks.remarks(config)) == []
    config.stages.train.optimizer.warmup_epochs = config.stages.train.epochs + 1
    checks.check_config(config)
    assert list(checks.remarks(config)) == [
        "config.stages.train ends before its warm-up does"
    ]


def test_circle_by_the_scale_of_others_is_a_remark():
    config = baseline.get_config("demo,scratch")
    config.model.classifier = "circle"
    checks.check_config(config)
    (remark,) = checks.remarks(config)
    assert "classifier_margin=0.25 and classifier_scale=256" in remark
    config.model.classifier_scale = 256.0
    assert list(checks.remarks(config)) == []


def test_all_are_named_at_once():
    config = aaformer.get_config("demo,scratch")
    config.seed, config.data.height = -1, 3
    config.stages.train.optimizer.milestones = (1.0, -2.0)
    with pytest.raises(UserError) as error:
        checks.check_config(config)
    named = [line.split()[0] for line in str(error.value).splitlines()]
    assert named == [
        "config.seed",
        "config.data.height",
        "config.stages.train.optimizer.milestones",
    ]


def test_every_limit_is_a_field():
    fields = workdir.flatten(common.base("x", common.parse("demo,scratch")).to_dict())
    assert fields.keys() >= checks.LIMITS.keys()
    of_stage = {f"stages.train.{name}" for name in checks.LIMITS_OF_STAGE}
    assert fields.keys() >= of_stage


@pytest.mark.parametrize(
    "name", ["", ".x", "os", "reid_jax.models.method", "reid_jax.models.nothing", "no"]
)
def test_a_method_that_is_none_is_named(name):
    config = aaformer.get_config("demo,scratch")
    config.method = name
    with pytest.raises(UserError, match="there are: aaformer, baseline"):
        experiment.build_method(config, num_classes=3)


def test_fields_that_a_method_lacks_are_named():
    config = aaformer.get_config("demo,scratch")
    config.unlock()
    config.model.colour = "red"
    with pytest.raises(UserError, match="'colour'"):
        experiment.build_method(config, num_classes=3)
    config.method = "tests.toy_method"
    config.model = {}
    with pytest.raises(UserError, match="'width'"):
        experiment.build_method(config, num_classes=3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("granularities", None),
        ("granularities", ("a",)),
        ("part_groups", 5),
        ("part_groups", (1, 2)),
        ("stride", ("a",)),
        ("drop_path", math.nan),
        ("margin", math.inf),
        ("label_smoothing", "0.1"),
        ("normalise_scores", 1),
        ("sinkhorn_iterations", 2.5),
    ],
)
def test_a_field_of_the_model_of_another_type_is_named(field, value):
    config = aaformer.get_config("demo,scratch")
    _set(config, f"model.{field}", value)
    with pytest.raises(UserError, match=rf"^config\.model\.{field} is "):
        experiment.build_method(config, num_classes=3)


@pytest.mark.parametrize("name", ["aaformer", "cacenet", "cpacol", "drop", "sanet"])
def test_all_rows_pass(name):
    module = importlib.import_module(f"configs.{name}")
    for row in module.ROWS:
        config = module.get_config(f"demo,row={row}")
        checks.check_config(config)
        method = importlib.import_module(config.method)
        types = typing.get_type_hints(method.Options)
        checks.check_kinds(config.model.to_dict(), types)


def test_average_precisions_are_few():
    config = aaformer.get_config("demo,scratch")
    config.evaluation.ap = "foo"
    with pytest.raises(UserError, match=r"config\.evaluation\.ap is 'foo'; it is one"):
        checks.check_config(config)
