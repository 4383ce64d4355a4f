"""The loop, with a method that uses the whole contract: stages, a bank, pairs."""

import json
import pathlib
import resource
import signal
import subprocess
import sys
import types
import weakref

import jax
import numpy as np
import pytest

from reid_jax import experiment
from reid_jax.errors import UserError
from reid_jax.evaluation import evaluate, results
from reid_jax.runtime import checkpoint
from reid_jax.runtime import workdir as workdirs
from reid_jax.runtime.metrics import MetricWriter
from reid_jax.training import run, train
from tests import toy_method
from tests.conftest import CHECKOUT
from tests.launch import toy as launched
from tests.waiting import PATIENCE, wait_until


def _rows(workdir):
    lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "loss" in row]


def _losses(workdir):
    return {row["step"]: row["loss"] for row in _rows(workdir)}


def _state(workdir, step):
    """Every array of a checkpoint, as stored."""
    import orbax.checkpoint as ocp

    folder = pathlib.Path(workdir).resolve() / "checkpoints" / "last" / str(step)
    state = ocp.PyTreeCheckpointer().restore(folder / "state")
    return {**state, "rng": jax.random.key_data(state["rng"])}


def _assert_bitwise_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_run_leaves_results_checkpoints_and_pictures(
    aaformer_config, tmp_path, on_devices
):
    on_devices(1)
    entries = train.train_and_evaluate(aaformer_config, str(tmp_path))
    assert json.loads((tmp_path / "results.json").read_text()) == entries
    (entry,) = entries
    assert entry["valid_queries"] == 15
    assert entry["step"] == entry["best"]["step"] == 6
    assert set(entry["metrics"]) >= {"rank1", "rank5", "rank10", "mAP", "mINP"}
    assert all(0 <= value <= 1 for value in entry["metrics"].values())
    pictures = {path.name for path in (tmp_path / "pictures" / "tiny").iterdir()}
    drawn = {"ranking.png", "ranking.json", "parts.png", "attention.png"}
    drawn |= {"hardest.png", "easiest.png", "details.json"}
    assert pictures == drawn
    page = (tmp_path / "report.html").read_text()
    assert f"<td>{entry['metrics']['mAP']:.1%}</td>" in page
    assert "lacks:" not in page
    (start,) = json.loads((tmp_path / "manifest.json").read_text())
    assert start["packages"]["jax"] == jax.__version__
    assert start["config"]["model.width"] == 24
    assert [row["step"] for row in _rows(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert all(row["images_per_second"] > 0 for row in _rows(tmp_path)[1:])
    assert list((tmp_path / "tensorboard").iterdir())


def test_training_lowers_the_loss_and_keeps_the_best(toy_config, tmp_path, on_devices):
    on_devices(1)
    toy_config.stages.first.epochs = 10.0
    toy_config.evaluation.every_epochs = 2.0
    toy_config.max_steps = 60
    train.train_and_evaluate(toy_config, str(tmp_path))
    losses = list(_losses(tmp_path).values())
    assert np.mean(losses[-6:]) < 0.85 * np.mean(losses[:6])
    evaluated = [
        json.loads(line)
        for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
        if "tiny/mAP" in line
    ]
    assert [row["step"] for row in evaluated] == [12, 24, 36, 48, 60]
    best = max(evaluated, key=lambda row: row["tiny/mAP"])
    assert (tmp_path / "checkpoints" / "best" / str(best["step"])).is_dir()


def test_resume_is_exact_also_across_the_border_of_stages(
    toy_config, tmp_path, on_devices
):
    on_devices(2)
    straight = train.train_and_evaluate(toy_config, str(tmp_path / "straight"))
    for stop in (2, 6, 7):  # in the first stage, at its end, in the second
        toy_config.max_steps = stop
        assert train.train_and_evaluate(toy_config, str(tmp_path / "parts")) == []
    toy_config.max_steps = 0
    resumed = train.train_and_evaluate(toy_config, str(tmp_path / "parts"))
    assert resumed == straight
    assert _losses(tmp_path / "parts") == _losses(tmp_path / "straight")
    _assert_bitwise_equal(
        _state(tmp_path / "parts", 10), _state(tmp_path / "straight", 10)
    )


def test_frozen_parameters_do_not_move(toy_config, tmp_path, on_devices):
    on_devices(1)
    toy_config.checkpoint.every_epochs = 1.0
    toy_config.checkpoint.keep = 10
    toy_config.log_every_steps = 4
    train.train_and_evaluate(toy_config, str(tmp_path))
    # Of every stage the first, the fourth and the last.
    assert list(_losses(tmp_path)) == [1, 4, 6, 7, 10]
    first, second = (_state(tmp_path, step)["params"] for step in (6, 10))
    _assert_bitwise_equal(first["base"], second["base"])
    assert not np.array_equal(first["pair"]["kernel"], second["pair"]["kernel"])


def test_one_compilation_per_stage_and_one_state(
    toy_config, tmp_path, on_devices, monkeypatch
):
    """Of the stage before nothing is left when a later one trains."""
    on_devices(2)
    before, left = [], []
    following = train.StageProgram.following
    after_step = train._StageLoop._after_step

    def followed(program, variables):
        before.extend(map(weakref.ref, jax.tree.leaves(variables)))
        return following(program, variables)

    def looked_at(loop, *args):
        loop._run.checkpoints.wait()  # what is being saved is held, too
        left.append(sum(array() is not None for array in before))
        return after_step(loop, *args)

    monkeypatch.setattr(train.StageProgram, "following", followed)
    monkeypatch.setattr(train._StageLoop, "_after_step", looked_at)
    toy_method.TRACES.clear()
    train.train_and_evaluate(toy_config, str(tmp_path))
    assert toy_method.TRACES == ["first", "second"]
    assert before
    assert left == [0] * 10


def test_the_same_run_on_any_number_of_devices(toy_config, tmp_path, on_devices):
    losses = []
    for count in (1, 8):
        on_devices(count)
        train.train_and_evaluate(toy_config, str(tmp_path / str(count)))
        losses.append(_losses(tmp_path / str(count)))
    one, eight = losses
    assert list(one) == list(eight) == list(range(1, 11))
    np.testing.assert_allclose(list(eight.values()), list(one.values()), rtol=1e-5)


def test_pairs_are_scored_in_the_stage_that_learned_them(
    toy_config, tmp_path, on_devices
):
    on_devices(1)
    toy_config.evaluation.every_epochs = 0.5  # every 3 steps, in both stages
    (entry,) = train.train_and_evaluate(toy_config, str(tmp_path))
    assert entry["metrics_before_pairs"] != entry["metrics"]
    best = json.loads((tmp_path / "results.json").read_text())[0]["best"]
    assert best["step"] in (3, 9, 10)


def test_pretrained_weights_start_a_run_and_a_resumed_one_needs_none(
    aaformer_config, tmp_path, on_devices, capsys
):
    on_devices(1)
    config = aaformer_config
    config.model.depth, config.evaluation.pictures = 1, False
    config.max_steps = 1
    train.train_and_evaluate(config, str(tmp_path / "first"))
    config.pretrained = str(tmp_path / "first")
    config.seed = 5
    # Nothing moves, so the saved state is the one that was started from.
    config.stages.train.optimizer.learning_rate = 0.0
    config.stages.train.optimizer.warmup_from = 0.0
    train.train_and_evaluate(config, str(tmp_path / "second"))
    assert "pretrained weights: " in capsys.readouterr().out
    first, second = (
        _state(tmp_path / name, 1)["params"] for name in ("first", "second")
    )
    _assert_bitwise_equal(first["backbone"], second["backbone"])
    kernels = (p["heads"]["classifier"]["kernel"] for p in (first, second))
    assert not np.array_equal(*kernels)

    (tmp_path / "first").rename(tmp_path / "gone")
    config.max_steps = 2
    train.train_and_evaluate(config, str(tmp_path / "second"))
    assert checkpoint.find(str(tmp_path / "second")).name == "2"


def test_a_loss_that_is_not_finite_stops_the_run(toy_config, tmp_path, on_devices):
    on_devices(1)
    toy_config.checkpoint.every_epochs = 1 / 6
    toy_config.model.explode_at = 0.5  # of an epoch of 6 steps
    with pytest.raises(UserError, match="stopped at step 4: the loss"):
        train.train_and_evaluate(toy_config, str(tmp_path))
    folder = checkpoint.find(str(tmp_path))
    assert folder.name == "3"
    state = _state(tmp_path, 3)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state["params"]))


def test_an_odd_name_below_home_and_an_evaluation_that_was_cut_short(
    toy_config, tmp_path, on_devices, monkeypatch
):
    on_devices(1)
    straight = train.train_and_evaluate(toy_config, str(tmp_path / "straight"))
    home, here = tmp_path / "home", tmp_path / "here"
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    with monkeypatch.context() as patch:

        def killed(*_):
            raise KeyboardInterrupt

        patch.setattr(results, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            train.train_and_evaluate(toy_config, "~/lr[1e-3]")
    assert train.train_and_evaluate(toy_config, "~/lr[1e-3]") == straight

    def rows(workdir):
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        volatile = ("time", "images_per_second")
        return [
            {name: value for name, value in row.items() if name not in volatile}
            for row in map(json.loads, lines)
        ]

    assert rows(home / "lr[1e-3]") == rows(tmp_path / "straight")
    (entry,) = evaluate.evaluate_checkpoint(
        toy_config, "~/lr[1e-3]", workdir="~/lr[1e-3]"
    )
    assert entry["metrics"] == straight[0]["metrics"]
    assert len(json.loads((home / "lr[1e-3]" / "results.json").read_text())) == 1
    assert not list(here.iterdir())
    toy_config.seed = 9
    with pytest.raises(UserError, match="another config"):
        train.train_and_evaluate(toy_config, "~/lr[1e-3]")


class TestMistakes:
    def test_another_config_in_the_workdir(self, toy_config, tmp_path, on_devices):
        on_devices(1)
        toy_config.max_steps = 1
        train.train_and_evaluate(toy_config, str(tmp_path))
        toy_config.stages.first.optimizer.learning_rate = 0.2
        message = r"learning_rate: 0\.1 there, 0\.2 here"
        with pytest.raises(UserError, match=message):
            train.train_and_evaluate(toy_config, str(tmp_path))
        (tmp_path / "config.json").unlink()  # its checkpoint knows
        with pytest.raises(UserError, match=message):
            train.train_and_evaluate(toy_config, str(tmp_path))

    def test_attention_that_does_not_train_here(self, toy_config, tmp_path):
        toy_config.model.attention_implementation = "cudnn"
        with pytest.raises(UserError, match="trains on an NVIDIA GPU"):
            train.train_and_evaluate(toy_config, str(tmp_path))
        assert not list(tmp_path.glob("*"))

    def test_too_few_identities(self, toy_config, tmp_path, on_devices):
        on_devices(1)
        toy_config.stages.second.identities = 10
        with pytest.raises(UserError, match=r"needs 10 identities.*stages\.second\."):
            train.train_and_evaluate(toy_config, str(tmp_path))
        assert not (tmp_path / "config.json").exists()

    def test_a_batch_that_the_devices_do_not_divide(self, toy_config, tmp_path):
        toy_config.stages.first.identities = 3
        with pytest.raises(UserError, match=r"6 images cannot be split over 8 devices"):
            train.train_and_evaluate(toy_config, str(tmp_path))

    @pytest.mark.parametrize(
        ("groups", "message"), [(3, "does not divide the 8 images"), (4, "no negative")]
    )
    def test_groups_of_rows(
        self, aaformer_config, tmp_path, on_devices, groups, message
    ):
        on_devices(1)
        aaformer_config.model.mining_groups = groups
        with pytest.raises(UserError, match=message):
            train.train_and_evaluate(aaformer_config, str(tmp_path))
        assert not (tmp_path / "config.json").exists()

    def test_pretrained_weights(self, toy_config, tmp_path):
        toy_config.pretrained, toy_config.variant = "vit_base_patch17", "market1501"
        with pytest.raises(UserError, match=r"(?s)known are.*:demo.*pretrained=none"):
            train.train_and_evaluate(toy_config, str(tmp_path))
        assert not (tmp_path / "config.json").exists()

    def test_numbers_that_make_no_sense(self, toy_config, tmp_path):
        toy_config.checkpoint.keep = 0
        toy_config.stages.second.identities = 1
        toy_config.stages.first.epochs = 0.0
        with pytest.raises(UserError) as raised:
            train.train_and_evaluate(toy_config, str(tmp_path))
        lines = str(raised.value).splitlines()
        assert [line.partition(" and at most")[0] for line in lines] == [
            "config.checkpoint.keep is 0; it must be at least 1",
            "config.stages.first.epochs is 0.0; it must be more than 0",
            "config.stages.second.identities is 1; it must be at least 2",
        ]

    def test_a_protocol_that_cannot_be_evaluated_stops_before_training(
        self, toy_config, tmp_path, on_devices
    ):
        on_devices(1)
        toy_config.evaluate_on = ("tiny", "absent")
        with pytest.raises(UserError, match="absent"):
            train.train_and_evaluate(toy_config, str(tmp_path))
        assert not (tmp_path / "config.json").exists()

    def test_a_step_of_reranking_without_sense_stops_before_training(
        self, aaformer_config, tmp_path, on_devices
    ):
        on_devices(1)
        aaformer_config.model.vector = "raw"
        aaformer_config.evaluation.rerank = ("flip",)
        with pytest.raises(UserError, match=r"flip averages .*`length`"):
            train.train_and_evaluate(aaformer_config, str(tmp_path))
        assert not (tmp_path / "config.json").exists()

    def test_a_damaged_checkpoint_is_named_with_the_one_before(
        self, toy_config, tmp_path, on_devices
    ):
        on_devices(1)
        toy_config.checkpoint.every_epochs = 1 / 6
        toy_config.max_steps = 3
        train.train_and_evaluate(toy_config, str(tmp_path))
        folder = tmp_path / "checkpoints" / "last" / "3" / "state"
        for path in folder.rglob("*"):
            if path.is_file() and path.stat().st_size > 100:
                path.write_bytes(path.read_bytes()[:50])
        toy_config.max_steps = 4
        with pytest.raises(UserError, match=r"last/3 cannot be read.*from step 2"):
            train.train_and_evaluate(toy_config, str(tmp_path))

    def test_part_labels_of_another_kind(self, aaformer_config, tmp_path, on_devices):
        on_devices(1)
        aaformer_config.model.assignment = "parsing"
        aaformer_config.model.part_kind = "lip"
        with pytest.raises(UserError, match=r"kind 'parts', but .*'lip'"):
            train.train_and_evaluate(aaformer_config, str(tmp_path))

    def test_no_part_labels(self, aaformer_config):
        method = experiment.build_method(aaformer_config, num_classes=3)
        none = types.SimpleNamespace(has_parts=False)
        experiment.check_parts(method, none, ())
        with pytest.raises(UserError, match="the data set has none"):
            experiment.check_parts(method, none, ("parts",))

    def test_an_unknown_augmentation(self, toy_config, tmp_path):
        toy_config.augment.steps = ("flip", "pad_corp")
        with pytest.raises(UserError, match="pad_crop"):
            train.train_and_evaluate(toy_config, str(tmp_path))
        assert not (tmp_path / "config.json").exists()


def _command(data_dir, workdir, *extra):
    """Command line of a run of the toy method; extras are fields, or flags."""
    fields = {
        "data.data_dir": data_dir,
        **dict(item.split("=", 1) for item in extra if not item.startswith("--")),
    }
    return [
        *(sys.executable, "-m", "reid_jax.main"),
        f"--config={CHECKOUT}/tests/launch/toy.py",
        f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in fields.items()),
        *(item for item in extra if item.startswith("--")),
    ]


def _start(command):
    return subprocess.Popen(
        command,
        cwd=CHECKOUT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def _wait_for_step(process, workdir, step):
    """Waits until a run has logged a step."""
    log = pathlib.Path(workdir) / "metrics.jsonl"
    wait_until(
        lambda: log.exists() and len(log.read_text().splitlines()) >= step, process
    )


def test_a_notice_to_stop_saves_first_and_a_kill_loses_nothing(tiny_data, tmp_path):
    long = ("stages.first.epochs=4000.0",)
    process = _start(_command(tiny_data, tmp_path, *long))
    _wait_for_step(process, tmp_path, 3)
    process.send_signal(signal.SIGINT)  # Ctrl-C; SIGTERM below, with two processes
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, output
    assert "stopping: saves after this step" in output
    assert "saved; the same command goes on from there" in output
    stopped = int(checkpoint.find(str(tmp_path)).name)
    assert stopped >= 3

    # Every step saves, so a kill at any time falls into a save sooner or later.
    process = _start(_command(tiny_data, tmp_path, *long))
    _wait_for_step(process, tmp_path, stopped + 3)
    process.kill()
    process.communicate()
    killed = int(checkpoint.find(str(tmp_path)).name)
    assert killed > stopped

    process = _start(_command(tiny_data, tmp_path, *long, f"max_steps={killed + 5}"))
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    assert f"at step {killed}" in output
    straight = _start(
        _command(tiny_data, tmp_path / "s", *long, f"max_steps={killed + 5}")
    )
    output, _ = straight.communicate(timeout=PATIENCE)
    assert straight.returncode == 0, output
    _assert_bitwise_equal(
        _state(tmp_path, killed + 5), _state(tmp_path / "s", killed + 5)
    )


# The largest file of this checkpoint has 7 kB; the metrics have less at first.
@pytest.mark.parametrize("limit", [5000, 1])
def test_a_full_disk_is_one_message_and_loses_nothing(
    tiny_data, tmp_path, limit, monkeypatch
):
    # Half of a compiled program is not to lie where other tests read.
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
    process = _start(_command(tiny_data, tmp_path, "stages.first.epochs=4000.0"))
    wait_until(lambda: workdirs.has_checkpoint(str(tmp_path)), process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2, output
    assert output.count("error: cannot write to") == 1
    assert "File too large" in output
    # Now and then a thread of Orbax' finds its loop closed by the failure of another.
    closed = output.count("RuntimeError: Event loop is closed")
    assert output.count("Traceback") == closed, output
    step = int(checkpoint.find(str(tmp_path)).name)  # raises if anything is damaged
    MetricWriter(str(tmp_path), resume_step=step).close()
    assert list(_losses(tmp_path)) == list(range(1, step + 1))


def test_a_folder_that_is_renamed_stops_its_run(tiny_data, tmp_path):
    process = _start(_command(tiny_data, tmp_path / "a", "stages.first.epochs=4000.0"))
    wait_until(lambda: workdirs.has_checkpoint(str(tmp_path / "a")), process)
    (tmp_path / "a").rename(tmp_path / "b")
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2, output
    assert output.count("error: ") == 1
    assert "Traceback" not in output
    checkpoint.find(str(tmp_path / "b"))
    assert not workdirs.has_checkpoint(str(tmp_path / "a"))


def test_two_processes_are_one_run(tiny_data, tmp_path, on_devices):
    """Same losses, one set of files; a notice to one of them saves on both."""
    port = _free_port()
    both = [
        _start(
            _command(
                tiny_data,
                tmp_path / "two",
                "checkpoint.every_epochs=1.0",
                f"--coordinator=localhost:{port}",
                "--process_count=2",
                f"--process_index={index}",
            )
        )
        for index in range(2)
    ]
    outputs = [process.communicate(timeout=PATIENCE)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(outputs)
    config = launched.get_config()
    config.data.data_dir, config.evaluation.pictures = str(tiny_data), False
    config.checkpoint.every_epochs = 0.0
    on_devices(1)
    train.train_and_evaluate(config, str(tmp_path / "one"))
    one, two = _losses(tmp_path / "one"), _losses(tmp_path / "two")
    assert list(one) == list(two) == list(range(1, 13))
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=1e-5)
    results = [
        json.loads((tmp_path / name / "results.json").read_text())[0]
        for name in ("one", "two")
    ]
    assert results[0]["valid_queries"] == results[1]["valid_queries"] == 15
    assert results[0]["metrics"] == pytest.approx(results[1]["metrics"], rel=1e-5)


def test_a_notice_to_one_process_saves_on_both(tiny_data, tmp_path):
    port = _free_port()
    both = [
        _start(
            _command(
                tiny_data,
                tmp_path,
                "stages.first.epochs=4000.0",
                f"--coordinator=localhost:{port}",
                "--process_count=2",
                f"--process_index={index}",
            )
        )
        for index in range(2)
    ]
    _wait_for_step(both[0], tmp_path, 3)
    both[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=PATIENCE)[0] for process in both]
    assert [process.returncode for process in both] == [143, 143], "\n".join(outputs)
    step = int(checkpoint.find(str(tmp_path)).name)
    assert f"stopped at step {step}" in outputs[0]


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def test_the_best_checkpoint_is_one_of_the_last_stage(
    toy_config, tmp_path, on_devices, monkeypatch
):
    """A better score of the first stage lacks what the second has learned."""
    on_devices(1)
    scores = iter([0.9, 0.5])
    monkeypatch.setattr(run, "_shared_score", lambda entries: next(scores))
    toy_config.evaluation.every_epochs = 1.0
    (entry,) = train.train_and_evaluate(toy_config, str(tmp_path))
    assert entry["best"]["step"] == 10
    assert next(scores, None) is None  # the end of the first stage was evaluated
    (kept,) = (tmp_path / "checkpoints" / "best").glob("[0-9]*")
    assert kept.name == "10"


def test_the_best_state_is_that_of_the_first_protocol():
    entries = [{"metrics": {"mAP": 0.3, "rank1": 0.9}}, {"metrics": {"mAP": 0.8}}]
    assert run._shared_score(entries) == 0.3
