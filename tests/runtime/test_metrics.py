"""Which steps of a stage become rows."""

import json
import types

import jax.numpy as jnp
import pytest
from tqdm import tqdm

from reid_jax.errors import UserError
from reid_jax.runtime import metrics
from reid_jax.runtime.metrics import MetricWriter, StepLog


@pytest.mark.parametrize(
    ("steps", "last", "rows"),
    [
        (10, 10, [1, 4, 8, 10]),
        (8, 8, [1, 4, 8]),
        (1, 1, [1]),
        (6, 10, [1, 4]),  # stopped on the way: no row that an unstopped run lacks
    ],
)
def test_the_last_step_of_a_stage_is_a_row(tmp_path, steps, last, rows):
    writer = MetricWriter(str(tmp_path), trackers=("jsonl",))
    bar = tqdm(disable=True)
    log = StepLog(writer, bar, offset=100, every=4, last=last, batch_size=8)
    for step in range(1, steps + 1):
        loss = jnp.float32(0.5 * step)
        log.add(step, {"loss": loss, "gradient_norm": jnp.ones(())})
    with log.paused():
        writer.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    written = [(row["step"], row["loss"]) for row in map(json.loads, lines)]
    assert written == [(100 + step, 0.5 * step) for step in rows]


def test_a_pause_before_the_first_step_begins_no_rate(tmp_path):
    writer = MetricWriter(str(tmp_path), trackers=("jsonl",))
    log = StepLog(writer, tqdm(disable=True), offset=0, every=1, last=9, batch_size=8)
    for step in (1, 2):
        with log.paused():
            pass
        log.add(step, {"loss": jnp.ones(()), "gradient_norm": jnp.ones(())})
    log.flush()
    writer.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    rated = ["images_per_second" in row for row in map(json.loads, lines)]
    assert rated == [False, True]


def test_the_rate_is_that_of_training_alone(tmp_path, monkeypatch):
    """Images since the row before, by the seconds that were not paused."""
    clock = [10.0]
    now = types.SimpleNamespace(monotonic=lambda: clock[0])
    monkeypatch.setattr(metrics, "time", now)
    writer = MetricWriter(str(tmp_path), trackers=("jsonl",))
    log = StepLog(writer, tqdm(disable=True), offset=0, every=3, last=9, batch_size=8)
    finite = {"loss": jnp.ones(()), "gradient_norm": jnp.ones(())}
    log.add(1, finite)
    log.add(2, finite)
    clock[0] += 2
    with log.paused():
        clock[0] += 100
    log.add(3, finite)
    clock[0] += 4
    log.flush()
    writer.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    rates = [row.get("images_per_second") for row in map(json.loads, lines)]
    assert rates == [None, 2 * 8 / (2 + 4)]


@pytest.mark.parametrize("name", ["loss", "gradient_norm"])
def test_what_is_not_finite_stops_the_run(tmp_path, name):
    writer = MetricWriter(str(tmp_path), trackers=("jsonl",))
    log = StepLog(writer, tqdm(disable=True), offset=5, every=1, last=9, batch_size=8)
    bad = {name: jnp.array(jnp.nan)}
    log.add(1, {"loss": jnp.ones(()), "gradient_norm": jnp.ones(())} | bad)
    with pytest.raises(UserError, match=f"stopped at step 6: .*{name} nan"):
        log.flush()
    writer.close()
