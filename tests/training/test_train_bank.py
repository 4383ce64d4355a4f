"""A memory bank in the loop: resumed, sharded, and left alone by all but training."""

import json
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from reid_jax import experiment
from reid_jax.errors import UserError
from reid_jax.export import export
from reid_jax.layers.memory_bank import EMPTY
from reid_jax.runtime import checkpoint, sharding, workdir
from reid_jax.training import train

ROWS = 8


@pytest.fixture
def bank_config(toy_config):
    """Ten steps against a bank of three batches of eight rows."""
    toy_config.stages.first.epochs = 2.0
    return toy_config


def run(config, folder, *, until):
    config.max_steps = until
    train.train_and_evaluate(config, str(folder))


def stored(folder, step):
    """A checkpoint's arrays."""
    place = folder.resolve() / "checkpoints" / "last" / str(step) / "state"
    state = ocp.PyTreeCheckpointer().restore(place)
    return jax.tree.map(np.asarray, state | {"rng": jax.random.key_data(state["rng"])})


def losses(folder):
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


@pytest.fixture
def shards(monkeypatch):
    """Shapes of a device's shards of the bank, for every resumed run."""
    found = []
    real = checkpoint.Checkpoints.restore

    def restore(self, *args):
        state = real(self, *args)
        bank = state.collections["bank"]
        found.append({k: x.addressable_shards[0].data.shape for k, x in bank.items()})
        return state

    monkeypatch.setattr(checkpoint.Checkpoints, "restore", restore)
    return found


def test_five_steps_and_five_are_ten(bank_config, tmp_path, on_devices, shards):
    on_devices(ROWS)
    run(bank_config, tmp_path / "straight", until=10)
    run(bank_config, tmp_path / "parts", until=2)
    early = stored(tmp_path / "parts", 2)["collections"]["bank"]
    assert early["embeddings"].shape == (3, ROWS, 1, 6)
    assert early["pointer"] == 2
    assert (early["labels"][2] == EMPTY).all()
    assert (early["labels"][:2] != EMPTY).all()
    for stop in (5, 10):
        run(bank_config, tmp_path / "parts", until=stop)
    assert losses(tmp_path / "parts") == losses(tmp_path / "straight")
    jax.tree.map(
        np.testing.assert_array_equal,
        *(stored(tmp_path / name, 10) for name in ("parts", "straight")),
    )
    # A device holds its rows of every batch, as it does of the images.
    held = {"embeddings": (3, 1, 1, 6), "labels": (3, 1), "pointer": ()}
    assert shards == [held] * 2


def test_a_run_goes_on_with_other_devices(bank_config, tmp_path, on_devices, shards):
    on_devices(ROWS)
    run(bank_config, tmp_path / "8", until=5)
    for count in (2, 1):
        shutil.copytree(tmp_path / "8", tmp_path / str(count))
    for count in (8, 2, 1):
        on_devices(count)
        run(bank_config, tmp_path / str(count), until=10)
        assert shards[-1]["embeddings"] == (3, ROWS // count, 1, 6)
    wanted = stored(tmp_path / "8", 10)["collections"]["bank"]
    for name in ("2", "1"):
        np.testing.assert_allclose(
            losses(tmp_path / name), losses(tmp_path / "8"), rtol=1e-5
        )
        found = stored(tmp_path / name, 10)["collections"]["bank"]
        np.testing.assert_array_equal(found["labels"], wanted["labels"])
        assert found["pointer"] == wanted["pointer"] == 10 % 3
        np.testing.assert_allclose(
            found["embeddings"], wanted["embeddings"], rtol=1e-4, atol=1e-6
        )


def test_only_training_sees_the_bank(bank_config, tmp_path, on_devices):
    on_devices(2)
    run(bank_config, tmp_path / "never", until=5)
    bank_config.evaluation.every_epochs = 1 / 6  # after every step
    run(bank_config, tmp_path / "often", until=5)
    jax.tree.map(
        np.testing.assert_array_equal,
        *(stored(tmp_path / name, 5)["collections"] for name in ("never", "often")),
    )
    _, variables = experiment.restore(
        bank_config, checkpoint.find(str(tmp_path / "often")), sharding.make_mesh()
    )
    assert set(variables) == {"params"}
    folder = export.export_checkpoint(
        bank_config, str(tmp_path / "often"), directory=tmp_path / "export"
    )
    params = ocp.StandardCheckpointer().restore((folder / "params").resolve())
    assert set(params) == {"params"}


@pytest.mark.parametrize(
    ("field", "value", "shape"),
    [
        ("model.bank_batches", 4, r"\(4, 8, 1, 6\)"),
        ("stages.first.images_per_identity", 4, r"\(3, 16, 1, 6\)"),
    ],
)
def test_a_bank_of_another_size_is_an_error(
    field, value, shape, bank_config, tmp_path, on_devices
):
    on_devices(2)
    run(bank_config, tmp_path, until=1)
    before = workdir.flatten(bank_config.to_dict())[field]
    bank_config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=rf"{field}: {before} there, {value} here"):
        run(bank_config, tmp_path, until=2)
    # Even where the run's own record of its config was changed, too.
    record = tmp_path / "config.json"
    record.write_text(bank_config.to_json_best_effort())
    message = rf"bank/embeddings: \(3, 8, 1, 6\) there, {shape} here"
    with pytest.raises(UserError, match=message):
        run(bank_config, tmp_path, until=2)
