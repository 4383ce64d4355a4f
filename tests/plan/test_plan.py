"""The verb by the contract alone, with four devices of a CPU in a TPU's place."""

import json

import jax
import pytest

from reid_jax.benchmark import workloads
from reid_jax.errors import UserError
from reid_jax.plan import compile as compiling
from reid_jax.plan import plan as planning
from reid_jax.plan import topologies
from reid_jax.plan.plan import Request, plan

WIDTH, FEATURES = 6, 4 * 2 * 3  # of the toy, whose maps are 4 x 2 places of 3 channels


@pytest.fixture(autouse=True)
def compiled_for_a_cpu(monkeypatch):
    monkeypatch.setattr(workloads, "GALLERY", 300)
    monkeypatch.setattr(planning, "_compiler", lambda topology: "none 1.0")
    monkeypatch.setattr(
        topologies,
        "find",
        lambda name: topologies.Topology(name, "v5e", tuple(jax.devices()[:4])),
    )


@pytest.fixture
def refused(monkeypatch):
    """Has a compiler refuse what `wants` says of a work's state is too large."""

    def use(too_large):
        def compile_(work, lowered, topology):
            if too_large(work):
                return compiling.Compiled(None, 17 << 30, 1.0)
            return original(work, lowered, topology)

        original = compiling.compiled
        monkeypatch.setattr(compiling, "compiled", compile_)

    return use


def test_the_whole_contract_is_planned_once(toy_config, tmp_path, monkeypatch, capsys):
    request = Request(["v5e:2x2"], measures=compiling.MEASURES)
    lines = plan(toy_config, str(tmp_path), request)
    found = [(line["what"], line["devices"], line["batch"]) for line in lines]
    assert found == [
        *(("train:first", 4, 8), ("train:second", 4, 8), ("embed", 4, 8)),
        *(("pair maps", 1, 4), ("pair scores", 1, 4), ("ranking", 1, 8)),
    ]
    by_name = {line["what"]: line for line in lines}
    assert by_name["embed"]["flops"] == 2 * 8 * FEATURES * WIDTH
    assert by_name["embed"]["flops_per_chip"] == 2 * 2 * FEATURES * WIDTH
    for line in lines:
        assert line["fits"]
        assert line["hbm_traffic_bytes"] > 0
        assert line["bound_per_second"] == line["batch"] / line["bound_seconds"]
        assert line["taken_over"] == line["donated"], line["what"]
        assert line["total_bytes"] == (
            line["argument_bytes"]
            + line["output_bytes"]
            - line["alias_bytes"]
            + line["workspace_bytes"]
            + line["code_bytes"]
        )
    assert by_name["train:first"]["donated"] > 0
    assert by_name["train:first"]["collectives"]["all-reduce"]["bytes"] > 0
    stored = (tmp_path / "plan.jsonl").read_text().splitlines()
    assert [json.loads(text)["what"] for text in stored] == list(by_name)
    assert "| train:first" in capsys.readouterr().out

    def fail(*args):
        raise AssertionError("it was compiled already")

    monkeypatch.setattr(compiling, "compiled", fail)
    again = plan(toy_config, str(tmp_path), request)
    assert [line["what"] for line in again] == list(by_name)


def test_each_query_of_a_block_is_counted(toy_config, tmp_path):
    """Each of five queries meets a block of four images' maps: 3 channels a pair."""
    toy_config.model.top_k = 0
    request = Request(["v5e:2x2"], measures=["pairs"])
    found = {}
    for queries in (1, 5):
        toy_config.evaluation.query_block = queries
        _, line = plan(toy_config, str(tmp_path / str(queries)), request)
        assert line["batch"] == 4 * queries
        assert line["flops"] == queries * 2 * 4 * 3
        found[queries] = line["hbm_traffic_bytes"]
    assert 4 * found[1] < found[5] < 6 * found[1]


def test_the_smallest_change_that_fits(toy_config, tmp_path, refused):
    """Splitting parameters does not help, and the toy has neither blocks nor dtypes."""
    toy_config.stages.first.identities = 8
    refused(lambda work: work.stage.micro_batches < 2)
    request = Request(["v5e:2x2"], measures=["train"])
    lines = plan(toy_config, str(tmp_path), request)
    whole = next(line for line in lines if "error" in line)
    assert whole["total_bytes"] == 17 << 30
    assert whole["fits_with"] == {"stages.first.micro_batches": 2}
    changed = lines[lines.index(whole) - 1]
    assert changed["fits"]
    assert changed["sweep"] == whole["fits_with"]
    again = plan(toy_config, str(tmp_path), request)
    names = ("what", "sweep", "program")
    assert [[x[n] for n in names] for x in again] == [
        [x[n] for n in names] for x in lines
    ]


def test_memory_that_does_not_suffice(toy_config, tmp_path, monkeypatch):
    request = Request(["v5e:2x2"], measures=["embed"])
    (line,) = plan(toy_config, str(tmp_path), request)
    assert line["fits"]
    monkeypatch.setattr(topologies.Chip, "usable_bytes", 100)
    for folder in (tmp_path / "new", tmp_path):  # one was judged by another memory
        (line,) = plan(toy_config, str(folder), request)
        assert not line["fits"]
        assert line["total_bytes"] > 100


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required "
            "for HLO temporaries (52.00G) exceeds available HBM (15.75G).",
            52 << 30,
        ),
        ("RESOURCE_EXHAUSTED: Used 512.5M of 256.0M hbm.", 1025 << 19),
        ("RESOURCE_EXHAUSTED: something", None),
    ],
)
def test_what_a_compiler_says_that_it_would_take(text, wanted):
    assert compiling._wanted(text) == wanted


def test_a_batch_that_the_chips_do_not_divide(toy_config, tmp_path):
    with pytest.raises(UserError, match="over 4 devices"):
        plan(toy_config, str(tmp_path), Request(["v5e:2x2"], batches=[6]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"topologies": []}, "needs --topology"),
        ({"topologies": ["v5e:2x2"], "measures": ["trian"]}, "--measure=trian: known"),
        ({"topologies": ["v5e:2x2"], "batches": [0]}, "at least 1"),
    ],
)
def test_requests_that_make_no_sense(fields, message):
    with pytest.raises(UserError, match=message):
        Request(**fields)
