"""Points of a sweep: fields, devices, batches, and mistakes in them."""

import jax
import pytest

from benchmarks import whole_systems
from configs import aaformer
from reid_jax import experiment
from reid_jax.benchmark.sweep import (
    check_embedding,
    check_training,
    choose_devices,
    parse_sweep,
    points,
)
from reid_jax.errors import UserError


@pytest.fixture
def config():
    return aaformer.get_config("demo")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("model.dtype=float32,bfloat16", ("float32", "bfloat16")),
        ("config.model.depth=1,2", (1, 2)),
        ("model.drop_path=0,0.1", (0.0, 0.1)),
        ("model.stride=(16,16),(12,12)", ((16, 16), (12, 12))),
        ("model.stride=((1,2),3),(4,(5,6))", (((1, 2), 3), (4, (5, 6)))),
        ("model.parts_visible=True,False", (True, False)),
        ("stages.train.optimizer.name=sgd", ("sgd",)),
        ("pretrained_grid=None,(14,14)", (None, (14, 14))),
    ],
)
def test_values_have_the_type_of_their_field(config, text, values):
    name, parsed = parse_sweep(text, config)
    assert name == text.partition("=")[0].removeprefix("config.")
    assert parsed == values
    assert [type(value) for value in parsed] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model.dtpye=float32", "did you mean model.dtype"),
        ("model=float32", "no field 'model'"),
        ("model.depth", "VALUE,VALUE"),
        ("model.depth=", "VALUE,VALUE"),
        ("model.depth=1.5", "'1.5' is no int"),
        ("model.depth=True", "is no int"),
        ("model.drop_path=none", "is no float"),
        ("model.stride=(16,16", "is no tuple"),
        ("config.model.depth=1", "given twice; write --sweep=model.depth=VALUE"),
    ],
)
def test_mistakes_in_a_sweep(config, text, message):
    with pytest.raises(UserError, match=message):
        list(points(config, sweeps=["model.depth=3", text]))


def test_every_combination_is_a_point(config):
    made = list(
        points(
            config,
            sweeps=["model.dtype=float32,bfloat16", "model.depth=1,2"],
            devices=[1, 4],
            batches=[16, 32],
        )
    )
    seen = [
        (p.config.model.dtype, p.config.model.depth, len(p.devices), p.batch)
        for p in made
    ]
    assert len(set(seen)) == len(seen) == 2 * 2 * 2 * 2
    assert seen[:5] == [
        ("float32", 1, 1, 16),
        ("float32", 1, 1, 32),
        ("float32", 1, 4, 16),
        ("float32", 1, 4, 32),
        ("float32", 2, 1, 16),
    ]
    assert [p.first for p in made] == [True, False, False, False] * 4
    assert made[-1].fields == {"model.dtype": "bfloat16", "model.depth": 2}
    assert (config.model.dtype, config.model.depth) == ("float32", 4)  # not changed


def test_a_batch_per_device_grows_with_the_devices(config):
    made = points(config, devices=[1, 2, 8], batches=[16], per_device=True)
    assert [p.batch for p in made] == [16, 32, 128]


def test_without_anything_to_sweep_there_is_one_point(config):
    (point,) = points(config)
    assert len(point.devices) == jax.device_count()
    assert point.embedded == config.evaluation.batch_size
    (stage,) = _stages(config)
    assert point.resize(stage) == stage


def test_a_batch_is_made_of_identities(config):
    (point,) = points(config, devices=[4], batches=[32])
    (stage,) = _stages(config)
    resized = point.resize(stage)
    assert (resized.identities, resized.images_per_identity) == (8, 4)
    assert point.embedded == resized.batch_size == 32
    check_training(point, stage)
    check_embedding(point)


@pytest.mark.parametrize(
    ("devices", "batch", "message"),
    [(1, 6, "images_per_identity=4"), (1, 4, "two or more"), (3, 16, "over 3 devices")],
)
def test_batches_that_cannot_be_trained_with(config, devices, batch, message):
    (point,) = points(config, devices=[devices], batches=[batch])
    with pytest.raises(UserError, match=message):
        check_training(point, *_stages(config))
    point.config.model.attention_implementation = "cudnn"
    with pytest.raises(UserError, match="trains on an NVIDIA GPU, and JAX runs on cpu"):
        check_training(point, *_stages(config))


def test_whole_systems_are_not_timed_with_other_batches():
    lines = whole_systems.measure("drop", batch=10, repetitions=1, scripts=None)
    with pytest.raises(UserError, match="images_per_identity=4"):
        next(lines)


def test_batches_that_the_devices_do_not_divide(config):
    (point,) = points(config, devices=[4], batches=[6])
    with pytest.raises(UserError, match="over 4 devices"):
        check_embedding(point)


def test_numbers_that_make_no_sense_are_found_at_every_point(config):
    with pytest.raises(UserError, match=r"evaluation\.pair_block is 0"):
        list(points(config, sweeps=["evaluation.pair_block=4,0"]))


def test_devices_are_the_first_ones():
    assert choose_devices(3) == tuple(jax.devices()[:3])
    for count in (0, 9):
        with pytest.raises(UserError, match="there are 8 devices"):
            choose_devices(count)


def test_devices_are_shared_equally_by_processes(monkeypatch):
    class Device:
        def __init__(self, process_index, number):
            self.process_index, self.number = process_index, number

    made = [Device(process, number) for process in (0, 1) for number in range(4)]
    monkeypatch.setattr(jax, "devices", lambda: made)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    chosen = [(d.process_index, d.number) for d in choose_devices(4)]
    assert chosen == [(0, 0), (0, 1), (1, 0), (1, 1)]
    with pytest.raises(UserError, match="2 processes, which share"):
        choose_devices(3)


def _stages(config):
    return experiment.build_stages(
        config, experiment.build_method(config, num_classes=2)
    )
