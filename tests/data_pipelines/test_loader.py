"""Batches of the Grain pipelines against rows put together by hand."""

import errno
import io
import itertools
import multiprocessing
import multiprocessing.synchronize
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
import types

import cv2
import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from data_pipelines import images, loader, store, transforms
from data_pipelines.prepared import open_records
from data_pipelines.readers import market1501
from data_pipelines.sampling import PKPlan
from reid_jax.errors import UserError
from tests.waiting import PATIENCE

SIZE = (32, 16)


class MemoryRecords:
    """Stands in for `records.Records`, with or without part labels."""

    parts_kind = "parts"
    resize = "bilinear"

    def __init__(self, count=30, has_parts=False, images_each=5):
        rng = np.random.default_rng(0)
        self.person = (np.arange(count) // images_each + 1).astype(np.int32)
        self.camera = (np.arange(count) % 3).astype(np.int32)
        self.has_parts = has_parts
        self.images = [
            encoded(rng.integers(0, 256, (24, 12, 3)), ".jpg") for _ in range(count)
        ]
        self.parts = [
            encoded(rng.integers(0, 9, (24, 12)), ".png") for _ in range(count)
        ]

    def __len__(self):
        return len(self.person)

    def __getitem__(self, index):
        record = {"image": self.images[index], "filename": f"{index:04}_c1.jpg"}
        return record | ({"parts": self.parts[index]} if self.has_parts else {})


def encoded(array, suffix):
    return cv2.imencode(suffix, array.astype(np.uint8))[1].tobytes()


def plan_of(stored, p=3, k=4, seed=2):
    return PKPlan(stored.person, identities=p, images_per_identity=k, seed=seed)


def train(stored, plan=None, **changes):
    settings = {
        "augment": transforms.build(["flip", "pad_crop", "random_erasing"]),
        "image_size": SIZE,
        "seed": 7,
    }
    return loader.train_loader(stored, plan or plan_of(stored), **settings | changes)


def take(it, count):
    try:
        return list(itertools.islice(it, count))
    finally:
        it.close()


def assert_equal(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)
            assert a[key].dtype == b[key].dtype


def test_a_batch_is_its_rows_put_together_by_hand():
    stored = MemoryRecords(has_parts=True)
    stored.person[10:15] = 0
    plan = plan_of(stored)
    augment = transforms.build(["flip", "pad_crop", "random_erasing"])
    got = take(train(stored, plan, stage_index=3, with_parts=True), 9)
    for step, batch in enumerate(got):
        assert batch["image"].shape == (12, *SIZE, 3)
        for row, index in enumerate(plan.batch(step)):
            image = cv2.imdecode(
                np.frombuffer(stored.images[index], np.uint8), cv2.IMREAD_COLOR
            )[..., ::-1]
            parts = cv2.imdecode(
                np.frombuffer(stored.parts[index], np.uint8), cv2.IMREAD_GRAYSCALE
            )
            image, parts = augment(
                images.resize(np.ascontiguousarray(image), SIZE),
                images.resize_parts(parts, SIZE),
                np.random.default_rng([7, 3, step * 12 + row]),
            )
            np.testing.assert_array_equal(batch["image"][row], image)
            np.testing.assert_array_equal(batch["parts"][row], parts)
            assert batch["index"][row] == index
            assert batch["person"][row] == stored.person[index]
            assert batch["camera"][row] == stored.camera[index]
            assert batch["label"][row] == plan.labels[index] >= 0


def test_types_of_a_training_batch():
    (batch,) = take(train(MemoryRecords(), with_parts=True), 1)
    types = {key: value.dtype.name for key, value in batch.items()}
    integers = ("label", "person", "camera", "index")
    assert types == dict.fromkeys(integers, "int32") | {
        "image": "uint8",
        "parts": "uint8",
    }


@pytest.mark.parametrize("hosts", [2, 3, 4])
def test_hosts_together_read_the_global_batch(hosts):
    stored = MemoryRecords()
    whole = take(train(stored), 4)
    shares = [
        take(train(stored, process_index=i, process_count=hosts), 4)
        for i in range(hosts)
    ]
    joined = [
        {key: np.concatenate([s[key] for s in step]) for key in step[0]}
        for step in zip(*shares, strict=True)
    ]
    assert_equal(joined, whole)


def test_a_host_decodes_only_its_rows():
    stored = MemoryRecords()
    plan = plan_of(stored)
    foreign = np.setdiff1d(np.arange(30), [plan.batch(s)[6:] for s in range(2)])
    for index in foreign:
        stored.images[index] = b"not decoded"
    it = train(stored, plan, process_index=1, process_count=2)
    for step, batch in enumerate(take(it, 2)):
        np.testing.assert_array_equal(batch["index"], plan.batch(step)[6:])


def test_stage_and_seed_change_the_augmentation_only():
    stored = MemoryRecords()
    base, stage, seed = (
        take(train(stored, **c), 3) for c in ({}, {"stage_index": 1}, {"seed": 8})
    )
    for other in (stage, seed):
        for a, b in zip(base, other, strict=True):
            np.testing.assert_array_equal(a["index"], b["index"])
            assert (a["image"] != b["image"]).any()


def test_starting_at_a_step_equals_skipping_to_it():
    stored = MemoryRecords()
    straight = take(train(stored), 9)
    assert_equal(take(train(stored, start_step=5), 4), straight[5:])


def test_state_continues_exactly_also_elsewhere_in_the_stream():
    stored = MemoryRecords()
    straight = take(train(stored), 9)
    first = train(stored)
    for _ in range(4):
        next(first)
    state = first.get_state()
    next(first)
    first.set_state(state)
    assert_equal(take(first, 5), straight[4:])
    # The state counts from the start of the stage, not from the iterator's start.
    other = train(stored, start_step=2)
    other.set_state(state)
    assert_equal(take(other, 5), straight[4:])


def test_orbax_keeps_the_iterator(tmp_path):
    stored = MemoryRecords()
    straight = take(train(stored), 5)
    saved, restored = train(stored), train(stored)
    for _ in range(3):
        next(saved)
    with ocp.CheckpointManager(tmp_path) as manager:
        keep = grain.checkpoint.CheckpointSave(saved)
        manager.save(3, args=ocp.args.Composite(data=keep))
        manager.wait_until_finished()
        load = grain.checkpoint.CheckpointRestore(restored)
        manager.restore(3, args=ocp.args.Composite(data=load))
    saved.close()
    assert_equal(take(restored, 2), straight[3:])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Real records of a small data set in Market-1501's layout, and their folder."""
    folder = tmp_path_factory.mktemp("prepared")
    rng = np.random.default_rng(0)
    for name in market1501.FOLDERS.values():
        (folder / "source" / name).mkdir(parents=True)
        for person, shot in itertools.product(range(1, 5), range(4)):
            path = folder / "source" / name / f"{person:04}_c{shot % 3 + 1}s_{shot}.jpg"
            path.write_bytes(encoded(rng.integers(0, 256, (32, 16, 3)), ".jpg"))
    splits = market1501.scan(folder / "source")
    builder = store.builder(
        splits,
        name="tiny",
        title="tiny",
        data_dir=folder,
        track=lambda entries, _: entries,
    )
    builder.download_and_prepare()
    return folder


def test_workers_deliver_the_same_batches_and_continue(prepared):
    stored = open_records("tiny", "train", prepared)
    plan = plan_of(stored, p=2, k=2)
    straight = take(train(stored, plan), 9)
    it = train(stored, plan, num_workers=2)
    first = [next(it) for _ in range(4)]
    state = it.get_state()
    assert_equal(first, straight[:4])
    for _ in range(2):
        next(it)
    it.set_state(state)
    assert_equal(take(it, 3), straight[4:7])
    # A checkpoint does not bind a run to its number of workers.
    other = train(stored, plan)
    other.set_state(state)
    assert_equal(take(other, 5), straight[4:])


def test_a_plain_script_with_workers_ends_silently(prepared, tmp_path):
    # Grain's workers read absl flags, and shared memory that is still referenced at
    # exit is reported as leaked: neither is the business of who writes the script.
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        from data_pipelines import loader, prepared, sampling, transforms

        if __name__ == "__main__":
            stored = prepared.open_records("tiny", "train", {str(prepared)!r})
            plan = sampling.PKPlan(
                stored.person, identities=2, images_per_identity=2, seed=0
            )
            it = loader.train_loader(
                stored, plan, augment=transforms.build(["flip"]), image_size=(512, 256),
                seed=0, num_workers=1,
            )
            kept = [next(it) for _ in range(3)]
            it.close()
            print(len(kept))
        """)
    )
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, script],
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
    assert "leaked" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named(workers):
    stored = MemoryRecords(count=8, images_each=4)
    stored.images[5] = stored.images[5][:80]
    it = train(stored, plan_of(stored, p=2), num_workers=workers)
    with pytest.raises(UserError, match=r"0005_c1\.jpg.*damaged"):
        take(it, 4)


def test_a_worker_that_died_is_one_message(prepared):
    """As if killed for memory; without room in /dev/shm it ends by SIGBUS.

    A notice to stop, which comes to all processes of a group, does not end it.
    """
    stored = open_records("tiny", "train", prepared)
    it = train(stored, plan_of(stored, p=2, k=2), num_workers=1)
    next(it)
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker.pid, number)
    for _ in range(6):  # more than may be there already
        next(it)
    worker.kill()
    with pytest.raises(UserError, match=r"died \(SIGKILL\).*/dev/shm.*num_workers"):
        take(it, 9)  # some batches may be there already


def test_a_worker_ends_with_its_parent(monkeypatch):
    gone, ended = threading.Event(), threading.Event()
    parent = types.SimpleNamespace(join=gone.wait)
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: parent)
    monkeypatch.setattr(os, "_exit", lambda code: ended.set())
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    loader._heed_parent(0, 1)
    assert not ended.is_set()
    gone.set()
    assert ended.wait(PATIENCE)


def test_no_room_for_a_worker_is_one_message(prepared, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    stored = open_records("tiny", "train", prepared)
    monkeypatch.setattr(multiprocessing.synchronize.SemLock, "__init__", full)
    with pytest.raises(UserError, match=r"died.*No space left.*/dev/shm"):
        next(train(stored, plan_of(stored, p=2, k=2), num_workers=1))


def test_damaged_parts_are_named():
    stored = MemoryRecords(has_parts=True)
    stored.parts[2] = b"x"
    with pytest.raises(UserError, match=r"0002_c1\.jpg"):
        loader.image_batch(stored, [2], image_size=SIZE, with_parts=True)


def test_records_without_parts_are_unlabelled_throughout():
    # Erased and padded pixels too: where nothing is known nothing is background.
    (batch,) = take(train(MemoryRecords(), with_parts=True), 1)
    assert (batch["parts"] == 255).all()
    assert "parts" not in take(train(MemoryRecords()), 1)[0]


def test_hosts_that_do_not_divide_the_batch_are_a_user_error():
    stored = MemoryRecords()
    with pytest.raises(UserError, match=r"12 .*5 hosts"):
        train(stored, process_count=5)
    with pytest.raises(UserError, match=r"8 .*3 hosts"):
        evaluate(stored, process_count=3)


def evaluate(stored, **changes):
    settings = {"image_size": SIZE, "batch_size": 8}
    return list(loader.eval_batches(stored, **settings | changes))


@pytest.mark.parametrize("count", [1, 7, 8, 9, 30])
def test_evaluation_shows_every_image_once_and_in_order(count):
    stored = MemoryRecords(count)
    batches = evaluate(stored)
    assert {b["image"].shape for b in batches} == {(8, *SIZE, 3)}
    joined = {key: np.concatenate([b[key] for b in batches]) for key in batches[0]}
    mask = joined["mask"]
    assert mask.dtype == bool
    assert mask.sum() == count
    assert len(mask) - count < 8
    np.testing.assert_array_equal(joined["index"][mask], np.arange(count))
    np.testing.assert_array_equal(joined["person"][mask], stored.person)
    np.testing.assert_array_equal(joined["camera"][mask], stored.camera)
    for index in range(count):
        image = images.resize(images.decode(stored.images[index]), SIZE)
        np.testing.assert_array_equal(joined["image"][index], image)
    assert not joined["image"][~mask].any()
    assert (joined["index"][~mask] == -1).all()
    assert (joined["camera"][~mask] == 0).all()


def test_evaluation_on_hosts_takes_equally_many_batches():
    stored = MemoryRecords(25, has_parts=True)
    whole = evaluate(stored, with_parts=True)
    shares = [
        evaluate(stored, with_parts=True, process_index=i, process_count=4)
        for i in range(4)
    ]
    assert {len(s) for s in shares} == {len(whole)}
    joined = [
        {key: np.concatenate([s[key] for s in step]) for key in step[0]}
        for step in zip(*shares, strict=True)
    ]
    assert_equal(joined, whole)


def test_evaluation_of_nothing_is_empty():
    assert evaluate(MemoryRecords(0)) == []


@pytest.mark.parametrize(
    ("how", "filter_"), [("pil-bilinear", "BILINEAR"), ("pil-bicubic", "BICUBIC")]
)
def test_images_are_resized_as_their_records_say(how, filter_):
    """Beside Pillow's own reading and resizing, as the libraries on PyTorch do it."""
    stored = MemoryRecords(3)
    stored.resize = how
    (batch,) = evaluate(stored, batch_size=3)
    for content, found in zip(stored.images, batch["image"], strict=True):
        image = Image.open(io.BytesIO(content)).convert("RGB")
        expected = image.resize(SIZE[::-1], Image.Resampling[filter_])
        np.testing.assert_array_equal(found, np.asarray(expected))


def test_image_batch_takes_any_rows():
    stored = MemoryRecords(has_parts=True)
    got = loader.image_batch(stored, [4, 29, 4], image_size=SIZE, with_parts=True)
    (all_rows,) = evaluate(stored, batch_size=30, with_parts=True)
    for key, value in all_rows.items():
        np.testing.assert_array_equal(got[key], value[[4, 29, 4]])
    nothing = loader.image_batch(stored, [], image_size=SIZE)
    assert nothing["image"].shape == (0, *SIZE, 3)


def test_an_image_batch_is_read_by_several_threads(monkeypatch):
    both, decode = threading.Barrier(2, timeout=60), images.decode
    monkeypatch.setattr(loader, "_READ_THREADS", 2)
    monkeypatch.setattr(images, "decode", lambda x: both.wait() < 2 and decode(x))
    assert loader.image_batch(MemoryRecords(), [4, 29], image_size=SIZE)["mask"].all()


def test_batches_larger_than_memory_are_a_user_error():
    stored = MemoryRecords()
    with pytest.raises(UserError, match=r"of 100000000 x 100000 pixels take .*GiB"):
        train(stored, image_size=(100_000_000, 100_000))
    with pytest.raises(UserError, match=r"config\.data\.height and width"):
        evaluate(stored, image_size=(100_000_000, 100_000_000))
