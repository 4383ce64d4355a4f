"""Kept measurements as sections of a document."""

import json

import pytest

from benchmarks import results_table
from reid_jax.benchmark import timing
from reid_jax.benchmark.benchmark import Request, benchmark
from reid_jax.errors import UserError


def test_a_table_says_what_was_run_where_and_when(toy_config, tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "WINDOW_SECONDS", 0.0)
    argv = ["reid_jax/main.py", "--config=configs/toy.py:demo", "--mode=benchmark"]
    monkeypatch.setattr("sys.argv", argv)
    request = Request(measures=["embed"], devices=[2], windows=1)
    (line,) = benchmark(toy_config, str(tmp_path), request)
    text = results_table.section(tmp_path / "benchmark.jsonl")
    (stored,) = map(json.loads, (tmp_path / "benchmark.jsonl").read_text().splitlines())
    assert f"{line['started'][:10]}, cpu, {stored['cpu_count']} CPU cores" in text
    assert "python -m reid_jax.main --config=configs/toy.py:demo --mode=benc" in text
    assert f"{line['per_second']:.3g}" in text or f"{line['per_second']:,.0f}" in text


def test_a_file_without_measurements(tmp_path):
    (tmp_path / "x.jsonl").write_text("")
    with pytest.raises(UserError, match="no measurements"):
        results_table.section(tmp_path / "x.jsonl")
