"""Which steps of a stage become rows."""

import json

import jax.numpy as jnp
import pytest
from tqdm import tqdm

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
