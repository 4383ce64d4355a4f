"""A run whose folder and data lie in a bucket; Google's is emulated."""

import json

import jax
import numpy as np
import pytest
from etils import epath
from jax import export as jax_export

from data_pipelines import bucket as data_bucket
from data_pipelines import prepare, prepared
from reid_jax import storage
from reid_jax.errors import UserError
from reid_jax.evaluation import evaluate
from reid_jax.export import export
from reid_jax.runtime import checkpoint, sharding
from reid_jax.runtime.metrics import MetricWriter
from reid_jax.training import train
from tests import bucket


@pytest.fixture(scope="module")
def gs():
    with bucket.emulated() as address:
        yield address


@pytest.fixture(autouse=True)
def _one_device(monkeypatch):
    real = sharding.make_mesh
    monkeypatch.setattr(sharding, "make_mesh", lambda _=None: real(jax.devices()[:1]))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REID_JAX_DATA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def gs_data(gs, tiny_data):
    storage.copy_below(tiny_data / "tiny", f"{gs}/data/tiny")
    return f"{gs}/data"


def _rows(workdir):
    text = (epath.Path(workdir) / "metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]


def test_a_run_in_a_bucket_is_the_run_on_a_disk(
    gs, gs_data, toy_config, tmp_path, monkeypatch
):
    straight = train.train_and_evaluate(toy_config, str(tmp_path / "run"))
    toy_config.data.data_dir = gs_data
    workdir = f"{gs}/run"
    toy_config.max_steps = 3
    toy_config.profile_steps = (2, 4)
    with monkeypatch.context() as patch:
        # As after a kill: what the logs have was uploaded with the checkpoint.
        patch.setattr(MetricWriter, "close", lambda writer: None)
        assert train.train_and_evaluate(toy_config, workdir) == []
    # A save that was killed has no mark.
    (epath.Path(workdir) / "checkpoints/last/9/state/_METADATA").write_text("{")
    assert checkpoint.find(workdir).name == "3"
    toy_config.max_steps = 0
    assert train.train_and_evaluate(toy_config, workdir) == straight
    assert _rows(workdir) == _rows(tmp_path / "run")

    root = epath.Path(workdir)
    assert json.loads((root / "results.json").read_text()) == straight
    assert len(json.loads((root / "manifest.json").read_text())) == 2
    assert (root / "pictures/tiny/ranking.png").read_bytes()[1:4] == b"PNG"
    assert "tiny" in (root / "report.html").read_text()
    assert len(list((root / "tensorboard").iterdir())) == 2
    profiled = {path.name for path in storage.files_below(root / "profile")}
    assert "perfetto_trace.json.gz" in profiled
    assert {x.name for x in (root / "checkpoints/last").iterdir()} == {"6", "10"}

    (again,) = evaluate.evaluate_checkpoint(
        toy_config, f"{workdir}/checkpoints/last/10", workdir=str(tmp_path / "e")
    )
    assert again["metrics"] == straight[0]["metrics"]

    (root / "export" / "old").write_text("")
    folder = export.export_checkpoint(toy_config, workdir, directory=root / "export")
    assert not (folder / "old").exists()
    names = {x.name for x in folder.iterdir()}
    assert names >= {"README.md", "export.json", "embed.jaxexport", "params"}
    artifact = jax_export.deserialize((folder / "embed.jaxexport").read_bytes())
    assert artifact.platforms == ("cpu", "cuda", "tpu")

    damaged = root / "checkpoints/last/10/state/manifest.ocdbt"
    damaged.write_bytes(b"x" + damaged.read_bytes()[1:])
    with pytest.raises(UserError, match=r"manifest\.ocdbt has changed.*step 6"):
        train.train_and_evaluate(toy_config, workdir)


def test_data_are_copied_once_and_again_when_they_changed(gs_data, tiny_data, cache):
    there = prepared.open_records("tiny", "train", gs_data)
    here = prepared.open_records("tiny", "train", tiny_data)
    assert len(there) == len(here)
    assert there[5]["image"] == here[5]["image"]
    np.testing.assert_array_equal(there.person, here.person)

    (copy,) = cache.glob("bucket/data/tiny/[0-9]*")
    (copy / "mark").write_text("")
    prepared.open_records("tiny", "query", gs_data)
    assert (copy / "mark").exists()
    (epath.Path(gs_data) / "tiny" / copy.name / "note.txt").write_text("new")
    prepared.open_records("tiny", "query", gs_data)
    assert not (copy / "mark").exists()
    assert (copy / "note.txt").read_text() == "new"


def test_an_interrupted_copy_is_no_copy(gs_data, cache, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(data_bucket, "_copy_file", _breaks_off)
        with pytest.raises(UserError, match=r"cannot copy .*broke off"):
            prepared.open_records("tiny", "train", gs_data)
    assert not list(cache.glob("bucket/data/tiny/[0-9]*"))
    assert len(prepared.open_records("tiny", "train", gs_data))


def _breaks_off(source, target, bar):
    raise OSError("broke off")


class TestMistakes:
    def test_a_bucket_that_is_not_there(self, gs, toy_config):
        with pytest.raises(UserError, match=r"cannot read gs://other.*gcloud auth"):
            train.train_and_evaluate(toy_config, "gs://other/run")
        with pytest.raises(UserError, match="cannot write to gs://other"):
            storage.check_writable("gs://other/run")
        with pytest.raises(UserError, match="no checkpoint in gs://bucket/absent"):
            checkpoint.find(f"{gs}/absent")

    def test_no_gcsfs(self, monkeypatch):
        monkeypatch.setattr(storage.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(UserError, match="pip install gcsfs"):
            checkpoint.find("gs://bucket/run")

    def test_another_kind_of_address(self):
        with pytest.raises(UserError, match="only gs://"):
            storage.check_writable("s3://bucket/run")

    def test_data_that_are_not_there(self, gs):
        with pytest.raises(UserError, match=r"gcloud storage cp .* gs://bucket/nodata"):
            prepared.open_records("market1501", "train", f"{gs}/nodata")

    def test_data_are_not_prepared_into_a_bucket(self):
        with pytest.raises(UserError, match="prepared on a disk"):
            prepare.prepare("synthetic/holistic_demo", data_dir="gs://bucket/data")
