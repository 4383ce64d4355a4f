"""Batches from the devices' memory against those of the Grain pipeline: equal."""

import jax
import numpy as np
import pytest

from data_pipelines import prepared, records, transforms
from data_pipelines.part_labels.kinds import UNLABELLED
from data_pipelines.sampling import PKPlan
from reid_jax.errors import UserError
from reid_jax.runtime import sharding
from reid_jax.training import resident, train
from tests.data_pipelines.test_loader import SIZE, MemoryRecords, assert_equal, encoded
from tests.data_pipelines.test_loader import train as train_loader
from tests.training.test_train import _losses

BORDER = {"pad_crop": {"pad": 5}}
STEPS = ("flip", "pad_crop", "random_erasing")


def _loaders(stored, mesh, *, steps=STEPS, params=BORDER, with_parts=False):
    """The same batches from the devices and from Grain."""
    augment = transforms.build(steps, params)
    plan = PKPlan(stored.person, identities=4, images_per_identity=4, seed=2)
    decoded = resident.ResidentSet(stored, mesh, image_size=SIZE, with_parts=with_parts)
    same = {"augment": augment, "seed": 7, "stage_index": 1, "start_step": 3}
    return (
        resident.ResidentLoader(decoded, stored, plan, **same),
        train_loader(stored, plan, with_parts=with_parts, **same),
    )


def _take(it, count):
    batches = [jax.tree.map(np.asarray, next(it)) for _ in range(count)]
    it.close()
    return batches


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize(
    "steps",
    [(), ("flip",), ("random_erasing", "pad_crop"), STEPS],
    ids=lambda steps: "-".join(steps) or "none",
)
def test_batches_equal_those_of_grain(steps, devices):
    stored = MemoryRecords(has_parts=True)
    stored.parts[3] = encoded(np.full((24, 12), UNLABELLED), ".png")
    lone = np.full((240, 120), UNLABELLED)
    lone[0, 0] = 3  # no pixel of the smaller image is the nearest to it
    for record in range(5, 10):
        stored.parts[record] = encoded(lone, ".png")
    mesh = sharding.make_mesh(jax.devices()[:devices])
    pair = _loaders(stored, mesh, steps=steps, with_parts=True)
    there, here = (_take(it, 4) for it in pair)
    assert_equal(there, here)
    parts = np.concatenate([batch["parts"] for batch in here])
    assert (parts == UNLABELLED).all((1, 2)).any()  # the case is among them


def test_without_part_labels_and_from_a_state():
    one, other = _loaders(MemoryRecords(), sharding.make_mesh(jax.devices()[:2]))
    ahead = _take(other, 5)
    next(one)
    assert one.get_state() == {"next_step": 4}
    one.set_state({"next_step": 6})
    assert_equal(_take(one, 2), ahead[3:])


def test_a_batch_lies_on_the_mesh_and_nothing_compiles_again():
    mesh = sharding.make_mesh()
    it, _ = _loaders(MemoryRecords(), mesh)
    batch = next(it)
    next(it)
    wanted = sharding.batch_sharding(mesh)
    assert all(x.sharding.is_equivalent_to(wanted, x.ndim) for x in batch.values())
    assert it._make._cache_size() == 1
    put = sharding.put_batch(batch, mesh)
    assert all(put[name] is batch[name] for name in batch)


def test_a_run_may_go_on_with_or_without(toy_config, tmp_path, monkeypatch):
    real = sharding.make_mesh
    monkeypatch.setattr(sharding, "make_mesh", lambda _=None: real(jax.devices()[:2]))
    straight = train.train_and_evaluate(toy_config, str(tmp_path / "straight"))
    toy_config.max_steps, toy_config.data.resident_bytes = 3, 1 << 20
    assert train.train_and_evaluate(toy_config, str(tmp_path / "run")) == []
    toy_config.max_steps, toy_config.data.resident_bytes = 0, 0
    assert train.train_and_evaluate(toy_config, str(tmp_path / "run")) == straight
    assert _losses(tmp_path / "run") == _losses(tmp_path / "straight")


class TestMistakes:
    @pytest.mark.parametrize(
        ("step", "params"),
        [
            ("colour", {}),
            ("random_crop", {}),
            ("random_erasing", {"random_erasing": {"mode": "pixel"}}),
        ],
    )
    def test_a_step_without_a_version_for_devices(self, step, params):
        augment = transforms.build(("flip", step), params)
        with pytest.raises(UserError, match=r"on the host only.*flip, pad_crop, rand"):
            self._check(MemoryRecords(), augment, 1 << 30)

    def test_too_large(self):
        stored = MemoryRecords(count=30)
        needed = 30 * SIZE[0] * SIZE[1] * 4
        self._check(stored, transforms.build(STEPS), needed)
        with pytest.raises(UserError, match=f"need {needed} bytes .*={needed - 1}"):
            self._check(stored, transforms.build(STEPS), needed - 1)

    def test_before_anything_is_written(self, toy_config, tmp_path):
        toy_config.data.resident_bytes = 1000
        toy_config.stages.first.identities = 8
        toy_config.stages.second.identities = 8
        with pytest.raises(UserError, match=r"resident_bytes=1000\. Raise it"):
            train.train_and_evaluate(toy_config, str(tmp_path))
        assert not (tmp_path / "config.json").exists()

    def _check(self, stored, augment, limit):
        resident.check(stored, augment, image_size=SIZE, with_parts=True, limit=limit)


def test_joined_data_of_which_one_has_labels(tiny_data):
    plain = MemoryRecords(images_each=3)
    plain.filename = str
    labelled = prepared.open_records("tiny", "train", tiny_data)
    stored = records.JoinedRecords([("tiny", labelled), ("plain", plain)])
    assert stored.has_parts
    mesh = sharding.make_mesh(jax.devices()[:4])
    one, other = _loaders(stored, mesh, with_parts=True)
    assert_equal(_take(one, 3), _take(other, 3))
