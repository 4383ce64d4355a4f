"""The benchmark runs, checks its own results, and reports what it promises."""

from benchmarks import correlation


def test_tiny_maps(capsys):
    sizes = ["--pairs=3", "--blocks", "3", "2", "--places", "4", "3", "--channels=4"]
    report = correlation.main([*sizes, "--modes", "score", "--repetitions=1"])
    printed = capsys.readouterr().out
    lines = [(line["mode"], line["block"]) for line in report["lines"]]
    assert lines == [("score", 2), ("score", 3)]
    for line in report["lines"]:
        assert line["pairs_per_second"] > 0
        assert 0 < line["memory_mib"] < line["process_mib"]
    assert report["times_faster_than_dense"] > 0
    assert "pairs/s" in printed
    assert "times faster" in printed
