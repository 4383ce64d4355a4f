"""Fields of a config as the command line sets them, parsed as absl's `app.run` does."""

import sys
import types
import typing

import pytest
from absl import flags
from ml_collections import config_flags

from configs import baseline
from reid_jax import checks, command_line, experiment
from reid_jax.errors import UserError
from reid_jax.runtime import workdir
from tests.conftest import CHECKOUT
from tests.test_configs import NAMES

SAMPLES = {float: (0.25, 0.25), tuple: ("(3,4)", (3, 4))}
"""By a field's type: what is written, and what it becomes."""


@pytest.fixture
def config_of(monkeypatch):
    """The config of a command line; the process's own flags are left alone."""

    def parsed(name, *overrides):
        values = flags.FlagValues()
        argv = ["main", f"--config={CHECKOUT}/configs/{name}", *overrides]
        monkeypatch.setattr(flags, "FLAGS", values)
        monkeypatch.setattr(sys, "argv", argv)
        holder = config_flags.DEFINE_config_file("config", flag_values=values)
        assert command_line.parse(argv, config=holder, about="") == ["main"]
        return holder.value

    return parsed


def fields_that_may_be_none(config):
    """Field -> its other type, by the method's documentation, and by what is None."""
    of_model = {
        f"model.{name}": typing.get_args(hint)
        for name, hint in experiment.types_of_fields(config.method).items()
        if name in config.model
    }
    found = {
        name: next(kind for kind in kinds if kind is not types.NoneType)
        for name, kinds in of_model.items()
        if types.NoneType in kinds
    }
    return {"pretrained_grid": tuple} | {
        name: kind for name, kind in found.items() if kind in SAMPLES
    }


def _build(config):
    checks.check_config(config)
    return experiment.build_method(config, num_classes=3)


@pytest.mark.parametrize(
    "config",
    [*(f"{n}.py" for n in NAMES), "cpacol.py:demo", "baseline.py:backbone=transreid"],
)
def test_what_may_be_none_can_be_none_or_not(config, config_of):
    fields = fields_that_may_be_none(config_of(config))
    values = workdir.flatten(config_of(config).to_dict())
    assert {name for name, value in values.items() if value is None} <= fields.keys()
    none = config_of(config, *(f"--config.{field}=None" for field in fields))
    samples = {field: SAMPLES[kind] for field, kind in fields.items()}
    other = config_of(config, *(f"--config.{f}={x}" for f, (x, _) in samples.items()))
    for field, (_, wanted) in samples.items():
        *parents, last = field.split(".")
        for made, value in ((none, None), (other, wanted)):
            for parent in parents:
                made = made[parent]
            assert made[last] == value
    for made in (none, other):
        _build(made)


def test_the_soft_margin_is_a_documented_value(config_of):
    """Of the fields that the test above is about, the one that users change."""
    for name in ("baseline.py", "cpacol.py", "cpacol.py:demo"):
        assert "model.margin" in fields_that_may_be_none(config_of(name))
    assert config_of("baseline.py", "--config.model.margin=None").model.margin is None


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("data.height", r"config\.data\.height is None; it needs a value"),
        ("evaluate_on", r"config\.evaluate_on is None; it needs a value"),
        ("stages.train.optimizer.milestones", r"milestones is None; it needs a value"),
        ("model.options.stride", r"model\.options\.stride is None; it needs a value"),
        ("model.bn_groups", r"model\.bn_groups is None; it is of type int"),
    ],
)
def test_what_needs_a_value_says_so(field, message, config_of):
    config = config_of("baseline.py", f"--config.{field}=None")
    with pytest.raises(UserError, match=message):
        _build(config)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("data.height=4GB", "data.height=4GB: not a whole number, such as 64"),
        ("stages.train.epochs=ten", "epochs=ten: not a number, such as 0.5 or 3e-4"),
    ],
)
def test_what_is_no_number_says_what_is(field, message, config_of):
    with pytest.raises(UserError, match=message):
        config_of("baseline.py", f"--config.{field}")


GROUPS = "--config.stages.train.optimizer.groups"


def test_groups_of_parameters(config_of):
    config = config_of(
        "baseline.py",
        f"{GROUPS}.biases.pattern=.*bias$",
        f"{GROUPS}.biases.learning_rate=2",
        f"{GROUPS}.head.pattern=heads/",
        f"{GROUPS}.head.weight_decay=0.0",
        "--config.seed=3",
    )
    checks.check_config(config)
    assert config.seed == 3
    assert config.stages.train.optimizer.groups.to_dict() == {
        "biases": {"pattern": ".*bias$", "learning_rate": 2.0},
        "head": {"pattern": "heads/", "weight_decay": 0.0},
    }


def test_a_group_that_a_config_has_keeps_its_other_fields(config_of):
    config = config_of("cpacol.py", f"{GROUPS}.biases.weight_decay=0.5")
    assert config.stages.train.optimizer.groups.to_dict() == {
        "biases": {"pattern": ".*bias$", "learning_rate": 2.0, "weight_decay": 0.5}
    }
    assert "weight_decay" not in config.stages.correlate.optimizer.groups.biases


@pytest.mark.parametrize(
    "field",
    ["x.learning_rate=2", "x.pattern=(", "biases.rate=2", "biases.learning_rate=many"],
)
def test_groups_without_sense(field, config_of):
    config = config_of("cpacol.py", f"{GROUPS}.{field}")
    with pytest.raises(UserError, match=r"optimizer\.groups\.(x|biases) is .*pattern"):
        checks.check_config(config)


def test_groups_of_a_stage_that_is_not_there(config_of):
    wrong = "--config.stages.trian.optimizer.groups.biases.pattern=x"
    with pytest.raises(UserError, match=r"no field stages\.trian\.optimizer\.groups"):
        config_of("cpacol.py", wrong)
    with pytest.raises(UserError, match="2 times"):
        config_of("cpacol.py", f"{GROUPS}.x.pattern=a", f"{GROUPS}={{}}")


def test_a_field_that_is_no_name_in_python(config_of):
    near = r"no field evaluation\.k_reciprocal\.lambda; .*\.lambda_value\?"
    with pytest.raises(UserError, match=near):
        config_of("cpacol.py", "--config.evaluation.k_reciprocal.lambda=0.1")


def test_sies_weight(config_of):
    field = "--config.model.options.camera_scale"
    config = config_of("baseline.py:backbone=transreid", f"{field}=1.5")
    assert _build(config).module.backbone.camera_scale == 1.5
    assert baseline.get_config("backbone=transreid").model.options.camera_scale == 3.0
