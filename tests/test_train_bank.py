"""The memory bank of DROP in the loop: resumed, sharded, left out of evaluation."""

import json

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from reid_jax import evaluate, experiment, export, train
from reid_jax.errors import UserError
from reid_jax.layers.memory_bank import EMPTY
from reid_jax.runtime import checkpoint, sharding


@pytest.fixture
def on_devices(monkeypatch):
    """Makes the loop use the first n of the simulated devices."""
    real = sharding.make_mesh

    def use(count):
        monkeypatch.setattr(
            sharding, "make_mesh", lambda _=None: real(jax.devices()[:count])
        )

    return use


def run(config, folder, *, until=0):
    config.max_steps = until
    return train.train_and_evaluate(config, str(folder))


def stored(folder, step):
    """A checkpoint's state, as stored."""
    place = folder.resolve() / "checkpoints" / "last" / str(step) / "state"
    return ocp.PyTreeCheckpointer().restore(place)


def losses(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "loss" in row]
    return [row["loss"] for row in rows]


def test_the_bank_is_resumed_exactly_and_sharded_and_not_evaluated(
    drop_config, tmp_path, on_devices, capsys
):
    on_devices(8)
    straight = run(drop_config, tmp_path / "straight")
    # Stopped with a bank of two batches, the third still empty; then with a full one.
    run(drop_config, tmp_path / "parts", until=2)
    bank = stored(tmp_path / "parts", 2)["collections"]["bank"]
    assert bank["pointer"] == 2
    assert bank["embeddings"].shape == (3, 8, 5, 6)
    assert (bank["labels"][2] == EMPTY).all()
    assert (bank["labels"][:2] != EMPTY).all()
    run(drop_config, tmp_path / "parts", until=5)
    assert run(drop_config, tmp_path / "parts") == straight
    assert losses(tmp_path / "parts") == losses(tmp_path / "straight")
    a, b = (stored(tmp_path / name, 6) for name in ("parts", "straight"))
    for item in ("params", "collections", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, a[item], b[item])

    # Saved on eight devices, gone on with on one.
    run(drop_config, tmp_path / "moved", until=3)
    on_devices(1)
    run(drop_config, tmp_path / "moved")
    np.testing.assert_allclose(
        losses(tmp_path / "moved"), losses(tmp_path / "straight"), rtol=1e-4
    )

    # Every verb that does not train goes without the bank.
    method, variables = experiment.restore(
        drop_config, checkpoint.find(str(tmp_path / "straight")), sharding.make_mesh()
    )
    assert set(variables) == {"params", "batch_stats"}
    assert method.row_axes == {"bank": 1}
    folder = export.export_checkpoint(
        drop_config, str(tmp_path / "straight"), directory=tmp_path / "export"
    )
    params = ocp.StandardCheckpointer().restore((folder / "params").resolve())
    assert set(params) == {"params", "batch_stats"}

    # Another choice of embeddings from the same checkpoint (Table 6), and another M.
    drop_config.model.embeddings = ("global",)
    drop_config.model.bank_batches = 2
    entries = evaluate.evaluate_checkpoint(
        drop_config, str(tmp_path / "straight"), workdir=str(tmp_path / "g")
    )
    assert entries[0]["changed"]["model.embeddings"] == ["global"]
    assert "bank_batches is 2; it was trained with 3" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"model\.bank_batches: 3 there, 2 here"):
        run(drop_config, tmp_path / "straight")


@pytest.mark.parametrize(
    ("field", "value", "shape"),
    [
        ("model.bank_batches", 4, r"\(4, 8, 5, 6\)"),
        ("stages.train.images_per_identity", 4, r"\(3, 16, 5, 6\)"),
    ],
)
def test_a_bank_of_another_shape_is_named(
    drop_config, tmp_path, on_devices, field, value, shape
):
    on_devices(2)
    run(drop_config, tmp_path, until=1)
    drop_config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=rf"{field}: \d there, {value} here"):
        run(drop_config, tmp_path, until=2)
    # Also where the run's own record of its config has been changed.
    drop_config.max_steps = 1
    (tmp_path / "config.json").write_text(drop_config.to_json_best_effort())
    with pytest.raises(UserError, match=rf"bank/embeddings: \(3, 8.*there, {shape} h"):
        run(drop_config, tmp_path, until=2)


def test_one_and_eight_devices_end_with_the_same_bank(
    drop_config, tmp_path, on_devices
):
    # Plain gradient descent: Adam amplifies the last digits of small gradients.
    drop_config.stages.train.optimizer.name = "sgd"
    drop_config.stages.train.optimizer.learning_rate = 1e-2
    banks = []
    for count in (1, 8):
        on_devices(count)
        run(drop_config, tmp_path / str(count), until=4)
        banks.append(stored(tmp_path / str(count), 4)["collections"]["bank"])
    np.testing.assert_allclose(
        losses(tmp_path / "8"), losses(tmp_path / "1"), rtol=1e-5
    )
    one, eight = banks
    np.testing.assert_array_equal(one["labels"], eight["labels"])
    assert one["pointer"] == eight["pointer"] == 1
    np.testing.assert_allclose(
        eight["embeddings"], one["embeddings"], atol=1e-4 * one["embeddings"].max()
    )
