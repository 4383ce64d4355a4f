"""The benchmark runs, agrees with its own reference, and reports what it promises."""

import json

from benchmarks import retrieval


def test_tiny_size(capsys):
    report = retrieval.main(["--size=tiny", "--dim=16", "--block=16"])
    assert json.loads(capsys.readouterr().out) == report
    assert set(report["seconds"]) == {"distance", "ranking", "total"}
    assert report["times_faster_than_argsort"] > 0
    assert report["peak_memory_gib"] > 0
    assert 0 < report["metrics"]["mAP"] < 1
