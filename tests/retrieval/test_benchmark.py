"""The benchmark runs, agrees with its own reference, and reports what it promises."""

import json

import numpy as np
import pytest

from benchmarks import reranking, reranking_steps, retrieval
from reid_jax.errors import UserError


def test_tiny_size(capsys):
    report = retrieval.main(["--size=tiny", "--dim=16", "--block=16"])
    assert json.loads(capsys.readouterr().out) == report
    assert set(report["seconds"]) == {"distance", "ranking", "total"}
    assert report["times_faster_than_argsort"] > 0
    assert report["peak_memory_gib"] > 0
    assert 0 < report["metrics"]["mAP"] < 1


def test_reranking_is_that_of_full_matrices():
    ours, theirs = reranking._ours("tiny", 16, 64), reranking._theirs("tiny", 16)
    np.testing.assert_allclose(ours["sample"], theirs["sample"], atol=1e-5)
    assert {"neighbours", "sets", "jaccard", "total"} <= set(ours["seconds"])
    assert {"rest", "total"} <= set(theirs["seconds"])


def test_a_table_of_steps():
    seeds = [{"rank1": x, "mAP": 0.5, "mINP": 0.25} for x in (0.1, 0.3)]
    lines = reranking_steps.table({"none": seeds, "flip": seeds[:1]}).splitlines()
    assert lines[0] == "| steps | rank1 | mAP | mINP |"
    assert lines[2] == "| none | 20.0 ± 14.1 | 50.0 ± 0.0 | 25.0 ± 0.0 |"
    assert lines[3] == "| flip | 10.0 | 50.0 | 25.0 |"


def test_a_wrong_run_is_told_before_any_is_evaluated(tmp_path, monkeypatch, capsys):
    real = reranking_steps.run.get_config
    monkeypatch.setattr(
        reranking_steps.run, "get_config", lambda x: x == "there" or real(x)
    )
    monkeypatch.setattr(reranking_steps, "_metrics", None)  # is not called
    with pytest.raises(UserError, match="no checkpoint in"):
        reranking_steps.main([f"--runs=there,{tmp_path / 'none'}"])
    with pytest.raises(SystemExit) as error:
        reranking_steps.main(["--runs="])
    assert error.value.code == 2
    assert "--runs names no folder" in capsys.readouterr().err
