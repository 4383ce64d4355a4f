"""What an evaluation leaves for a report, against the definitions in NumPy."""

import json

import jax
import numpy as np
import pytest

from data_pipelines import loader
from data_pipelines.prepared import open_records
from reid_jax import experiment, pictures
from reid_jax.evaluation import details, evaluate
from reid_jax.runtime import sharding
from tests.variables import random_variables


def _open(config, split):
    records = open_records("tiny", split, config.data.data_dir)
    return records, loader.image_batch(
        records, range(len(records)), image_size=(32, 16)
    )


@pytest.mark.parametrize("protocol", ["tiny", "tiny:single_shot,repeats=3"])
def test_details_are_those_of_the_definition(
    toy_config, tmp_path, monkeypatch, protocol
):
    monkeypatch.setattr(pictures, "ranking_lists", lambda *_, **__: None)
    monkeypatch.setattr(pictures, "draw", lambda *_, **__: None)
    toy_config.evaluate_on = (protocol,)
    method = experiment.build_method(toy_config, num_classes=9)
    variables = random_variables(method.init, {"image": np.zeros((8, 32, 16, 3))})
    mesh = sharding.make_mesh()
    evaluator = evaluate.Evaluator(
        method, mesh, experiment.build_evaluation(toy_config)
    )
    (made,) = experiment.build_protocols(toy_config)
    replicated = jax.device_put(variables, sharding.replicated(mesh))
    entry = evaluator.evaluate(
        replicated, made, stage="first", step=7, picture_dir=tmp_path
    )
    found = json.loads((tmp_path / details.Details.NAME).read_text())

    (query, q), (gallery, g) = (_open(toy_config, s) for s in ("query", "gallery"))
    q, g = (np.asarray(method.embed(variables, b["image"])["vector"]) for b in (q, g))
    keys = np.abs(q[:, None] - g[None]).sum(-1)
    same = query.person[:, None] == gallery.person
    one_camera = query.camera[:, None] == gallery.camera
    kept = ~(same & one_camera)

    # The mean over queries is the metric, single-shot or not.
    scored = [one["average_precision"] for one in found["queries"]]
    assert np.mean(scored) == pytest.approx(entry["metrics"]["mAP"], abs=1e-5)
    first = np.array([one["first_rank"] for one in found["queries"]])
    if not made.single_shot:
        assert np.mean(first == 1) == pytest.approx(entry["metrics"]["rank1"])
        for row, rank in enumerate(first):
            order = np.argsort(np.where(kept[row], keys[row], np.inf), kind="stable")
            assert rank == 1 + np.flatnonzero(same[row][order])[0]
    names = [query.filename(row) for row in range(len(query))]
    assert [one["file"] for one in found["queries"]] == names

    # All queries are of camera 1; only camera 2's images count as right answers.
    cameras = found["cameras"]
    assert (cameras["query"], cameras["gallery"]) == (["1"], ["1", "2"])
    assert cameras["asked"] == [[0, len(query)]]
    other = np.flatnonzero(gallery.camera == 1)
    nearest = other[keys[:, other].argmin(1)]
    assert cameras["right"][0][1] == (gallery.person[nearest] == query.person).sum()

    distances = found["distances"]
    for name, chosen in (("right", same & kept), ("wrong", ~same)):
        assert sum(distances[name]) == chosen.sum()
        wanted = np.histogram(keys[chosen], np.array(distances["edges"]))[0]
        # Embeddings of another batch differ in their last bits.
        assert np.abs(np.cumsum(wanted) - np.cumsum(distances[name])).max() <= 1


def test_the_hardest_queries_are_those_of_least_precision(toy_config, monkeypatch):
    monkeypatch.setattr(details, "END_QUERIES", 4)
    query, gallery = (_open(toy_config, s)[0] for s in ("query", "gallery"))
    (protocol,) = experiment.build_protocols(toy_config)
    rng = np.random.default_rng(0)
    keys = rng.random((len(query), len(gallery)), np.float32)
    precision = rng.choice([0.25, 0.5, 0.75], len(query))
    found = details.Details(protocol, query, gallery)
    for rows in np.array_split(np.arange(len(query)), 4):
        scores = details.QueryScores(
            np.ones(len(rows), bool), precision[rows], np.ones(len(rows))
        )
        found.update(rows, keys[rows], keys[rows], scores)
    for end, order in (("hardest", precision), ("easiest", -precision)):
        lists = found.ends[end]
        assert lists.rows.tolist() == np.argsort(order, kind="stable")[:4].tolist()
        assert set(lists.nearest) == set(lists.rows.tolist())
