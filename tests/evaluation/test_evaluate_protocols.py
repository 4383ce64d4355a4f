"""One checkpoint on several protocols: another data set, and single-shot galleries."""

import json
import shutil

import jax
import numpy as np
import pytest

from data_pipelines import loader, prepare, prepared, protocols
from data_pipelines.preparation import plan
from reid_jax import experiment
from reid_jax.errors import UserError
from reid_jax.evaluation import evaluate, results
from reid_jax.retrieval.labels import Labels
from reid_jax.runtime import sharding
from reid_jax.training import sources, train
from tests.data_pipelines.readers import body_trees as trees
from tests.retrieval.test_single_shot import loop
from tests.variables import random_variables

SINGLE_SHOT = "occluded_reid:single_shot,repeats=4,seed=3"


@pytest.fixture
def config(toy_config, tiny_data, tmp_path, monkeypatch):
    """The toy's config, with a small Occluded-REID beside its training set."""
    monkeypatch.setattr(plan, "check_published", lambda *_: None)
    names = trees.occluded_reid(persons=range(1, 7), each=3)
    data_dir = tmp_path / "data"
    shutil.copytree(tiny_data / "tiny", data_dir / "tiny")
    prepare.prepare(
        "occluded_reid",
        source=trees.write(tmp_path / "Occluded_REID", names, trees.noise("TIFF")),
        data_dir=data_dir,
        progress=False,
    )
    toy_config.data.data_dir = str(data_dir)
    return toy_config


def images(config, split):
    found = prepared.open_records("occluded_reid", split, config.data.data_dir)
    batch = loader.image_batch(found, range(len(found)), image_size=(32, 16))
    return Labels(found.person, found.camera), batch["image"]


def test_single_shot_is_the_mean_over_drawn_galleries(config):
    config.evaluate_on = (SINGLE_SHOT, "occluded_reid")
    method = experiment.build_method(config, num_classes=9)
    example = {"image": np.zeros((8, 32, 16, 3), np.uint8)}
    variables = random_variables(method.init, example)
    (query, query_images), (gallery, gallery_images) = (
        images(config, split) for split in ("query", "gallery")
    )
    q, g = (
        method.embed(variables, i)["vector"] for i in (query_images, gallery_images)
    )
    keys = np.abs(np.asarray(q)[:, None] - np.asarray(g)[None]).sum(-1)
    cmc, precision, penalty, valid = loop(
        keys,
        query,
        gallery,
        repeats=4,
        seed=3,
        camera_filter=False,
        ap="rectangle",
        max_rank=20,
    )
    mesh = sharding.make_mesh()
    single, multi = evaluate.evaluate_protocols(
        evaluate.Evaluator(method, mesh, experiment.build_evaluation(config)),
        experiment.build_protocols(config),
        jax.device_put(variables, sharding.replicated(mesh)),
        stage="first",
        step=1,
    )
    wanted = {f"rank{rank}": cmc[rank - 1] for rank in (1, 5, 10, 20)}
    wanted |= {"mAP": precision, "mINP": penalty}
    assert single["metrics"] == pytest.approx(wanted, rel=1e-6)
    assert single["valid_queries"] == valid == 18
    assert (single["shots"], single["repeats"], single["seed"]) == ("single", 4, 3)
    assert single["protocol"] == SINGLE_SHOT
    assert multi["shots"] == "all"
    assert "repeats" not in multi
    assert single["metrics"]["mAP"] != multi["metrics"]["mAP"]


def test_other_numbers_of_queries_are_noted(config):
    config.evaluate_on = ("occluded_reid", "tiny")
    method = experiment.build_method(config, num_classes=9)
    example = {"image": np.zeros((8, 32, 16, 3), np.uint8)}
    mesh = sharding.make_mesh()
    other, own = evaluate.evaluate_protocols(
        evaluate.Evaluator(method, mesh, experiment.build_evaluation(config)),
        experiment.build_protocols(config),
        jax.device_put(
            random_variables(method.init, example), sharding.replicated(mesh)
        ),
        stage="first",
        step=1,
    )
    assert "the published occluded_reid has 1000 valid queries" in other["note"]
    assert "18 queries; the published" in results.summary(other)
    assert "note" not in own


def test_part_labels_that_pairs_need_are_checked_for(config):
    config.model.pair_inputs = ("parts",)
    config.evaluate_on = ("tiny", "occluded_reid")
    method = experiment.build_method(config, num_classes=9)
    evaluator = evaluate.Evaluator(
        method, sharding.make_mesh(), experiment.build_evaluation(config)
    )
    labelled, bare = experiment.build_protocols(config)
    evaluator.check(labelled)
    evaluator.check(bare, ("first",))  # no pairs there
    for stages in (None, ("second",)):
        with pytest.raises(UserError, match="reads part labels"):
            evaluator.check(bare, stages)


def test_a_trained_model_on_two_protocols(config, tmp_path, on_devices):
    """Both of another data set than it was trained on, with pairs scored."""
    on_devices(1)
    run, after = tmp_path / "run", tmp_path / "after"
    train.train_and_evaluate(config, str(run))
    config.evaluate_on = ("occluded_reid", SINGLE_SHOT)
    entries = evaluate.evaluate_checkpoint(config, str(run), workdir=str(after))
    assert json.loads((after / "results.json").read_text()) == entries
    assert [e["protocol"] for e in entries] == ["occluded_reid", SINGLE_SHOT]
    assert {e["dataset"] for e in entries} == {"occluded_reid"}
    for entry in entries:
        assert 0 < entry["metrics"]["mAP"] <= 1
        assert set(entry["metrics_before_pairs"]) == set(entry["metrics"])
        before = entry["metrics_before_pairs"]["mAP"]
        assert f"; before pairs: mAP {before:.1%}" in results.summary(entry)
        folder = after / "pictures" / entry["protocol"].replace(":", "-")
        assert (folder / "ranking.png").exists()


def test_training_on_a_set_without_training_images_names_the_paired_one(config):
    config.data.dataset = "occluded_reid"
    with pytest.raises(UserError, match="trained on market1501") as error:
        sources.open_data(config)
    assert "--config.evaluate_on=occluded_reid" in str(error.value)
    assert protocols.protocol("occluded_reid").train_dataset in str(error.value)
