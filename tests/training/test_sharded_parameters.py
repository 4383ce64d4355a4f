"""Parameters and optimizer state split over devices: the same run in less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from configs import aaformer, baseline
from reid_jax import experiment
from reid_jax.evaluation import evaluate
from reid_jax.runtime import sharding
from reid_jax.training import train
from reid_jax.training.step import StageProgram
from tests.training.test_train import _losses


def _program(config, *, split):
    method = experiment.build_method(config, num_classes=100)
    (stage,) = experiment.build_stages(config, method)
    return StageProgram(
        method,
        stage,
        sharding.make_mesh(),
        shapes=experiment.example_batch(config, stage.batch_size),
        steps_per_epoch=10,
        seed=0,
        shard_parameters=split,
    )


def test_the_largest_axis_that_the_devices_divide_is_split(monkeypatch):
    monkeypatch.setattr(sharding, "LEAST_SPLIT", 64)
    shapes = {
        "kernel": (8, 16),
        "convolution": (3, 3, 8, 12),
        "square": (16, 16),
        "odd": (9, 15),
        "small": (56,),
        "scalar": (),
    }
    tree = {name: jax.ShapeDtypeStruct(x, jnp.float32) for name, x in shapes.items()}
    found = sharding.largest_axis_sharding(tree, sharding.make_mesh())
    assert {name: one.spec for name, one in found.items()} == {
        "kernel": PartitionSpec(None, "data"),
        "convolution": PartitionSpec(None, None, "data"),
        "square": PartitionSpec("data"),
        "odd": PartitionSpec(),
        "small": PartitionSpec(),
        "scalar": PartitionSpec(),
    }


def test_each_device_has_about_an_eighth():
    """Less the arrays that are too small, of which there are few at full width."""
    config = aaformer.get_config()
    config.model.depth = 2
    config.stages.train.optimizer.name = "adam"
    sizes = []
    for split in (False, True):
        program = _program(config, split=split)
        state, layout = program.abstract(), program.layout
        parts = jax.tree.map(
            lambda one, some: [
                4 * np.prod(one.shard_shape(x.shape)) for x in jax.tree.leaves(some)
            ],
            (layout.params, layout.opt_state),
            (state.params, state.opt_state),
        )
        sizes.append(sum(jax.tree.leaves(parts)))
    layer = 12 * 768**2  # of its kernels alone; and two moments of Adam
    assert sizes[0] > 3 * 4 * 2 * layer
    assert 7.8 < sizes[0] / sizes[1] <= 8


def test_a_network_learns_the_same(monkeypatch):
    monkeypatch.setattr(sharding, "LEAST_SPLIT", 64)
    config = baseline.get_config("demo,scratch")
    config.data.height, config.data.width = 32, 16
    config.stages.train.identities, config.stages.train.images_per_identity = 4, 2
    options = config.model.options
    options.width, options.depth, options.heads, options.patch_size = 24, 1, 2, 8
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (8, 32, 16, 3), np.uint8),
        "label": np.arange(8, dtype=np.int32) // 2,
    }
    losses = []
    for split in (False, True):
        program = _program(config, split=split)
        rows = sharding.put_batch(batch, sharding.make_mesh())
        state = program.fresh()
        for _ in range(3):
            state, metrics = program.step(state, rows)
            losses.append(metrics["loss"])
        qkv = state.params["backbone"]["blocks_0"]["attn"]["qkv"]["kernel"]
        (part, *_) = qkv.addressable_shards
        assert part.data.shape == ((24, 9) if split else (24, 72))
    np.testing.assert_allclose(losses[3:], losses[:3], rtol=1e-5)
    assert losses[2] < losses[0]


@pytest.mark.parametrize("split", [False, True])
def test_a_state_begins_with_what_is_given_and_draws_the_rest(monkeypatch, split):
    monkeypatch.setattr(sharding, "LEAST_SPLIT", 64)
    config = baseline.get_config("demo,scratch")
    options = config.model.options
    options.width, options.depth, options.heads, options.patch_size = 24, 1, 2, 8
    program = _program(config, split=split)
    drawn = program.fresh()
    blank = program.blank()
    given = {**blank, "params": dict(blank["params"])}
    backbone = blank["params"]["backbone"]
    for own, place in zip(
        jax.tree.leaves(blank), jax.tree.leaves(drawn.variables), strict=True
    ):
        assert own.sharding.is_equivalent_to(place.sharding, place.ndim)
    given["params"]["backbone"] = jax.tree.map(
        lambda x: jax.device_put(np.full(x.shape, 7, x.dtype), x.sharding), backbone
    )
    begun = program.fresh(given)
    for path, found in jax.tree.leaves_with_path(begun.variables):
        expected = drawn.variables
        for key in path:
            expected = expected[key.key]
        if jax.tree_util.keystr(path).startswith("['params']['backbone']"):
            expected = np.full(found.shape, 7, found.dtype)
        np.testing.assert_array_equal(found, expected)
    qkv = begun.params["backbone"]["blocks_0"]["attn"]["qkv"]["kernel"]
    assert qkv.addressable_shards[0].data.shape == ((24, 9) if split else (24, 72))


def test_runs_cross_between_layouts_and_numbers_of_devices(
    toy_config, tmp_path, on_devices
):
    """Also over the border of stages, each with an optimizer state of its own."""
    toy_config.model.width = 1024  # one kernel is large enough to be split
    for stage in toy_config.stages.values():
        stage.optimizer.name = "adam"
        stage.optimizer.learning_rate = 1e-3
    on_devices(1)
    straight, parts = tmp_path / "straight", str(tmp_path / "parts")
    (wanted,) = train.train_and_evaluate(toy_config, str(straight))
    for stop, devices, split in ((3, 8, True), (7, 2, False)):
        on_devices(devices)
        toy_config.max_steps, toy_config.shard_parameters = stop, split
        assert train.train_and_evaluate(toy_config, parts) == []
    on_devices(4)
    toy_config.max_steps, toy_config.shard_parameters = 0, True
    (found,) = train.train_and_evaluate(toy_config, parts)
    found_losses, wanted_losses = _losses(parts), _losses(straight)
    assert list(found_losses) == list(wanted_losses) == list(range(1, 11))
    np.testing.assert_allclose(
        list(found_losses.values()), list(wanted_losses.values()), rtol=1e-5
    )
    assert found["metrics"] == pytest.approx(wanted["metrics"], abs=0.01)
    on_devices(2)
    (again,) = evaluate.evaluate_checkpoint(
        toy_config, f"{parts}/checkpoints/last/10", workdir=str(tmp_path / "again")
    )
    assert again["metrics"] == pytest.approx(found["metrics"], abs=0.01)
