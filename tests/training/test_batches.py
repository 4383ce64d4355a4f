"""What the batches of a run depend on."""

import dataclasses

import jax
import numpy as np

from data_pipelines import loader, prepared, transforms
from reid_jax.runtime import sharding
from reid_jax.training.batches import TrainingBatches
from tests.training.test_micro_batches import STAGE

STAGES = [
    dataclasses.replace(STAGE, index=index, identities=4, micro_batches=1)
    for index in (0, 1)
]


def first(data_dir, *, stage=0, seed=0, steps=(), **fields):
    """The first batch of a stage."""
    batches = TrainingBatches(
        prepared.open_records("tiny", "train", str(data_dir)),
        STAGES,
        sharding.make_mesh(jax.devices()[:1]),
        augment=transforms.build(steps, {}),
        image_size=(32, 16),
        with_parts=False,
        seed=seed,
        **fields,
    )
    it = batches.of_stage(STAGES[stage], start_step=0)
    batch = next(it)
    it.close()
    return batch


def test_images_are_those_of_the_seed_and_the_stage(tiny_data):
    drawn = {
        tuple(first(tiny_data, stage=stage, seed=seed)["index"].tolist())
        for stage, seed in ((0, 0), (0, 1), (1, 0))
    }
    assert len(drawn) == 3


def test_the_loader_augments_by_the_seed_and_the_stage(tiny_data, monkeypatch):
    plain, flipped = (first(tiny_data, steps=steps) for steps in ((), ("flip",)))
    np.testing.assert_array_equal(plain["index"], flipped["index"])
    assert (plain["image"] != flipped["image"]).any()
    given = []
    real = loader.train_loader
    monkeypatch.setattr(
        loader,
        "train_loader",
        lambda *of, **how: given.append(how) or real(*of, **how | {"num_workers": 0}),
    )
    first(tiny_data, stage=1, seed=5, num_workers=3)
    named = ("seed", "stage_index", "start_step", "num_workers")
    assert [given[0][name] for name in named] == [5, 1, 0, 3]
