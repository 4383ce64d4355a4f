"""Evaluation through the contract, against a direct computation in NumPy."""

import json

import jax
import numpy as np
import pytest

from data_pipelines import loader
from data_pipelines.records import open_records
from reid_jax import evaluate, experiment
from reid_jax.errors import UserError
from reid_jax.runtime import sharding
from tests.variables import random_variables


@pytest.fixture
def toy(toy_config):
    method = experiment.build_method(toy_config, num_classes=9)
    batch = {"image": np.zeros((8, 32, 16, 3), np.uint8)}
    return method, random_variables(method.init, batch)


def _images(config, split):
    records = open_records("tiny", split, config.data.data_dir)
    return records, loader.image_batch(
        records, range(len(records)), image_size=(32, 16)
    )


def _rank1_and_map(keys, query, gallery):
    """CMC-1 and mAP by the definition, one query after the other."""
    first, precision = [], []
    for row, person, camera in zip(keys, query.person, query.camera, strict=True):
        kept = ~((gallery.person == person) & (gallery.camera == camera))
        order = sorted(np.flatnonzero(kept), key=lambda i, row=row: (row[i], i))
        hits = [gallery.person[i] == person for i in order]
        first.append(hits[0])
        ranks = [i for i, hit in enumerate(hits) if hit]
        precision.append(np.mean([(n + 1) / (r + 1) for n, r in enumerate(ranks)]))
    return np.mean(first), np.mean(precision)


@pytest.mark.parametrize(
    ("stage", "top_k"), [("first", 3), ("second", 3), ("second", 100), ("second", None)]
)
def test_metrics_are_those_of_the_definition(toy_config, stage, top_k):
    toy_config.model.top_k = top_k
    method = experiment.build_method(toy_config, num_classes=9)
    batch = {"image": np.zeros((8, 32, 16, 3), np.uint8)}
    variables = random_variables(method.init, batch)
    query, query_batch = _images(toy_config, "query")
    gallery, gallery_batch = _images(toy_config, "gallery")
    q, g = (
        np.asarray(method.embed(variables, b["image"])["vector"], np.float64)
        for b in (query_batch, gallery_batch)
    )
    keys = np.abs(q[:, None] - g[None]).sum(-1)
    before = _rank1_and_map(keys, query, gallery)
    if stage == "second":
        scorer = method.pair_scorer(stage)
        maps = scorer.pair_maps(variables, gallery_batch["image"])
        tiled = jax.tree.map(lambda m: np.broadcast_to(m, (len(q), *m.shape)), maps)
        scores = scorer.score_pairs(
            variables, scorer.pair_maps(variables, query_batch["image"]), tiled
        )
        nearest = np.argsort(keys, axis=1, kind="stable")[:, :top_k]
        for row, candidates in enumerate(nearest):
            keys[row, candidates] = np.asarray(scores)[row, candidates] - 1e3
    wanted = _rank1_and_map(keys, query, gallery)

    mesh = sharding.make_mesh()
    evaluator = evaluate.Evaluator(toy_config, method, mesh)
    (entry,) = evaluate.evaluate_protocols(
        evaluator,
        experiment.build_protocols(toy_config),
        jax.device_put(variables, sharding.replicated(mesh)),
        stage=stage,
        step=7,
    )
    got = entry["metrics"]["rank1"], entry["metrics"]["mAP"]
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
    assert entry["valid_queries"] == len(query)
    if stage == "second":
        got = [entry["metrics_before_pairs"][name] for name in ("rank1", "mAP")]
        np.testing.assert_allclose(got, before, rtol=1e-6)


def test_the_config_chooses_camera_filter_and_average_precision(toy_config):
    (plain,) = experiment.build_protocols(toy_config)
    assert (plain.ap, plain.camera_filter) == ("rectangle", True)
    toy_config.evaluation.ap = "trapezoid"
    toy_config.evaluation.camera_filter = False
    toy_config.evaluate_on = ("tiny", "synthetic/partial_demo")
    first, second = experiment.build_protocols(toy_config)
    assert (first.ap, first.camera_filter, first.dataset) == (
        "trapezoid",
        False,
        "tiny",
    )
    assert second.ranks == (1, 3, 5, 10)


def test_results_of_other_steps_protocols_and_fields_are_kept(tmp_path):
    def entry(protocol, value, **fields):
        return {"protocol": protocol, "step": 1, "metrics": {"mAP": value}, **fields}

    first, other = entry("a", 0.1, best={"step": 1}), entry("b", 0.3)
    changed = entry("a", 0.4, changed={"model.assignment": "nn"})
    for written in (first, other, changed, entry("a", 0.2)):
        evaluate.write_results(str(tmp_path), [written])
    wanted = [other, changed, entry("a", 0.2, best={"step": 1})]
    assert json.loads((tmp_path / "results.json").read_text()) == wanted


def test_embeddings_do_not_depend_on_the_batch_size(toy_config, toy):
    method, variables = toy
    records = open_records("tiny", "gallery", toy_config.data.data_dir)
    mesh = sharding.make_mesh(jax.devices()[:1])
    rows = []
    for size in (1, 7, 64):
        toy_config.evaluation.batch_size = size
        evaluator = evaluate.Evaluator(toy_config, method, mesh)
        rows.append(evaluator.embed_records(variables, records, "gallery")["vector"])
    assert rows[0].shape == (len(records), 6)
    np.testing.assert_allclose(rows[1], rows[0], atol=1e-6)
    np.testing.assert_allclose(rows[2], rows[0], atol=1e-6)


def test_no_checkpoint(toy_config, tmp_path):
    with pytest.raises(UserError, match="no checkpoint in"):
        evaluate.evaluate_checkpoint(
            toy_config, str(tmp_path / "none"), workdir=str(tmp_path)
        )
