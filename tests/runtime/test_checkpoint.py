"""Checkpoints of a small state: damage is noticed, odd folders are no obstacle."""

import time

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.errors import UserError
from reid_jax.runtime import checkpoint, digests, workdir
from reid_jax.runtime.checkpoint import Checkpoints
from reid_jax.runtime.state import TrainState
from reid_jax.weights import files, folders
from tests.metas import meta

# Written when all else is done; they hold the time.
ORBAXS_MARKS = ("_CHECKPOINT_METADATA", "commit_success.txt")


def _state(value):
    return TrainState(
        step=jnp.int32(value),
        rng=jax.random.key(value),
        params={"dense": {"kernel": jnp.full((40, 30), value, jnp.float32)}},
        collections={},
        opt_state=(jnp.full((3,), value, jnp.float32),),
    )


def _data():
    return iter(grain.MapDataset.range(9).to_iter_dataset())


def _save(folder, *steps):
    checkpoints = Checkpoints(str(folder), keep=len(steps))
    for step in steps:
        checkpoints.save(step, _state(step), _data(), meta(global_step=step))
    checkpoints.close()


def _restored(folder):
    checkpoints = Checkpoints(str(folder))
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.eval_shape(lambda: _state(0))
    layout = jax.tree.map(lambda _: sharding, shapes)
    state = checkpoints.restore(shapes, layout)
    assert checkpoints.meta()["global_step"] == int(state.step)
    checkpoints.close()
    return state


def _flip(path, rng):
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    path.write_bytes(data)


def _files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_bit_that_changed_in_any_file_is_noticed(tmp_path):
    _save(tmp_path, 1, 2)
    rng, newest = np.random.default_rng(1), tmp_path / "checkpoints" / "last" / "2"
    seen = 0
    for path in _files(newest):
        before = path.read_bytes()
        if path.parent == newest and path.name in ORBAXS_MARKS:
            continue
        _flip(path, rng)
        with pytest.raises(UserError, match=r"last/2 cannot .* step 1, which is whole"):
            Checkpoints(str(tmp_path))
        path.write_bytes(b"")
        with pytest.raises(UserError, match=f"damaged.*{path.name}"):
            checkpoint.find(str(tmp_path))
        path.write_bytes(before)
        seen += 1
    assert seen > 5
    np.testing.assert_array_equal(_restored(tmp_path).params["dense"]["kernel"], 2)


def test_what_is_not_digested_carries_nothing_of_the_run(tmp_path):
    _save(tmp_path, 1)
    step = tmp_path / "checkpoints" / "last" / "1"
    for name in ORBAXS_MARKS:
        (step / name).write_bytes(b"\xff")
    assert int(_restored(tmp_path).step) == 1


def test_an_older_checkpoint_is_read_with_a_note(tmp_path, capsys):
    _save(tmp_path, 1)
    (tmp_path / "checkpoints" / "last" / "1" / digests.NAME).unlink()
    assert int(_restored(tmp_path).step) == 1
    assert "has no digests" in capsys.readouterr().err


def test_digests_are_those_of_sha256sum(tmp_path):
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "c").write_bytes(b"abc")
    digests.write(tmp_path)
    # FIPS 180-4, example of a one-block message.
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert (tmp_path / "SHA256SUMS").read_text() == f"{known}  a b/c\n"
    assert digests.differences(tmp_path) == []
    (tmp_path / "SHA256SUMS").write_bytes(b"\xff\n")
    assert len(digests.differences(tmp_path)) == 1


def test_a_converted_folder_that_changed_is_refused(tmp_path):
    tree = {"params": {"backbone": {"kernel": np.arange(5000, dtype=np.float32)}}}
    folders.write(tmp_path / "w[1]", tree)
    arrays = files.read(tmp_path / "w[1]").arrays
    np.testing.assert_array_equal(arrays["params/backbone/kernel"], np.arange(5000))
    rng = np.random.default_rng(1)
    largest = max(_files(tmp_path / "w[1]"), key=lambda path: path.stat().st_size)
    _flip(largest, rng)
    with pytest.raises(UserError, match=f"{largest.name} has changed"):
        files.read(tmp_path / "w[1]")


@pytest.mark.parametrize("name", ["lr[1e-3]", "a*b?", "{x} ~"])
def test_odd_names_of_folders(tmp_path, name):
    folder = str(tmp_path / name)
    assert not workdir.has_checkpoint(folder)
    _save(folder, 3, 4)
    assert workdir.has_checkpoint(folder)
    assert checkpoint.find(folder).name == "4"
    assert int(_restored(folder).step) == 4


def test_a_damaged_meta_is_named(tmp_path):
    _save(tmp_path, 1)
    step = tmp_path / "checkpoints" / "last" / "1"
    (step / digests.NAME).unlink()
    (step / "meta" / "metadata").write_text("[1]")
    with pytest.raises(UserError, match="damaged"):
        checkpoint.read_meta(checkpoint.find(str(tmp_path)))


def test_a_folder_that_moved_gets_no_second_checkpoint(tmp_path):
    checkpoints = Checkpoints(str(tmp_path / "a"))
    _save_and_wait(checkpoints, 1)
    (tmp_path / "a").rename(tmp_path / "b")
    with pytest.raises(UserError, match="moved, renamed"):
        _save_and_wait(checkpoints, 2)
    assert not workdir.has_checkpoint(str(tmp_path / "a"))
    assert int(_restored(tmp_path / "b").step) == 1


def _save_and_wait(checkpoints, step):
    checkpoints.save(step, _state(step), _data(), meta(global_step=step))
    checkpoints.wait()


def test_one_is_saved_at_a_time(tmp_path, monkeypatch):
    """Two processes that save two at once take barriers of one for the other's."""
    sealed, under_way = digests.write, []

    def seal(place, **options):
        under_way.append(place.parent.name)
        time.sleep(0.3)
        assert under_way == [place.parent.name]
        sealed(place, **options)
        under_way.clear()

    monkeypatch.setattr(digests, "write", seal)
    checkpoints = Checkpoints(str(tmp_path))
    for step in (1, 2):
        checkpoints.save(step, _state(step), _data(), meta(global_step=step))
        checkpoints.save_best(step, _state(step), meta(global_step=step))
    checkpoints.close()
    assert checkpoint.find(str(tmp_path)).name == "2"


def test_the_best_is_what_its_own_checkpoint_says(tmp_path, capsys):
    """Also when it is saved again at its step, as the best of another protocol."""
    checkpoints = Checkpoints(str(tmp_path))
    assert checkpoints.best() is None
    for step, score in ((4, 0.5), (4, 0.9), (2, 0.95)):
        best = {"score": score, "entries": [], "stage": "train"}
        about = meta(global_step=step) | {"best": best}
        checkpoints.save_best(step, _state(step), about)
        checkpoints.wait()
        assert checkpoints.best() == best
        assert checkpoint.find(str(tmp_path)).name == str(step)
    checkpoints.close()
    (tmp_path / "checkpoints" / "best" / "2" / "meta" / "metadata").write_text("")
    reopened = Checkpoints(str(tmp_path))
    assert reopened.best() is None
    reopened.close()
    assert "note: the best is sought anew: the checkpoint" in capsys.readouterr().err
