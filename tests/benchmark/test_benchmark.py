"""`--mode=benchmark`: every measure of a method by the contract alone."""

import dataclasses
import json
import weakref

import jax
import numpy as np
import pytest

from reid_jax import experiment
from reid_jax.benchmark import random_data, timing, workloads
from reid_jax.benchmark.benchmark import Request, benchmark
from reid_jax.benchmark.sweep import points
from reid_jax.errors import UserError
from reid_jax.runtime import sharding
from reid_jax.training import step, train
from tests import toy_method
from tests.test_main import DEMO, _run
from tests.training.test_micro_batches import STAGE, Uncoupled

WIDTH, CLASSES = 6, workloads.IDENTITIES
# The toy's maps are 4 x 2 places of 3 channels.
FEATURES = 4 * 2 * 3


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(timing, "WINDOW_SECONDS", 0.0)
    monkeypatch.setattr(workloads, "GALLERY", 300)


def _stored(folder):
    text = (folder / "benchmark.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_the_whole_contract_is_measured(toy_config, tmp_path, capsys):
    request = Request(devices=[1, 4], windows=2, peak_tflops=0.5)
    lines = benchmark(toy_config, str(tmp_path), request)
    found = [(line["what"], line["devices"], line["batch"]) for line in lines]
    once = [("pair maps", 1, 4), ("pair scores", 1, 4), ("ranking", 1, 8)]
    assert found == [
        *(("train:first", 1, 8), ("train:second", 1, 8), ("embed", 1, 8)),
        *once,
        *(("train:first", 4, 8), ("train:second", 4, 8), ("embed", 4, 8)),
    ]
    stored = _stored(tmp_path)
    digest = {line.pop("config_digest") for line in stored}
    assert len(digest) == 1
    assert stored == json.loads(json.dumps(lines))
    for line in lines:
        _check_arithmetic(line)
        assert line["dtype"] == "float32"
        assert line["versions"]["jax"] == jax.__version__
        assert line["peak_bytes_from"] == "compiler"
    (entry,) = json.loads((tmp_path / "manifest.json").read_text())
    assert entry["config"]["model.width"] == WIDTH
    table = capsys.readouterr().out
    assert (tmp_path / "table.md").read_text().startswith(table[:-1])
    assert len(table.splitlines()) == 2 + len(lines) + 1
    assert (tmp_path / "benchmark.png").stat().st_size > 5000


def _check_arithmetic(line):
    assert line["seconds_fastest"] <= line["seconds"] <= line["seconds_slowest"]
    assert line["per_second"] == pytest.approx(line["batch"] / line["seconds"])
    assert line["per_second_per_device"] * line["devices"] == pytest.approx(
        line["per_second"]
    )
    assert line["peak_tflops"] == 0.5
    done = line["flops"] / line["seconds"] / line["devices"]
    assert line["mfu"] == pytest.approx(done / 0.5e12)
    assert line["compile_seconds"] > 0
    assert line["peak_bytes"] > 0


def test_flops_are_those_of_the_network(toy_config, tmp_path):
    lines = benchmark(toy_config, str(tmp_path), Request(devices=[2], windows=1))
    flops = {line["what"]: line["flops"] for line in lines}
    embed = 2 * 8 * FEATURES * WIDTH
    assert flops["embed"] == embed
    # Forward, and the gradients of weights; the classifier passes one on to its inputs.
    # The pair head, which stage one computes but does not train, sees 3 channels.
    classifier = 2 * 8 * WIDTH * CLASSES
    assert flops["train:first"] == 2 * embed + 3 * classifier + 2 * 8 * 3
    # Stage two: all 8 x 8 pairs forward, and the gradient of the head's weights.
    assert flops["train:second"] == 2 * (2 * 8 * 8 * 3)
    assert flops["pair maps"] == 0
    assert flops["pair scores"] == 2 * 4 * 3
    assert flops["ranking"] == 0  # sums of absolute differences


def test_the_step_is_the_training_loops(toy_config, tmp_path, monkeypatch):
    """Both lower to the same program, for the same shapes and the same layout."""
    toy_config.ema_decay = 0.9
    programs = []
    original = workloads._work

    def keep(jitted, *args, **rest):
        if rest["what"].startswith("train"):
            programs.append(jitted.lower(*args).as_text())
        return original(jitted, *args, **rest)

    monkeypatch.setattr(workloads, "_work", keep)
    monkeypatch.setattr(workloads, "IDENTITIES", 9)  # those of the data
    monkeypatch.setattr(workloads, "STEPS_PER_EPOCH", 6)
    request = Request(measures=["train"], devices=[8], windows=1)
    benchmark(toy_config, str(tmp_path / "benchmark"), request)

    trained = []
    loop = train._StageLoop.run

    def run(self, state):
        batch = next(data := self._data())
        data.close()
        batch = sharding.put_batch(batch, self._run.mesh)
        trained.append(self._program.step.lower(state, batch).as_text())
        return loop(self, state)

    monkeypatch.setattr(train._StageLoop, "run", run)
    train.train_and_evaluate(toy_config, str(tmp_path / "run"))
    assert len(programs) == 2
    assert programs == trained


def test_every_process_refuses_another_config_s_measurements(
    toy_config, tmp_path, monkeypatch
):
    (tmp_path / "benchmark.jsonl").write_text('{"config_digest": "of another"}\n')
    for process in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        with pytest.raises(UserError, match="with other fields"):
            benchmark(toy_config, str(tmp_path), Request(measures=["embed"]))


def test_pmap_sees_each_device_s_rows_alone(toy_config, tmp_path):
    request = Request(measures=["pmap"], devices=[2], windows=1)
    lines = benchmark(toy_config, str(tmp_path), request)
    assert [line["what"] for line in lines] == ["pmap:first", "pmap:second"]
    assert [line["batch"] for line in lines] == [8, 8]
    # Stage two: the pairs of 4 images on each of two devices; see above.
    assert lines[1]["flops"] == 2 * 2 * (2 * 4 * 4 * 3)
    assert "each device's rows alone" in (tmp_path / "table.md").read_text()


def test_pmap_takes_the_same_step_where_rows_are_not_coupled(toy_config, monkeypatch):
    summed, summed_in = [], step.summed_in
    monkeypatch.setattr(
        step, "summed_in", lambda dtype: summed.append(dtype) or summed_in(dtype)
    )
    toy_config.ema_decay, toy_config.gradient_dtype = 0.9, "float32"
    method, stage = Uncoupled(), dataclasses.replace(STAGE, micro_batches=1)
    devices = jax.devices()[:4]
    mapped = workloads._mapped_trainer(toy_config, method, stage, devices)
    mapped.work.call()
    mesh = sharding.make_mesh(devices)
    shapes = experiment.example_batch(toy_config, stage.batch_size)
    program = workloads.stage_program(toy_config, method, stage, mesh, shapes)
    rows = random_data.training_rows(toy_config, method, stage)
    state, _ = program.step(program.fresh(), sharding.put_batch(rows, mesh))
    assert summed == ["float32", "float32"]
    for found, wanted in zip(
        *(jax.tree.leaves((x.params, x.average)) for x in (mapped.state, state)),
        strict=True,
    ):
        for device in range(4):
            np.testing.assert_allclose(found[device], wanted, rtol=1e-5, atol=1e-7)


def test_layouts_and_micro_batches_are_fields_to_sweep(toy_config, tmp_path):
    request = Request(
        measures=["train"],
        devices=[2],
        sweeps=["shard_parameters=False,True", "stages.first.micro_batches=2"],
        windows=1,
    )
    toy_config.stages.second.micro_batches = 2
    lines = benchmark(toy_config, str(tmp_path), request)
    assert [(line["what"], line["sweep"]["shard_parameters"]) for line in lines] == [
        (f"train:{stage}", split)
        for split in (False, True)
        for stage in ("first", "second")
    ]


def test_rows_fit_the_contract(toy_config):
    method = experiment.build_method(toy_config, num_classes=9)
    rows = random_data.rows(toy_config, method, 12, ("parts",))
    shapes = experiment.example_batch(toy_config, 12)
    (stage, _) = experiment.build_stages(toy_config, method)
    labels = random_data.identities(stage)
    for name, value in (rows | labels).items():
        assert value.dtype == shapes[name].dtype, name
        assert value.shape[1:] == shapes[name].shape[1:], name
    assert rows["parts"].max() == 8  # the classes of the kind "parts"
    assert rows["camera"].max() < random_data.CAMERAS
    np.testing.assert_array_equal(labels["label"], [0, 0, 1, 1, 2, 2, 3, 3])
    assert set(random_data.rows(toy_config, method, 2, ())) == {"image", "camera"}


def test_methods_that_score_the_whole_gallery(toy_config, tmp_path):
    toy_config.model.pair_inputs = ("parts", "camera")
    with toy_config.ignore_type():
        toy_config.model.top_k = None
    request = Request(measures=["pairs"], devices=[1], windows=1)
    lines = benchmark(toy_config, str(tmp_path), request)
    scores = lines[-1]
    assert [line["what"] for line in lines] == ["pair maps", "pair scores"]
    assert scores["batch"] == 8 * 4  # query_block x pair_block
    assert scores["flops"] == 8 * 2 * 4 * 3


def test_weak_scaling_over_fields_and_devices(toy_config, tmp_path):
    request = Request(
        measures=["embed"],
        devices=[1, 2],
        batches=[4],
        per_device=True,
        sweeps=["model.width=6,12"],
        windows=1,
    )
    lines = benchmark(toy_config, str(tmp_path), request)
    found = [
        (x["sweep"]["model.width"], x["devices"], x["batch"], x["scaling"])
        for x in lines
    ]
    assert found == [(w, n, 4 * n, "weak") for w in (6, 12) for n in (1, 2)]
    one, two, *wide = [line["flops"] for line in lines]
    assert (two, wide) == (2 * one, [2 * one, 4 * one])
    assert {line["mfu"] for line in lines} == {None}  # nobody knows a CPU's peak
    # Another launch adds to the folder.
    request = Request(measures=["embed"], devices=[4], batches=[16], windows=1)
    benchmark(toy_config, str(tmp_path), request)
    assert len(_stored(tmp_path)) == 5


def test_a_paper(aaformer_config, tmp_path):
    aaformer_config.model.depth = 1
    request = Request(
        measures=["train", "embed"],
        devices=[2],
        batches=[8],
        sweeps=["model.dtype=bfloat16"],
        windows=1,
    )
    train_line, embed_line = benchmark(aaformer_config, str(tmp_path), request)
    assert train_line["what"] == "train:train"
    assert train_line["dtype"] == embed_line["dtype"] == "bfloat16"
    # With backward, three times the forward pass, less what no gradient flows into:
    # the pixels, and the assignment of patches to parts.
    assert 2.3 < train_line["flops"] / embed_line["flops"] < 3.3


def test_memory_that_does_not_suffice_is_a_line(toy_config, tmp_path, monkeypatch):
    def fail(call, devices, *, windows):
        if len(devices) == 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return timing.Timing(1.0, 1.0, 1.0, windows, 1)

    monkeypatch.setattr(timing, "time_calls", fail)
    request = Request(measures=["train"], devices=[1, 2], windows=1)
    lines = benchmark(toy_config, str(tmp_path), request)
    assert [line.get("error") for line in lines] == ["out of memory", None, None]
    assert (lines[0]["what"], lines[0]["batch"]) == ("train:first", 8)
    assert "out of memory" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize(
    ("refused", "failed"),
    [("train:second", ("train:second", 2, 8)), ("pair scores", ("pair scores", 1, 4))],
)
def test_what_cannot_be_made_is_a_line_of_its_own(
    toy_config, tmp_path, monkeypatch, refused, failed
):
    original = workloads._work

    def work(*args, what, **rest):
        if what == refused:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return original(*args, what=what, **rest)

    monkeypatch.setattr(workloads, "_work", work)
    measure = "train" if "train" in refused else "pairs"
    request = Request(measures=[measure], devices=[2], windows=1)
    made, line = benchmark(toy_config, str(tmp_path), request)
    assert "error" not in made
    assert line["error"] == "out of memory"
    assert (line["what"], line["devices"], line["batch"]) == failed


def test_a_stage_that_was_timed_holds_no_memory(toy_config):
    (point,) = points(toy_config, devices=[1])
    works = workloads.workloads(point, ["train"])
    work = next(works)  # as whoever times it has it
    state = jax.tree.leaves(work.call.__self__.state.opt_state)
    held = [weakref.ref(array) for array in state]
    del state
    next(works)
    assert held
    assert not any(array() for array in held)


def test_the_allocators_peak_counts_where_it_rose(toy_config, tmp_path, monkeypatch):
    seen = iter([100, 700, 700, 700])
    monkeypatch.setattr(timing, "allocator_peak", lambda devices: next(seen))
    request = Request(measures=["train"], devices=[1], windows=1)
    first, second = benchmark(toy_config, str(tmp_path), request)
    assert (first["peak_bytes"], first["peak_bytes_from"]) == (700, "allocator")
    assert second["peak_bytes_from"] == "compiler"


def test_the_compilation_cache_is_off_while_it_is_measured(
    toy_config, tmp_path, monkeypatch
):
    seen = []
    original = workloads._work

    def keep(*args, **rest):
        seen.append(jax.config.jax_enable_compilation_cache)
        return original(*args, **rest)

    monkeypatch.setattr(workloads, "_work", keep)
    before = jax.config.jax_enable_compilation_cache
    request = Request(measures=["embed"], devices=[1], windows=1)
    benchmark(toy_config, str(tmp_path), request)
    assert seen == [False]
    assert jax.config.jax_enable_compilation_cache == before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"measures": ["trian"]}, "--measure=trian: known are train.*pmap"),
        ({"windows": 0}, "at least 1"),
        ({"batches": [0]}, "at least 1"),
        ({"peak_tflops": 0.0}, "more than 0"),
    ],
)
def test_requests_that_make_no_sense(fields, message):
    with pytest.raises(UserError, match=message):
        Request(**fields)


def test_devices_that_cannot_share_the_identities(toy_config, tmp_path):
    with pytest.raises(UserError, match="8 devices cannot share 4 identities"):
        benchmark(toy_config, str(tmp_path), Request(measures=["pmap"], devices=[8]))


def test_nothing_is_measured_before_every_point_was_checked(toy_config, tmp_path):
    toy_method.TRACES.clear()
    with pytest.raises(UserError, match="over 3 devices"):
        benchmark(toy_config, str(tmp_path), Request(devices=[1, 3]))
    assert not toy_method.TRACES
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--mode=benchmark", "--devices=one"), "--devices: "),
        (("--mode=benchmark", "--batch=8", "--batch_per_device=8"), "give either"),
        (("--mode=benchmark", "--checkpoint=runs/x"), "for evaluate and export"),
        (("--batch=8",), "--batch is for --mode=benchmark"),
        (("--mode=benchmark", "--topology=v5e:2x2"), "is for --mode=plan"),
        (("--mode=benchmark", "--sweep=model.dtpye=x"), "did you mean model.dtype"),
    ],
)
def test_mistakes_on_the_command_line(args, message, tmp_path):
    done = _run(DEMO, f"--workdir={tmp_path}", *args)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert not list(tmp_path.iterdir())
