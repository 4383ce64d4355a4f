"""Gradients over micro-batches, against the whole batch and against loops."""

import dataclasses
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reid_jax import experiment
from reid_jax.errors import UserError
from reid_jax.experiment import Stage
from reid_jax.models import method
from reid_jax.runtime import sharding
from reid_jax.runtime.optimizer import OptimizerSpec
from reid_jax.training import train
from reid_jax.training.step import StageProgram, make_step, next_state
from tests import toy_method
from tests.models.steps import training_step
from tests.training.test_train import _assert_bitwise_equal, _losses, _state

STAGE = Stage(
    index=0,
    name="first",
    epochs=1.0,
    identities=8,
    images_per_identity=2,
    optimizer=OptimizerSpec("sgd", 0.1),
    micro_batches=4,
)


def _batch(stage):
    rng = np.random.default_rng(0)
    rows = stage.batch_size
    return {
        "image": rng.integers(0, 256, (rows, 32, 16, 3), np.uint8),
        "parts": rng.integers(0, 9, (rows, 32, 16), np.uint8),
        "label": np.arange(rows, dtype=np.int32) // stage.images_per_identity,
    }


class Uncoupled(method.Method):
    """A classifier whose loss is a mean over rows that know nothing of each other."""

    module = nn.Dense(9)

    def init(self, rng, batch):
        return self.module.init(rng, jnp.zeros((1, 32 * 16 * 3)))

    def objective(self, variables, batch, *, rng, epoch, stage):
        del rng, epoch, stage
        rows = batch["image"].reshape(len(batch["image"]), -1) / 255
        logits = self.module.apply(variables, rows)
        found = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        right = jnp.mean(logits.argmax(-1) == batch["label"], dtype=jnp.float32)
        return found.mean(), {"accuracy": right}, {}


def _one_step(made, stage, batch, *, devices=8):
    mesh = sharding.make_mesh(jax.devices()[:devices])
    shapes = jax.eval_shape(lambda: {k: jnp.asarray(x) for k, x in batch.items()})
    shapes = {
        name: jax.ShapeDtypeStruct((stage.micro_batch_size, *x.shape[1:]), x.dtype)
        for name, x in shapes.items()
    }
    program = StageProgram(made, stage, mesh, shapes=shapes, steps_per_epoch=5, seed=0)
    return program.step(program.fresh(), sharding.put_batch(batch, mesh))


def test_without_coupling_it_is_the_whole_batch():
    whole = dataclasses.replace(STAGE, micro_batches=1)
    found, metrics = _one_step(Uncoupled(), STAGE, _batch(STAGE), devices=4)
    wanted, wanted_metrics = _one_step(Uncoupled(), whole, _batch(STAGE))
    for name in ("params", "opt_state"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
            getattr(found, name),
            getattr(wanted, name),
        )
    assert metrics.keys() == wanted_metrics.keys()
    for name in metrics:
        np.testing.assert_allclose(metrics[name], wanted_metrics[name], rtol=1e-5)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_layers_see_the_mesh(micro_batches):
    seen = []

    class Seeing(Uncoupled):
        def objective(self, *args, **kwargs):
            seen.append(jax.sharding.get_abstract_mesh())
            return super().objective(*args, **kwargs)

    stage = dataclasses.replace(STAGE, micro_batches=micro_batches)
    _one_step(Seeing(), stage, _batch(stage))
    assert {(mesh.axis_names, mesh.size) for mesh in seen} == {(("data",), 8)}


def test_with_coupling_it_is_a_loop_over_the_parts(toy_config):
    """The toy draws noise per batch and compares it with a bank of earlier ones."""
    toy, batch = experiment.build_method(toy_config, num_classes=9), _batch(STAGE)
    found, metrics = _one_step(toy, STAGE, batch, devices=2)
    rate = 0.1
    state = next_state(
        jax.jit(toy.init)(
            jax.random.fold_in(jax.random.key(0), 2**31 - 1),
            {"image": jnp.zeros((4, 32, 16, 3))},
        ),
        STAGE,
        optax.sgd(rate),
        seed=0,
    )
    gradients, losses, distances = [], [], []
    collections, key = state.collections, jax.random.fold_in(state.rng, 0)
    step = training_step(toy, "first")
    for index in range(4):
        rows = {name: x[4 * index :][:4] for name, x in batch.items()}
        (loss, (kept, collections)), gradient = step(
            {"params": state.params, **collections},
            rows,
            jax.random.fold_in(key, index),
        )
        gradients.append(gradient)
        losses.append(loss)
        distances.append(kept["distance"])
    wanted = jax.tree.map(lambda p, *g: p - rate * sum(g) / 4, state.params, *gradients)
    wanted = {**wanted, "pair": state.params["pair"]}  # frozen in this stage
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        (found.params, found.collections),
        (wanted, collections),
    )
    assert found.collections["bank"]["pointer"] == 4 % 3  # of the bank's three places
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(metrics["distance"], np.mean(distances), rtol=1e-5)
    assert len(set(map(float, distances))) == 4  # the bank fills from part to part


@pytest.fixture
def cut_toy(toy_config):
    """The toy on batches of 8 x 2 images, as two parts of 8 images."""
    toy_config.stages.first.epochs = toy_config.stages.second.epochs = 1.0
    for stage in toy_config.stages.values():
        stage.identities, stage.micro_batches = 8, 2
    return toy_config


def test_runs_are_the_same_on_any_number_of_devices_and_resumed(
    cut_toy, tmp_path, on_devices
):
    toy_method.TRACES.clear()
    on_devices(2)
    straight = train.train_and_evaluate(cut_toy, str(tmp_path / "straight"))
    assert toy_method.TRACES == ["first", "second"]
    steps = len(_losses(tmp_path / "straight"))
    for stop in (steps - 1, 0):
        cut_toy.max_steps = stop
        resumed = train.train_and_evaluate(cut_toy, str(tmp_path / "parts"))
    assert resumed == straight
    _assert_bitwise_equal(
        _state(tmp_path / "parts", steps), _state(tmp_path / "straight", steps)
    )
    on_devices(8)
    train.train_and_evaluate(cut_toy, str(tmp_path / "eight"))
    np.testing.assert_allclose(
        list(_losses(tmp_path / "eight").values()),
        list(_losses(tmp_path / "straight").values()),
        rtol=1e-5,
    )


def test_without_a_mesh(toy_config):
    """As under `jax.pmap`, where each device has rows of its own."""
    toy = experiment.build_method(toy_config, num_classes=9)
    optimizer = optax.sgd(0.1)
    batch = _batch(STAGE)
    run = make_step(toy, STAGE, optimizer, lambda _: 0.1, steps_per_epoch=5)
    variables = toy.init(jax.random.key(0), {"image": jnp.zeros((4, 32, 16, 3))})
    state, _ = run(next_state(variables, STAGE, optimizer, seed=0), batch)
    assert state.collections["bank"]["pointer"] == 4 % 3


@pytest.mark.parametrize(
    ("fields", "devices", "message"),
    [
        ({"micro_batches": 3}, 1, r"micro_batches=3 does not cut .* 8 identities"),
        ({"micro_batches": 8}, 1, "equal parts of two or more"),
        ({"micro_batches": 4}, 8, "a micro-batch of 4 images cannot be split over 8"),
        ({"micro_batches": 1, "identities": 3}, 4, "a batch of 6 images cannot be"),
    ],
)
def test_batches_that_cannot_be_cut(fields, devices, message):
    mesh = SimpleNamespace(size=devices)
    with pytest.raises(UserError, match=message):
        experiment.check_split(
            dataclasses.replace(STAGE, **fields), mesh, field="config.x"
        )
