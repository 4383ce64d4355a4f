"""`benchmarks/leaderboard`, with a stand-in for the training processes."""

import ast
import json
import math
import pathlib
import shutil
import statistics
import types
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from scipy import special

from benchmarks import trainings
from benchmarks.leaderboard import __main__ as command
from benchmarks.leaderboard import board, page, standings, systems
from data_pipelines import sampling
from data_pipelines.synthetic import sets
from tests.commands import ended

ALIKE = [f"bed_alike_{part}" for part in ("shirt", "trousers", "shoes", "bag")]


def score(seed, row, name, kind="metrics"):
    """mAP as a fraction; systems are better, by another amount with every seed."""
    hard = 0.02 * (ALIKE.index(name) if name in ALIKE else 9)
    gain = 0.05 + 0.01 * (-1) ** seed if kind == "metrics" else 0.02
    return 0.5 + 0.03 * seed**2 - hard + gain * (not row)


def write_run(flags, folder):
    """What a run leaves that is read."""
    paper, _, arguments = flags["--config"].partition(":")
    row = arguments.partition("row=")[2]
    seed = int(flags["--config.seed"])
    folder.mkdir(parents=True)
    stage = {"identities": 8, "images_per_identity": 4}
    config = {"seed": seed, "data": {"height": 128, "width": 64}}
    config |= {"stages": {"train": stage}, "row": row, "paper": paper}
    (folder / "config.json").write_text(json.dumps(config))
    start = {"git_revision": "0123456789abcdef", "packages": {"jax": "0.10.2"}}
    (folder / "manifest.json").write_text(json.dumps([start | {"devices": ["cpu"]}]))
    (folder / "results.json").write_text("[]")
    return seed, row, paper


@pytest.fixture
def processes(monkeypatch):
    """The flags of every process; each "trains" or "evaluates" at once."""
    calls, alone = [], "--config.model.embeddings"

    def run(command, check):
        del check
        flags = dict(word.split("=", 1) for word in command[3:])
        calls.append(flags)
        folder = pathlib.Path(flags["--workdir"])
        if "--mode" in flags:
            config = json.loads((folder / "config.json").read_text())
            seed, row, paper = (config[name] for name in ("seed", "row", "paper"))
        else:
            seed, row, paper = write_run(flags, folder)
        entries = json.loads((folder / "results.json").read_text())
        for protocol in ast.literal_eval(flags["--config.evaluate_on"]):
            name = protocol.removeprefix("synthetic/")
            entry = {"protocol": protocol, "step": 640}
            kinds = ["metrics"]
            kinds += ["metrics_before_pairs"] * (paper == "cacenet" and not row)
            entry |= {kind: {"mAP": score(seed, row, name, kind)} for kind in kinds}
            if alone in flags:
                entry["changed"] = {"model.embeddings": ["global"]}
                entry["metrics"] = {"mAP": score(seed, row, name, alone)}
            entries.append(entry)
        (folder / "results.json").write_text(json.dumps(entries))
        return types.SimpleNamespace(returncode=0)

    monkeypatch.setattr(trainings.subprocess, "run", run)
    monkeypatch.setattr(board, "_parameters", lambda folder: 1234567)
    oracle = types.SimpleNamespace(mAP=0.9)
    monkeypatch.setattr(board.beds, "oracle", lambda name: oracle)
    monkeypatch.setattr(page, "chart", lambda *_: b"a picture")
    return calls


def start(tmp_path, *arguments):
    return ended(command.main, [f"--workdir={tmp_path}", *arguments])


def row_of(text, *beginning):
    """The cells of the line of a table that begins so."""
    (line,) = (
        line
        for line in text.splitlines()
        if line.startswith("| " + " | ".join(beginning))
    )
    return [cell.strip() for cell in line.strip("|").split("|")]


# What is trained.


@pytest.mark.parametrize(
    "system", systems.systems(systems.PAPERS), ids=lambda s: s.name
)
def test_everybody_sees_as_many_images(system):
    images = 10_240
    flags = dict(flag.split("=") for flag in systems.schedule(system, images))
    assert flags["--config.evaluation.every_epochs"] == "0"
    assert flags["--config.evaluation.pictures"] == "False"
    demo, seen = system.config(), 0
    counts = np.unique(
        [shot.person for shot in sets.shots(systems.DATASET, "train")],
        return_counts=True,
    )[1]
    for name, stage in demo.stages.items():
        field = f"--config.stages.{name}"
        if f"{field}.epochs" not in flags:
            assert (name, system.row) == ("correlate", "table4-baseline")
            continue
        per_epoch = sum(max(1, n // 4) for n in counts) // stage.identities
        epochs = float(flags[f"{field}.epochs"])
        seen += round(epochs * per_epoch) * stage.identities * 4
        assert float(flags[f"{field}.optimizer.warmup_epochs"]) / epochs == (
            pytest.approx(stage.optimizer.warmup_epochs / stage.epochs)
        )
    assert seen == images
    if system.name == "cpacol-full":
        shares = [float(flags[f"--config.stages.{n}.epochs"]) for n in demo.stages]
        of_demo = [stage.epochs for stage in demo.stages.values()]
        assert shares[0] / shares[1] == pytest.approx(of_demo[0] / of_demo[1], rel=0.02)


def test_all_systems_are_trained_with_a_seed_before_the_next(processes, tmp_path):
    chosen = ["--systems=drop,aaformer", "--beds=alike", "--seeds=2"]
    fields = ["--", "--config.pretrained=none", "--config.data.data_dir=elsewhere"]
    assert start(tmp_path, *chosen, *fields) == 0
    trained = [call for call in processes if "--mode" not in call]
    named = [(call["--config"], call["--config.seed"]) for call in trained]
    demo = f"demo,dataset=synthetic/{systems.DATASET}"
    configs = (
        *(f"aaformer:{demo},row=table4-vit", f"aaformer:{demo}"),
        *(f"drop:{demo},row=table4-baseline", f"drop:{demo}"),
    )
    assert named == [(config, seed) for seed in "01" for config in configs]
    for call in processes:
        assert call["--config.evaluate_on"] == str(
            tuple(f"synthetic/{n}" for n in ALIKE)
        )
        assert call["--config.data.data_dir"] == "elsewhere"
    assert {call["--config.pretrained"] for call in trained} == {"none"}
    # Systems are scored again without what they add at test.
    again = [call for call in processes if "--mode" in call]
    fields = {
        "--config.model.vector": "cls",
        "--config.model.embeddings": "('global',)",
    }
    for call, (name, value) in zip(again, 2 * list(fields.items()), strict=True):
        assert call[name] == value
        assert "full-seed" in call["--workdir"]
    text = (tmp_path / "leaderboard.md").read_text()
    assert "--seeds=2 -- --config.pretrained=none\n" in text


def test_started_again_it_does_only_what_is_missing(processes, tmp_path):
    first = ["--systems=drop", "--beds=alike"]
    assert start(tmp_path, *first, "--seeds=1") == 0
    assert start(tmp_path, *first, "--seeds=1") == 0
    assert len(processes) == 3
    # One was interrupted, another seed and another bed are asked for.
    shutil.rmtree(tmp_path / "drop-full-seed0")
    facts = json.loads((tmp_path / "leaderboard.json").read_text())
    del facts["runs"]["drop-full-seed0"]
    (tmp_path / "leaderboard.json").write_text(json.dumps(facts))
    both = ["--systems=drop", "--beds=loose,alike", "--seeds=2"]
    assert start(tmp_path, *both, "--", "--config.data.data_dir=x") == 0
    done = [
        (
            pathlib.Path(call["--workdir"]).name,
            call.get("--mode", "train"),
            len(ast.literal_eval(call["--config.evaluate_on"])),
        )
        for call in processes[3:]
    ]
    assert done == [
        ("drop-table4-baseline-seed0", "evaluate", 4),
        ("drop-full-seed0", "train", 8),
        ("drop-full-seed0", "evaluate", 8),
        ("drop-table4-baseline-seed1", "train", 8),
        ("drop-full-seed1", "train", 8),
        ("drop-full-seed1", "evaluate", 8),
    ]
    assert "loose" in processes[3]["--config.evaluate_on"]
    assert processes[3]["--config.data.data_dir"] == "x"


# What is said of it.


def by_hand(values):
    """Mean and half of the interval, by the quantile of a table of Student's t."""
    quantile = {2: 12.7062, 5: 2.776445}[len(values)]
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), half


def p_by_hand(differences):
    """Of a mean of 0, by the incomplete beta function."""
    number = len(differences)
    t = statistics.mean(differences) / statistics.stdev(differences) * number**0.5
    return special.betainc((number - 1) / 2, 0.5, (number - 1) / (number - 1 + t**2))


def test_intervals_and_tests_are_those_of_a_textbook():
    rng = np.random.default_rng(0)
    a = dict(enumerate(rng.normal(50, 3, 6)))
    b = {seed: value + rng.normal(1, 1) for seed, value in a.items()}
    del a[3]  # Seeds that only one has do not count.
    found = standings.difference(a, b)
    pairs = [(a[seed], b[seed]) for seed in (0, 1, 2, 4, 5)]
    gains = [float(y - x) for x, y in pairs]
    assert found.seeds == 5
    for got, values in (
        (found.baseline, [float(x) for x, _ in pairs]),
        (found.system, [float(y) for _, y in pairs]),
        (found.gain, gains),
    ):
        assert got == pytest.approx(by_hand(values), rel=1e-5)
    assert found.p == pytest.approx(p_by_hand(gains), rel=1e-9)


def test_where_there_is_nothing_to_test_there_is_no_test():
    assert standings.difference({0: 1.0}, {1: 2.0}) is None
    alone = standings.difference({0: 1.0}, {0: 2.5})
    assert (alone.gain, alone.p) == ((1.5, None), None)
    same = standings.difference({0: 1.0, 1: 2.0}, {0: 1.5, 1: 2.5})
    assert (same.gain, same.p) == ((0.5, 0.0), None)


def test_the_document(processes, tmp_path):
    assert start(tmp_path, "--systems=cacenet,drop", "--beds=alike", "--seeds=5") == 0
    text = (tmp_path / "leaderboard.md").read_text()
    assert "Code of 0123456789ab; jax 0.10.2 on cpu." in text
    assert "each saw 20,480 images".casefold() in " ".join(text.split()).casefold()
    for paper, against, kind, row in (
        ("CACE-Net", "baseline", "metrics", "x"),
        ("CACE-Net", "before pairs", "metrics_before_pairs", ""),
        ("DROP", "global alone", "--config.model.embeddings", ""),
    ):
        values = [
            [100 * score(seed, *what) for seed in range(5)]
            for what in ((row, ALIKE[2], kind), ("", ALIKE[2]))
        ]
        gains = [y - x for x, y in zip(*values, strict=True)]
        p = p_by_hand(gains)
        expected = ["{:.1f} ± {:.1f}".format(*by_hand(v)) for v in values]
        expected += ["{:+.1f} ± {:.1f}".format(*by_hand(gains))]
        expected += ["< 0.001" if p < 0.001 else f"{p:.3f}", "90.0"]
        cells = row_of(text, paper, against, "shoes")
        assert cells == [paper, against, "shoes", "5", *expected]
    # Overall, means over the four parts of each seed.
    means = [
        statistics.mean(100 * score(seed, "", name) for name in ALIKE)
        for seed in range(5)
    ]
    shown = "{:.1f} ± {:.1f}".format(*by_hand(means))
    assert row_of(text, "**DROP** | " + shown[:4]) == ["**DROP**", shown]
    assert row_of(text, "oracle")[1] == "90.0"
    assert row_of(text, "DROP − baseline")[1].startswith("**+5.2 ± 1.4** (")
    order = ["CACE-Net, baseline", "CACE-Net, before pairs", "**CACE-Net**"]
    order += ["DROP, baseline", "DROP, global alone", "**DROP**", "oracle"]
    standing = text[text.index("## All beds") :]
    places = [standing.index(f"| {name}") for name in order]
    assert places == sorted(places)
    systems_table = row_of(text, "**DROP** | `drop:demo")
    assert systems_table[2:] == ["5", "128 × 64", "1,234,567", "640 of 8 × 4", "0"]


def test_one_seed_claims_nothing(processes, tmp_path):
    assert start(tmp_path, "--systems=drop", "--beds=alike", "--seeds=1") == 0
    cells = row_of((tmp_path / "leaderboard.md").read_text(), "DROP", "baseline", "bag")
    assert cells == ["DROP", "baseline", "bag", "1", "44.0", "50.0", "+6.0", "", "90.0"]


def test_a_picture_has_a_panel_for_each_paper():
    names = ["bed_shifted_00", "bed_shifted_30"]
    lines = [
        standings.Line(role, "", {s: dict.fromkeys(names, mean + s) for s in range(2)})
        for role, mean in (("baseline", 40.0), ("before pairs", 45.0), ("system", 50.0))
    ]
    groups = [
        standings.Group("CpaCol", tuple(lines)),
        standings.Group("DROP", (lines[0], lines[2])),
    ]
    svg, again = (page.chart(names, groups, dict.fromkeys(names, 90)) for _ in "ab")
    assert svg == again
    assert len(svg) < 60_000
    root = ElementTree.fromstring(svg)
    words = [x.text for x in root.iter("{http://www.w3.org/2000/svg}text")]
    once, twice = ["CpaCol", "DROP", "before pairs"], ["baseline", "system", "oracle"]
    assert [words.count(word) for word in once + twice] == [1, 1, 1, 2, 2, 2]
    assert [words.count(step) for step in ("00", "30")] == [2, 2]


def test_a_table_is_written_without_training(processes, tmp_path, monkeypatch):
    assert start(tmp_path / "runs", "--systems=drop", "--beds=alike", "--seeds=2") == 0
    monkeypatch.setattr(command, "DOCS", tmp_path / "docs")
    (tmp_path / "runs" / "leaderboard.md").unlink()
    count = len(processes)
    assert start(tmp_path / "runs", "--table", "--docs") == 0
    assert len(processes) == count
    written = [
        (tmp_path / place / name).read_bytes()
        for name in ("leaderboard.md", "leaderboard/alike.svg")
        for place in ("runs", "docs")
    ]
    assert written[0] == written[1]
    assert written[2] == written[3]


# What cannot be done.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--systems=drop,bot"], "--systems: there is no bot; known: aaformer, cpacol"),
        (["--beds=rain"], "--beds: there is no rain; known: occlusion, crowd"),
        (["--seeds=0"], "--seeds=0: at least one"),
        (["--images=100"], "--images=100: aaformer-table4-vit sees images in batches"),
        (["--images=64"], "--images=64: cpacol-full sees images in batches of 64"),
        (["--table"], "has no leaderboard; leave out --table"),
        (["--", "--config.seed=3"], "the leaderboard sets that field itself"),
        (["--", "--config.stages.train.epochs=3"], "sets that field itself"),
        (["--", "--mode=evaluate"], "--mode=evaluate: fields follow --"),
    ],
)
def test_what_makes_no_sense(processes, tmp_path, capsys, arguments, message):
    assert start(tmp_path / "runs", *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not processes
    assert not (tmp_path / "runs").exists()


def test_other_runs_need_another_folder(processes, tmp_path, capsys):
    chosen = ["--systems=drop", "--beds=alike", "--seeds=1"]
    assert start(tmp_path, *chosen, "--images=6400") == 0
    assert start(tmp_path, *chosen, "--images=12800") == 2
    assert "holds a leaderboard of --images=6400: choose" in capsys.readouterr().err
    assert start(tmp_path, *chosen, "--", "--config.pretrained=none") == 2
    assert "choose another --workdir" in capsys.readouterr().err
    assert start(tmp_path, *chosen) == 0
    assert len(processes) == 3
    path = tmp_path / "leaderboard.json"
    facts = json.loads(path.read_text())
    assert facts.pop("sampler") == sampling.VERSION
    path.write_text(json.dumps(facts))  # as older versions left it
    assert start(tmp_path, *chosen, "--seeds=2") == 2
    assert "an older version's batches" in capsys.readouterr().err


def test_seeds_of_two_configs_are_not_taken_together(processes, tmp_path, capsys):
    chosen = ["--systems=drop", "--beds=alike"]
    assert start(tmp_path, *chosen, "--seeds=1") == 0
    path = tmp_path / "leaderboard.json"
    facts = json.loads(path.read_text())
    assert facts["configs"]["drop-full"]["data.height"] == 128
    facts["configs"]["drop-full"]["data.width"] = 96
    path.write_text(json.dumps(facts))
    assert start(tmp_path, *chosen, "--seeds=2") == 2
    assert "drop-full-seed1 and the seeds in" in (told := capsys.readouterr().err)
    assert "differ in data.width: choose" in told
    assert "drop-full-seed1" not in json.loads(path.read_text())["runs"]


def test_a_run_of_another_schedule_is_not_taken(processes, tmp_path, capsys):
    chosen = ["--systems=drop", "--beds=alike", "--seeds=1"]
    assert start(tmp_path, *chosen) == 0
    path = tmp_path / "leaderboard.json"
    facts = json.loads(path.read_text())
    facts["runs"]["drop-full-seed0"]["flags"][1] = "--config.evaluation.every_epochs=5"
    path.write_text(json.dumps(facts))
    assert start(tmp_path, *chosen) == 2
    told = capsys.readouterr().err
    assert "drop-full-seed0 was trained with --config.seed=0 --config.eval" in told
    assert "every_epochs=5" in told


def test_two_processes_share_a_folder(processes, tmp_path):
    one, other = board.Board(tmp_path), board.Board(tmp_path)
    for each in (one, other):
        each.claim(None, [])
    drop, _, sanet, _ = systems.systems(["drop", "sanet"])
    one.run(drop, 0, ALIKE, [])
    other.run(sanet, 0, ALIKE, [])
    runs = json.loads((tmp_path / "leaderboard.json").read_text())["runs"]
    assert runs.keys() == {f"{drop.name}-seed0", f"{sanet.name}-seed0"}


def test_the_folders_of_runs_may_be_gone(processes, tmp_path, capsys):
    chosen = ["--systems=drop", "--beds=alike"]
    assert start(tmp_path / "a", *chosen, "--seeds=1") == 0
    text = (tmp_path / "a" / "leaderboard.md").read_text()
    (tmp_path / "b").mkdir()
    kept = (tmp_path / "a" / "leaderboard.json").read_text()
    (tmp_path / "b" / "leaderboard.json").write_text(kept)
    count = len(processes)
    assert start(tmp_path / "b", *chosen, "--seeds=1") == 0
    assert len(processes) == count
    assert (tmp_path / "b" / "leaderboard.md").read_text() == text
    # A seed can be added, but the networks that are gone see no other bed.
    assert start(tmp_path / "b", *chosen, "--seeds=2") == 0
    assert len(processes) == count + 3
    assert start(tmp_path / "b", "--systems=drop", "--beds=loose", "--seeds=2") == 2
    told = capsys.readouterr().err
    assert "drop-table4-baseline-seed0 is gone" in told
    assert "remove drop-table4-baseline-seed0 from" in told
