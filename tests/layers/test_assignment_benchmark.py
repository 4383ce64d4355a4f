"""The benchmark of assignments times what it says, with what each needs."""

import json

import pytest

from benchmarks import assignment


def test_every_assignment_is_timed_alone_in_a_layer_and_in_the_network(capsys):
    sizes = ["--image=64x32", "--width=12", "--heads=2", "--depth=1"]
    lines = assignment.main([*sizes, "--batches=2", "--repeats=1"])
    printed = capsys.readouterr().out.splitlines()
    assert [json.loads(line) for line in printed] == lines
    cases = {}
    for line in lines:
        assert line["ms"] > 0
        cases.setdefault(line["what"], {})[line["assignment"]] = line
    alone, layer, network = cases.values()
    assert [*cases] == [
        "assignment of 8 patches to 5 parts",
        "attention of one layer",
        "network of 1 layers",
    ]
    assert {*alone} == {"sinkhorn", "nearest neighbour"}
    for case in (layer, network):
        assert {*case} == {"sinkhorn", "nearest neighbour", "none"}
        for line in case.values():
            ratio = line["ms"] / case["none"]["ms"]
            assert line["times none"] == pytest.approx(ratio, rel=0.05)
