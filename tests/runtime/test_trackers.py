"""Trackers get every row, and a service that fails does not stop a run."""

import json
import struct

import pytest

from reid_jax.errors import UserError
from reid_jax.runtime import trackers
from reid_jax.runtime.metrics import MetricWriter

CONFIG = {"seed": 0, "model.width": 6}


def _written(folder, names, *, rows=(1, 2), **resume):
    writer = MetricWriter(str(folder), trackers=names, config=CONFIG, **resume)
    for step in rows:
        writer.write(step, {"loss": 1.0 / step, "tiny:single_shot,a=1/mAP": 0.5})
    writer.close()
    return writer


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (trackers.DEFAULT, {"metrics.jsonl", "tensorboard"}),
        (("jsonl",), {"metrics.jsonl"}),
        ((), set()),
    ],
)
def test_only_what_is_named_is_written(tmp_path, names, files):
    writer = _written(tmp_path / "run", names)
    assert {path.name for path in (tmp_path / "run").iterdir()} == files
    # Checkpoints count rows whether or not they are kept in a file.
    assert writer.rows == 2
    again = _written(tmp_path / "run", names, rows=(2,), resume_step=1, resume_rows=1)
    assert again.rows == 2


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    trackers.check_installed(trackers.DEFAULT)
    with pytest.raises(UserError, match=r"wandb needs: pip install wandb$"):
        trackers.check_installed(("jsonl", "wandb"))


class _Flaky:
    def __init__(self, start):
        self.start = start

    def write(self, step, scalars):
        if step == 2:
            raise ConnectionError("the server\nis gone")

    def flush(self):
        raise AssertionError("called after a failure")

    close = flush


def test_a_service_that_fails_later_does_not_stop_the_run(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(trackers._SERVICES, "mlflow", _Flaky)
    _written(tmp_path, ("mlflow", "jsonl"), rows=(1, 2, 3))
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
    noted = capsys.readouterr().err
    assert noted.count("note: mlflow takes no more metrics (ConnectionError: the") == 1


def test_a_service_that_is_not_there_is_one_message(tmp_path, monkeypatch):
    def refuses(start):
        raise ConnectionError("no route")

    monkeypatch.setitem(trackers._SERVICES, "wandb", refuses)
    with pytest.raises(UserError, match=r"no route.*WANDB_MODE=offline"):
        _written(tmp_path, ("wandb",))


def test_wandb_offline_goes_on_under_its_name(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    _written(tmp_path, ("wandb",))
    name = json.loads((tmp_path / "trackers.json").read_text())["wandb"]
    _written(tmp_path, ("wandb",), rows=(2, 3), resume_step=1)
    assert json.loads((tmp_path / "trackers.json").read_text())["wandb"] == name
    wandb.teardown()  # its process writes the last rows while it ends
    runs = sorted((tmp_path / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb"))
    assert len(runs) == 2
    steps = [[row["step"] for row in _rows_of_wandb(path)] for path in runs]
    assert sorted(steps) == [[1, 2], [2, 3]]


def _rows_of_wandb(path):
    """Rows of a file of Weights & Biases: a LevelDB log behind seven bytes.

    Its blocks have 32 KiB; a chunk in them is checksum, length, kind, and bytes.
    """
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), 7, b""
    while len(data) - at >= 7:
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind not in (1, 4):  # more of this record follows
            continue
        record = wandb_internal_pb2.Record.FromString(whole)
        whole = b""
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            yield {(i.key or i.nested_key[0]): json.loads(i.value_json) for i in items}


def test_mlflow_keeps_one_run_over_starts(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/store.db")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    _written(tmp_path / "run", ("mlflow",))
    _written(tmp_path / "run", ("mlflow",), rows=(2, 3), resume_step=1)
    client = mlflow.MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'reid_jax'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "run"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "0", "model.width": "6"}
    history = client.get_metric_history(run.info.run_id, "loss")
    assert {m.step: m.value for m in history} == {1: 1.0, 2: 0.5, 3: 1 / 3}
    assert run.data.metrics["tiny:single_shot_a_1/mAP"] == 0.5
