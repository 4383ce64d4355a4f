"""Re-ranking and verification in an evaluation, against the steps taken one by one."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from data_pipelines import images, loader
from data_pipelines.prepared import open_records
from reid_jax import experiment, pictures
from reid_jax.errors import UserError
from reid_jax.evaluation import answers, evaluate, results, scoring
from reid_jax.evaluation.embedding import Embedder
from reid_jax.report.runs import Run
from reid_jax.retrieval import expansion
from reid_jax.retrieval.k_reciprocal import KReciprocal
from reid_jax.retrieval.reranking import Reranking
from reid_jax.retrieval.search import Comparison
from reid_jax.runtime import sharding
from tests import toy_method
from tests.evaluation.test_evaluate import _rank1_and_map
from tests.retrieval.k_reciprocal_in_numpy import rerank
from tests.variables import random_variables

K_RECIPROCAL = KReciprocal(k1=6, k2=2)


@pytest.fixture
def toy(toy_config):
    """Method, variables, and both splits with their images."""
    method = experiment.build_method(toy_config, num_classes=9)
    batch = {"image": np.zeros((8, 32, 16, 3), np.uint8)}
    splits = []
    for name in ("query", "gallery"):
        records = open_records("tiny", name, toy_config.data.data_dir)
        rows = range(len(records))
        splits.append((records, loader.image_batch(records, rows, image_size=(32, 16))))
    return method, random_variables(method.init, batch), splits


def _evaluated(config, method, variables, *, stage="first", **options):
    mesh = sharding.make_mesh()
    spec = experiment.build_evaluation(config)
    (protocol,) = experiment.build_protocols(config)
    return evaluate.Evaluator(method, mesh, spec).evaluate(
        jax.device_put(variables, sharding.replicated(mesh)),
        protocol,
        stage=stage,
        step=7,
        **options,
    )


def _apart(left, right):
    return np.abs(left["vector"][:, None] - right["vector"]).sum(-1)


def _nearest(left, right, k):
    return np.argsort(_apart(left, right), axis=1, kind="stable")[:, :k]


def _embedded(method, variables, splits, *, flip):
    found = []
    for _, batch in splits:
        one = method.embed(variables, batch["image"])
        if flip:
            other = method.embed(variables, batch["image"][:, :, ::-1])
            # In the direction of their sum, of their mean length.
            vectors = [np.asarray(side["vector"], np.float64) for side in (one, other)]
            lengths = np.linalg.norm(vectors, axis=2).mean(0)
            total = sum(vectors)
            total *= (lengths / np.linalg.norm(total, axis=1))[:, None]
            one = {
                "vector": total.astype(np.float32),
                "visibility": one["visibility"] | other["visibility"],
            }
        found.append({name: np.asarray(x) for name, x in one.items()})
    return found


def _expected(method, variables, splits, steps):
    """Keys [Q, G], with k = 2 and alpha = 1."""
    query, gallery = _embedded(method, variables, splits, flip="flip" in steps)
    if "database_augmentation" in steps:
        near = _nearest(gallery, gallery, 3)[:, 1:]  # no two images are the same
        gallery = expansion.expanded(gallery, gallery, near, alpha=1.0, block=30)
    if "query_expansion" in steps:
        near = _nearest(query, gallery, 2)
        query = expansion.expanded(query, gallery, near, alpha=1.0, block=15)
    keys = _apart(query, gallery)
    if "k_reciprocal" in steps:
        both = {"vector": np.concatenate([query["vector"], gallery["vector"]])}
        keys = rerank(_apart(both, both), len(keys), K_RECIPROCAL)
    return keys


def _choose(config, steps):
    config.evaluation.rerank = steps
    for step in ("query_expansion", "database_augmentation"):
        config.evaluation[step].update(k=2, alpha=1.0)
    config.evaluation.k_reciprocal.update(k1=6, k2=2)


def _agrees(metrics, keys, splits):
    wanted = _rank1_and_map(keys, *(records for records, _ in splits))
    got = metrics["rank1"], metrics["mAP"]
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


@pytest.mark.parametrize(
    "steps",
    [
        ("flip",),
        ("flip", "database_augmentation", "query_expansion", "k_reciprocal"),
    ],
)
def test_steps_are_those_of_the_list(toy_config, toy, steps):
    method, variables, splits = toy
    _choose(toy_config, steps)
    entry = _evaluated(toy_config, method, variables)
    _agrees(entry["metrics"], _expected(*toy, steps), splits)
    _agrees(entry["metrics_before_reranking"], _expected(*toy, ()), splits)
    assert entry["metrics"] != entry["metrics_before_reranking"]
    assert list(entry["rerank"]) == list(steps)
    json.dumps(entry)


def test_every_process_knows_how_it_was_ranked(toy_config, toy, monkeypatch):
    """Or they would not agree on whether the best so far is to be compared."""
    method, variables, _ = toy
    _choose(toy_config, ("k_reciprocal",))
    toy_config.evaluation.search.by = "approx_max_k"
    monkeypatch.setattr(scoring, "Lists", None)  # are not made where none are drawn
    first = _evaluated(toy_config, method, variables)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    second = _evaluated(toy_config, method, variables)
    assert "metrics" not in second
    assert results.same_protocol(first, second)
    assert {"rerank", "search"} <= second.keys()


def test_squares_are_not_squared_again():
    """As CpaCol's distances are; the others become squares."""
    vectors = np.random.default_rng(0).standard_normal((45, 4)).astype("f")
    query, gallery = ({"vector": part} for part in (vectors[:15], vectors[15:]))
    apart = _apart({"vector": vectors}, {"vector": vectors})
    wanted = rerank(apart, 15, K_RECIPROCAL)
    for power in (1, 2):

        def distance(query, gallery, power=power):
            return (
                jnp.abs(query["vector"][:, None] - gallery["vector"]).sum(-1) ** power
            )

        steps = Reranking(
            {"k_reciprocal": K_RECIPROCAL},
            Comparison(distance, devices=jax.devices()[:1]),
            squares=power == 2,
            block=15,
        )
        encoding = steps.encoding(query, gallery)
        got = encoding.keys(np.arange(15), apart[:15, 15:] ** power)
        np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("step", ["flip", "query_expansion"])
def test_what_has_no_average_is_told_before_images_are_embedded(toy_config, toy, step):
    class Long(toy_method.Method):
        def embed(self, variables, images, camera=None, parts=None):
            return super().embed(variables, images) | {"length": images.sum((1, 2, 3))}

    toy_config.evaluation.rerank = (step,)
    method = Long(9, (32, 16), width=6, top_k=3)
    spec = experiment.build_evaluation(toy_config)
    evaluator = evaluate.Evaluator(method, sharding.make_mesh(), spec)
    evaluator._embedded = None  # is not called
    (protocol,) = experiment.build_protocols(toy_config)
    with pytest.raises(UserError, match=rf"{step} averages .*`length`"):
        evaluator.evaluate(toy[1], protocol, stage="first", step=7)


def test_neighbours_that_are_approximate_make_another_entry(
    toy_config, toy, tmp_path, capsys
):
    method, variables, _ = toy
    _choose(toy_config, ("query_expansion",))
    toy_config.evaluation.query_expansion.k = 30
    exact = _evaluated(toy_config, method, variables)
    assert "query_expansion.k is 30, and the gallery has 30" in capsys.readouterr().out
    toy_config.evaluation.search.by = "approx_max_k"
    near = _evaluated(toy_config, method, variables)
    for entry in (exact, near):
        results.write(str(tmp_path), [entry])
    assert len(json.loads((tmp_path / "results.json").read_text())) == 2
    assert results.reranking(near) == (
        f"{results.reranking(exact)}, neighbours by approx_max_k of recall 0.95"
    )


def test_pairs_are_scored_of_what_was_reranked(toy_config, toy, tmp_path):
    method, variables, splits = toy
    _choose(toy_config, ("k_reciprocal",))
    toy_config.evaluation.verification = True
    entry = _evaluated(
        toy_config, method, variables, stage="second", picture_dir=tmp_path
    )
    keys = _expected(*toy, ("k_reciprocal",))
    _agrees(entry["metrics_before_pairs"], keys, splits)
    scorer = method.pair_scorer("second")
    query_maps, maps = (
        scorer.pair_maps(variables, batch["image"], camera=batch["camera"])["map"]
        for _, batch in splits
    )
    tiled = np.broadcast_to(maps, (len(keys), *maps.shape))
    scores = scorer.score_pairs(variables, {"map": query_maps}, {"map": tiled})
    for row, near in enumerate(np.argsort(keys, axis=1, kind="stable")[:, :3]):
        keys[row, near] = np.asarray(scores)[row, near] - 1e3
    _agrees(entry["metrics"], keys, splits)
    # What a report shows of cameras is of the final lists, too.
    cameras = json.loads((tmp_path / "details.json").read_text())["cameras"]
    other = np.flatnonzero(splits[1][0].camera == 1)
    nearest = splits[1][0].person[other[keys[:, other].argmin(1)]]
    assert cameras["right"][0][1] == (nearest == splits[0][0].person).sum()
    drawn = {path.name for path in tmp_path.iterdir()}
    assert {"ranking_reranked.png", "ranking_pairs.png", "roc.png"} <= drawn
    # 15 queries, 3 of whose 6 matches another camera took; thresholds of distances.
    report = entry["verification"]
    assert report["positive_pairs"] == 15 * 3
    assert report["negative_pairs"] == 15 * 24
    query, gallery = splits[0][0], splits[1][0]
    same = query.person[:, None] == gallery.person
    counted = ~(same & (query.camera[:, None] == gallery.camera))
    apart = _apart(*_embedded(method, variables, splits, flip=False))
    nearest_wrong = apart[~same].min()
    (strict, _) = report["at"]
    assert strict["tpr"] == pytest.approx(
        (apart[same & counted] < nearest_wrong).mean(), abs=1 / 45
    )


def test_lists_before_the_flip_show_what_was_visible_then(
    toy_config, toy, tmp_path, monkeypatch
):
    def left(images):
        return images[:, :24, :8].reshape(len(images), 3, -1).mean(-1) > 127

    class Left(toy_method.Method):
        def embed(self, variables, images, camera=None, parts=None):
            return super().embed(variables, images) | {"visibility": left(images)}

    drawn = {}

    def ranking_lists(path, *images, query_visibility, gallery_visibility, **rest):
        drawn[path.name] = query_visibility, gallery_visibility

    monkeypatch.setattr(pictures, "ranking_lists", ranking_lists)
    for module in (pictures, answers):
        monkeypatch.setattr(module, "draw", lambda *_, **__: None)
    toy_config.evaluation.rerank = ("flip",)
    method = Left(9, (32, 16), width=6, top_k=3)
    _evaluated(toy_config, method, toy[1], picture_dir=epath.Path(tmp_path))
    rows, drawn = [0, 7], drawn["ranking_reranked.png"]  # that are pictured
    images = toy[2][0][1]["image"][rows]
    both = left(images), left(images[:, :, ::-1])
    here, there = (visible[:, [0, 2]] for visible in both)  # those with a title
    assert (here != here | there).any()
    np.testing.assert_array_equal(drawn[0][::2], here)
    np.testing.assert_array_equal(drawn[0][1::2], here | there)
    assert drawn[1].shape == (4, 10, 2)


def test_pictures_lie_apart_from_those_of_the_plain_evaluation(
    toy_config, toy, tmp_path
):
    """What an earlier evaluation of the same drew goes, and a report finds the rest."""
    method, variables, _ = toy
    _choose(toy_config, ("k_reciprocal",))
    pictured = tmp_path / "pictures"
    chosen = "reranked-k_reciprocal,k1=6,k2=2"
    plain, apart = pictured / "tiny", pictured / chosen / "tiny"
    for file in (plain / "roc.png", apart / "roc.png", apart / "own.txt"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    mesh = sharding.make_mesh()
    entries = evaluate.evaluate_protocols(
        evaluate.Evaluator(method, mesh, experiment.build_evaluation(toy_config)),
        experiment.build_protocols(toy_config),
        jax.device_put(variables, sharding.replicated(mesh)),
        stage="first",
        step=7,
        picture_root=epath.Path(pictured),
    )
    assert [path.name for path in plain.iterdir()] == ["roc.png"]
    drawn = {path.name for path in apart.iterdir()}
    assert {"ranking.png", "ranking_reranked.png", "own.txt"} <= drawn
    assert "roc.png" not in drawn
    (tmp_path / "config.json").write_text("{}")
    others = [entries[0] | {"rerank": {"k_reciprocal": {"k1": 9}}}]
    others.append({k: v for k, v in entries[0].items() if k != "rerank"})
    (tmp_path / "results.json").write_text(json.dumps(entries + others))
    run = Run.read(str(tmp_path), "run")
    shown = [bool(run.details(entry)) for entry in entries + others]
    assert shown == [True, False, False]
    assert "ranking_reranked" in run.pictures(entries[0])
    assert [run.pictures(entry) for entry in others] == [{}, {}]


def test_a_gallery_that_is_streamed_or_split_ranks_the_same(toy_config, toy, capsys):
    """With more neighbours than there are images, which is said."""
    method, variables, _ = toy
    _choose(toy_config, ("k_reciprocal",))
    toy_config.evaluation.k_reciprocal.k1 = 60
    whole = _evaluated(toy_config, method, variables)
    assert "k1 is 60, and there are 45 images" in capsys.readouterr().out
    toy_config.evaluation.search.device_bytes = 32  # of 8 devices: less than the 30
    parts = _evaluated(toy_config, method, variables)
    assert parts == whole


def test_mirror_images_have_the_labels_of_the_other_side(toy_config, monkeypatch):
    """The image and its part labels are turned, and left is right then; read once."""

    class Seen(toy_method.Method):
        embed_inputs = ("parts",)
        visibility_titles = ("left arm", "right arm")

        def embed(self, variables, images, camera=None, parts=None):
            pair = (x.reshape(len(x), -1).astype("f") for x in (images, 9 * parts))
            halves = (x.mean((1, 2, 3)) / 255 for x in jnp.split(images, 2, axis=2))
            return {
                "vector": jnp.concatenate([*pair], axis=1),
                "visibility": jnp.stack([*halves], axis=1),
            }

    records = open_records("tiny", "query", toy_config.data.data_dir)
    rows, size = range(len(records)), (32, 16)
    batch = loader.image_batch(records, rows, image_size=size, with_parts=True)
    image, parts = batch["image"], batch["parts"]
    assert len(np.unique(parts)) == 9
    sides = np.arange(256)
    sides[[3, 4, 5, 6, 7, 8]] = [4, 3, 6, 5, 8, 7]  # arms, legs, feet
    here, there = (
        np.concatenate([x.reshape(15, -1), 9.0 * y.reshape(15, -1)], axis=1)
        for x, y in (
            (image, parts),
            (image[:, :, ::-1], sides[parts[:, :, ::-1]]),
        )
    )
    decode, read = images.decode, []
    monkeypatch.setattr(images, "decode", lambda x: read.append(1) or decode(x))
    method = Seen(9, size, width=6, top_k=3)
    embed = Embedder(method, sharding.make_mesh(), image_size=size, batch_size=8)
    plain, averaged = embed.with_flip({}, records, "query")
    assert len(read) == len(records)
    np.testing.assert_array_equal(plain["vector"], here)
    length = sum(np.linalg.norm(x, axis=1, keepdims=True) for x in (here, there)) / 2
    wanted = length * (here + there)
    wanted /= np.linalg.norm(here + there, axis=1, keepdims=True)
    np.testing.assert_allclose(averaged["vector"], wanted, rtol=1e-5)
    # Turned back, both images show as much of each side.
    same = plain["visibility"]
    assert (abs(same[:, 0] - same[:, 1]) > 0.01).any()
    np.testing.assert_allclose(averaged["visibility"], same, rtol=1e-5)
    assert embed._embed._cache_size() == 1
