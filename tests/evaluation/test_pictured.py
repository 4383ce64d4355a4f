"""Queries of one's choice in pictures, and the lists of several runs side by side."""

import json

import jax
import numpy as np
import pytest

from data_pipelines import loader
from data_pipelines.prepared import open_records
from reid_jax import experiment, pictures
from reid_jax.errors import UserError
from reid_jax.evaluation import evaluate, side_by_side
from reid_jax.runtime import sharding
from reid_jax.runtime import workdir as workdirs
from tests import commands
from tests.conftest import toy
from tests.variables import random_variables


def run(config, folder, seed):
    """Evaluates the toy with some parameters; returns them and what was drawn."""
    method = experiment.build_method(config, num_classes=9)
    example = {"image": np.zeros((8, 32, 16, 3), np.uint8)}
    variables = random_variables(method.init, example)
    scale = np.random.default_rng(seed)
    variables = jax.tree.map(lambda x: x * scale.uniform(0.2, 3, x.shape), variables)
    mesh = sharding.make_mesh()
    (protocol,) = experiment.build_protocols(config)
    spec = experiment.build_evaluation(config)
    evaluate.Evaluator(method, mesh, spec).evaluate(
        jax.device_put(variables, sharding.replicated(mesh)),
        protocol,
        stage="first",
        step=7,
        picture_dir=folder / "pictures" / "tiny",
    )
    workdirs.write_json(folder / "config.json", config.to_dict())
    return method, variables


def nearest(config, method, variables, rows):
    """Distances of queries by the definition, and their lists of ten."""
    splits = [
        open_records("tiny", s, config.data.data_dir) for s in ("query", "gallery")
    ]
    batches = [
        loader.image_batch(s, range(len(s)), image_size=(32, 16)) for s in splits
    ]
    q, g = (np.asarray(method.embed(variables, b["image"])["vector"]) for b in batches)
    keys = np.abs(q[rows, None] - g[None]).sum(-1)
    query, gallery = batches
    for key, row in zip(keys, rows, strict=True):
        mine = gallery["person"] == query["person"][row]
        key[mine & (gallery["camera"] == query["camera"][row])] = np.inf
    return keys, np.argsort(keys, axis=1, kind="stable")[:, :10], splits, batches


@pytest.fixture
def chosen(toy_config):
    """The toy's config with two queries of one's choice, and their rows."""
    return choose(toy_config)


def choose(config):
    query = open_records("tiny", "query", config.data.data_dir)
    config.evaluation.pictured = (query.filename(13), 4)
    return config, [13, 4]


def test_chosen_queries_are_drawn_and_written(chosen, tmp_path, monkeypatch):
    config, rows = chosen
    drawn = {}
    for name in ("ranking_lists", "draw"):
        monkeypatch.setattr(
            pictures,
            name,
            lambda *args, name=name, **given: drawn.setdefault(name, (*args, given)),
        )
    keys, found, splits, batches = nearest(config, *run(config, tmp_path, 0), rows)
    np.testing.assert_array_equal(drawn["ranking_lists"][1], batches[0]["image"][rows])
    np.testing.assert_array_equal(drawn["ranking_lists"][2], batches[1]["image"][found])
    # The method's own pictures begin with the same queries.
    np.testing.assert_array_equal(drawn["draw"][1][:2], batches[0]["image"][rows])
    names = [line.split("\n")[0] for line in drawn["draw"][-1]["captions"]]
    assert names[:2] == [f"query: {splits[0].filename(row)}" for row in rows]
    assert names[2] == f"gallery: {splits[1].filename(0)}"
    path = tmp_path / "pictures" / "tiny" / "ranking.json"
    written = json.loads(path.read_text())
    assert (written["protocol"], written["step"]) == ("tiny", 7)
    for entry, row, key, list_ in zip(
        written["queries"], rows, keys, found, strict=True
    ):
        assert entry["query"] == splits[0].filename(row)
        assert entry["gallery"] == [splits[1].filename(i) for i in list_]
        np.testing.assert_allclose(entry["keys"], key[list_], rtol=1e-5)


@pytest.mark.parametrize("unknown", ["nobody.jpg", 15, -1])
def test_an_unknown_query_is_refused_before_anything_is_computed(
    toy_config, tmp_path, monkeypatch, unknown
):
    toy_config.evaluation.pictured = (3, unknown)
    monkeypatch.setattr(evaluate.Embedder, "__call__", None)
    with pytest.raises(UserError, match=rf"pictured: there is no {unknown!r}; .*to 14"):
        run(toy_config, tmp_path, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def two_runs(tiny_data, tmp_path_factory):
    config, rows = choose(toy(tiny_data))
    folders = [tmp_path_factory.mktemp("runs") / name for name in ("one", "other")]
    lists = []
    for seed, folder in enumerate(folders):
        folder.mkdir()
        lists.append(nearest(config, *run(config, folder, seed), rows)[1])
    assert (lists[0] != lists[1]).any()
    return config, [str(folder) for folder in folders], rows, lists


def test_lists_of_two_runs_side_by_side(two_runs, tmp_path, monkeypatch):
    config, runs, rows, lists = two_runs
    gallery = open_records("tiny", "gallery", config.data.data_dir)
    drawn = []
    monkeypatch.setattr(
        pictures, "ranking_lists", lambda *args, **rest: drawn.append((args, rest))
    )
    out = tmp_path / "out.png"
    query = open_records("tiny", "query", config.data.data_dir)
    last = query.filename(rows[1])
    assert (
        commands.ended(side_by_side.main, [f"--runs={','.join(runs)}", f"--out={out}"])
        == 0
    )
    side_by_side.side_by_side(runs, str(out), dataset="tiny", queries=[last])
    (_, both), (_, one) = drawn
    assert [caption.splitlines()[0] for caption in both["captions"]] == 2 * runs
    assert both["row_group"] == one["row_group"] == 2
    order = [(q, r) for q in range(2) for r in range(2)]
    for note, (q, r) in zip(both["notes"], order, strict=True):
        names = [gallery.filename(i) for i in lists[r][q]]
        assert [text.split("\n")[0] for text in note] == names
    right = [gallery.person[lists[r][q]] == query.person[rows[q]] for q, r in order]
    np.testing.assert_array_equal(both["correct"], right)
    assert one["notes"] == both["notes"][2:]
    assert one["captions"] == both["captions"][2:]


def test_the_sheet_of_two_runs_is_written(two_runs, tmp_path):
    _, runs, _, _ = two_runs
    out = tmp_path / "new" / "out.png"
    side_by_side.side_by_side(runs, str(out))
    assert out.read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_set_side_by_side(two_runs, tmp_path, capsys):
    _, runs, _, _ = two_runs
    out = str(tmp_path / "out.png")
    for options, message in (
        ({"queries": ["nobody.jpg"]}, "no ranking list of nobody.jpg"),
        ({"dataset": "market1501"}, "no ranking lists of market1501"),
    ):
        with pytest.raises(UserError, match=message) as error:
            side_by_side.side_by_side(runs, out, **options)
        assert "--config.evaluation.pictured" in str(error.value)
    (tmp_path / "empty").mkdir()
    for given, message in (
        (f"{tmp_path}/empty", f"{tmp_path / 'empty'} has no ranking lists:"),
        (f"{tmp_path}/none", f"{tmp_path / 'none'} does not exist"),
        (f"{runs[0]},{tmp_path}/none", f"{tmp_path / 'none'} does not exist"),
        (",", "--runs=, names no run"),
    ):
        argv = [f"--runs={given}", f"--out={out}"]
        assert commands.ended(side_by_side.main, argv) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out.png").exists()


def test_lists_of_a_data_set_in_a_folder_are_found(tmp_path):
    other = tmp_path / "pictures" / "reranked-k_reciprocal" / "duke"
    workdirs.write_json(other / "ranking.json", {"protocol": "duke"})
    folder = tmp_path / "pictures" / "synthetic" / "holistic_demo"
    workdirs.write_json(
        folder / "ranking.json", {"protocol": "synthetic/holistic_demo"}
    )
    assert side_by_side._first_protocol(str(tmp_path)) == "synthetic/holistic_demo"
