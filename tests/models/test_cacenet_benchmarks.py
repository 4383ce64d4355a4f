"""The benchmarks of pairs run, agree with their own references, and report figures."""

import json

from benchmarks import pair_scoring, pair_training

SMALL = ["--grid=3x2", "--width=1"]


def test_training(capsys):
    reports = pair_training.main(["--batches=8", "--blocks=2", "--mode=code", *SMALL])
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line) for line in lines] == reports
    assert [r["form"] for r in reports] == ["blocks of 16 pairs", "naive"]
    assert all(r["seconds"] > 0 for r in reports)


def test_what_does_not_fit_is_not_run(capsys):
    (report, _) = pair_training.main(
        ["--batches=4", "--blocks=1", "--limit_gib=0", *SMALL]
    )
    assert report["seconds"] is None
    assert "not run" in report["note"]


def test_scoring(capsys):
    report = pair_scoring.main(
        [
            *("--pairs=8", "--queries=2", "--top_k=5", "--block=4", "--size=tiny"),
            *("--cache_gib=0.00001", *SMALL),
        ]
    )
    assert json.loads(capsys.readouterr().out) == report
    assert report["streaming"]["gallery_images"] == 300
    assert report["streaming"]["pairs"] == 10
    assert report["streaming"]["extrapolated"]["pairs_of_all_queries"] == 40 * 5
    assert report["scoring"]["largest_difference"] < 1e-4
