"""Weights that the library brings: how a run becomes them, and how they are loaded."""

import json

import jax
import numpy as np
import pytest

import reid_jax
from configs import pretrain
from configs import run as run_config
from reid_jax import experiment, weights
from reid_jax.errors import UserError
from reid_jax.evaluation import evaluate
from reid_jax.runtime import checkpoint, sharding
from reid_jax.training import train
from reid_jax.weights import __main__ as command
from reid_jax.weights import files, included, shipping
from tests import commands
from tests.conftest import use_devices

NAME = "shipped/tiny"


@pytest.fixture(scope="module")
def config(tiny_data):
    """The recipe at its smallest."""
    config = pretrain.get_config("demo,dataset=tiny")
    config.data.update(data_dir=str(tiny_data), height=32, width=16)
    options = {"width": 12, "depth": 1, "heads": 2, "patch_size": 8, "stride": (8, 8)}
    config.model.options.update(options)
    config.augment.pad_crop.pad = 2
    config.evaluate_on = ()
    config.evaluation.update(batch_size=8, query_block=8, every_epochs=0.0)
    config.evaluation.pictured = (0,)
    config.checkpoint.every_epochs = 0.0
    config.stages.train.update(identities=4, images_per_identity=2, epochs=1 / 3)
    return config


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    """Two steps of it."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        use_devices(patch, 1)
        train.train_and_evaluate(config, str(folder))
    return folder


@pytest.fixture(scope="module")
def brought(run, tmp_path_factory):
    """What the command has made of the run, where the library looks for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(included, "FOLDER", tmp_path_factory.mktemp("shipped"))
        assert commands.ended(command.main, [f"--from={run}", "--ship=tiny"]) == 0
        yield included.FOLDER / "tiny"


@pytest.fixture
def damaged(brought):
    """The same with one bit of its last number turned; it is put back afterwards."""
    path = brought / included.WEIGHTS
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    yield path
    path.write_bytes(whole)


def _variables(config, run):
    mesh = sharding.make_mesh()
    method, variables = experiment.restore(config, checkpoint.find(str(run)), mesh)
    return method, files.flatten(jax.tree.map(np.asarray, dict(variables)))


def test_what_is_loaded_is_the_run_to_half_precision(config, run, brought):
    method, wanted = _variables(config, run)
    batch = experiment.example_batch(config, 2)
    shapes = jax.eval_shape(method.init, jax.random.key(0), batch)
    loaded, report = weights.load_pretrained(
        shapes, NAME, position_grid=method.position_grid
    )
    got = files.flatten(loaded)
    backbone = {path for path in wanted if "/backbone/" in path}
    assert set(report.loaded) == backbone
    for path in backbone:
        assert got[path].dtype == np.float32
        np.testing.assert_allclose(
            got[path], wanted[path], rtol=2**-11, atol=2**-25, err_msg=path
        )
    stored = files.read(included.locate(NAME)).arrays
    assert {array.dtype for array in stored.values()} == {np.dtype(np.float16)}
    assert set(stored) == {path for path in wanted if "/classifier/" not in path}


def test_everybody_may_read_it(brought):
    modes = {path.name: path.stat().st_mode & 0o777 for path in brought.iterdir()}
    assert len(set(modes.values())) == 1, modes


def test_a_name_is_a_network(run, brought, photos):
    whole = reid_jax.load(run).embed(photos, progress=False)["vector"]
    half = reid_jax.load(NAME).embed(photos, progress=False)["vector"]
    np.testing.assert_allclose(half, whole, atol=5e-3)
    assert not np.array_equal(half, whole)


def test_a_name_becomes_a_run(brought, photos, tiny_data, tmp_path, capsys):
    made = tmp_path / "made"
    flags = [f"--from={NAME}", "--as=shipped", f"--to={made}"]
    assert commands.ended(command.main, flags) == 0
    assert f"--workdir={made}" in capsys.readouterr().out
    wanted = reid_jax.load(NAME)
    got = reid_jax.load(made)
    for images in (photos, next(photos.rglob("*.png"))):
        vectors = (one.embed(images, progress=False)["vector"] for one in (got, wanted))
        np.testing.assert_array_equal(*vectors)
    config = run_config.get_config(str(made))
    config.data.data_dir = str(tiny_data)
    (entry,) = evaluate.evaluate_checkpoint(config, str(made), workdir=str(made))
    assert entry["metrics"]["mAP"] > 0
    assert commands.ended(command.main, flags) == 2  # it is there
    flags[-1] += ".safetensors"
    assert commands.ended(command.main, flags) == 2
    assert "a run's folder is written" in capsys.readouterr().err


def test_the_card_says_what_it_is(run, brought, tiny_data):
    text = (brought / included.CARD).read_text()
    card = json.loads(text)
    (entry,) = json.loads((run / "results.json").read_text())
    assert card["metrics"] == {"tiny": entry["metrics"]}
    assert (card["data"]["name"], card["data"]["identities"]) == ("tiny", 9)
    assert (card["recipe"], card["batches"]) == (
        "configs/pretrain.py, vit-demo-tiny",
        2,
    )
    assert card["licence"].startswith("Apache-2.0")
    assert "no model for real people" in card["limits"]
    assert str(tiny_data) not in text


def test_a_checkpoint_that_knows_no_images_has_a_card(config, run, monkeypatch):
    """That of an older version, and an export."""
    step = checkpoint.find(str(run))
    older = dict(checkpoint.read_meta(step))
    del older["data"]
    monkeypatch.setattr(checkpoint, "read_meta", lambda _: older)
    assert shipping._card(str(run), step, config, {})["data"] == {"name": "tiny"}


def test_what_is_damaged_is_refused(damaged):
    for load in (weights.locate, reid_jax.load):
        with pytest.raises(UserError, match=rf"{NAME} is not as it was.*safetensors"):
            load(NAME)


def test_what_has_no_digests_is_refused(brought):
    sums = brought / "SHA256SUMS"
    moved = sums.rename(brought / "moved")
    with pytest.raises(UserError, match="SHA256SUMS is not there"):
        weights.locate(NAME)
    moved.rename(sums)


def test_images_that_are_standardised_otherwise(brought):
    half = (0.5, 0.5, 0.5)
    assert weights.other_statistics(NAME, half, half) == ""
    assert "mean (0.5, 0.5, 0.5)" in weights.other_statistics(NAME, (0, 0, 0), half)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ship=tiny"], "shipped/tiny exists; remove"),
        (["--ship=../tiny"], "--ship='../tiny': small letters"),
        (["--ship=new", "--as=torchreid-osnet"], "leave out --as"),
        (["--ship=new"], "there are no figures of step 2"),
    ],
)
def test_what_cannot_be_shipped(flags, message, run, brought, capsys):
    results = run / "results.json"
    moved = results.rename(run / "moved.json")
    assert commands.ended(command.main, [f"--from={run}", *flags]) == 2
    moved.rename(results)
    assert message in capsys.readouterr().err
    assert [path.name for path in included.FOLDER.iterdir()] == ["tiny"]


def test_figures_are_those_of_the_checkpoint(tmp_path):
    """Of the best step, which stands beside the last; not of other fields' figures."""
    entries = [
        {"protocol": "a", "step": 9, "metrics": {"mAP": 0.1}},
        {"protocol": "b", "step": 9, "metrics": {"mAP": 0.2}},
        {"protocol": "c", "step": 5, "metrics": {"mAP": 0.3}},
        {"protocol": "d", "step": 5, "metrics": {"mAP": 0.4}, "rerank": ["flip"]},
        {"protocol": "e", "step": 5, "metrics": {"mAP": 0.5}, "changed": {"x": 1}},
        {"protocol": "c", "step": 5, "metrics": {"mAP": 0.7}, "run": "runs/another"},
    ]
    entries[0]["best"] = {"step": 5, "metrics": {"mAP": 0.6}}
    (tmp_path / "results.json").write_text(json.dumps(entries))
    step = tmp_path / "checkpoints" / "best" / "5"
    assert shipping._metrics(step, 5) == {"a": {"mAP": 0.6}, "c": {"mAP": 0.3}}


def test_names_that_are_not_there(brought):
    with pytest.raises(UserError, match="brings no 'shipped/vti'; it brings: shipped/"):
        weights.locate("shipped/vti")
    with pytest.raises(UserError, match="known are: shipped/tiny, vit_base"):
        weights.locate("vti")


def test_numbers_that_half_precision_lacks():
    with pytest.raises(UserError, match="w: params/a has numbers that float16 cannot"):
        shipping._halved({"params": {"a": np.float32([7e4])}}, "w")
