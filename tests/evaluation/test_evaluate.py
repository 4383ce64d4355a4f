"""Evaluation through the contract, against a direct computation in NumPy."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines import loader
from data_pipelines.prepared import open_records
from reid_jax import experiment, pictures
from reid_jax.errors import UserError
from reid_jax.evaluation import evaluate, lists, results, scoring
from reid_jax.evaluation.embedding import Embedder
from reid_jax.models.method import Maps
from reid_jax.runtime import sharding
from tests import toy_method
from tests.variables import random_variables


@pytest.fixture
def toy_config(toy_config):
    """With as many queries in pictures as users get."""
    toy_config.evaluation.pictured = ()
    return toy_config


@pytest.fixture
def toy(toy_config):
    method = experiment.build_method(toy_config, num_classes=9)
    batch = {"image": np.zeros((8, 32, 16, 3), np.uint8)}
    return method, random_variables(method.init, batch)


def _images(config, split):
    records = open_records("tiny", split, config.data.data_dir)
    return records, loader.image_batch(
        records, range(len(records)), image_size=(32, 16), with_parts=True
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
    ("stage", "top_k", "inputs", "devices"),
    [
        ("first", 3, (), 8),
        ("second", 3, ("parts", "camera"), 8),
        ("second", 100, ("camera",), 1),
        ("second", None, ("camera", "parts"), 8),
        ("second", None, (), 1),
    ],
)
def test_metrics_are_those_of_the_definition(toy_config, stage, top_k, inputs, devices):
    toy_config.model.top_k = top_k
    toy_config.model.pair_inputs = inputs
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
        query_maps, maps = (
            scorer.pair_maps(
                variables, b["image"], **{name: b[name] for name in inputs}
            )
            for b in (query_batch, gallery_batch)
        )
        tiled = jax.tree.map(lambda m: np.broadcast_to(m, (len(q), *m.shape)), maps)
        scores = scorer.score_pairs(variables, query_maps, tiled)
        nearest = np.argsort(keys, axis=1, kind="stable")[:, :top_k]
        for row, candidates in enumerate(nearest):
            keys[row, candidates] = np.asarray(scores)[row, candidates] - 1e3
    wanted = _rank1_and_map(keys, query, gallery)

    mesh = sharding.make_mesh(jax.devices()[:devices])
    evaluator = evaluate.Evaluator(
        method, mesh, experiment.build_evaluation(toy_config)
    )
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
    assert not {"rerank", "metrics_before_reranking", "verification"} & set(entry)
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
    of_another = entry("a", 0.7, run="runs/another")
    ways = {"ap": "rectangle", "camera_filter": False, "averaged": True}
    ways |= {"rerank": {"flip": {}}, "search": {"recall": 0.9}}
    otherwise = [entry("a", 0.5, **{name: value}) for name, value in ways.items()]
    kept = [other, changed, of_another, *otherwise]
    for written in (first, *kept, entry("a", 0.2)):
        results.write(str(tmp_path), [written])
    wanted = [*kept, entry("a", 0.2, best={"step": 1})]
    assert json.loads((tmp_path / "results.json").read_text()) == wanted


def test_a_verification_stays_where_the_figures_are_those_of_before(tmp_path):
    def entry(value, **fields):
        return {"protocol": "a", "step": 1, "metrics": {"mAP": value}, **fields}

    def kept():
        (found,) = json.loads((tmp_path / "results.json").read_text())
        return found.get("verification")

    for written, wanted in (
        (entry(0.5, verification={"at": [1]}), {"at": [1]}),
        (entry(0.5), {"at": [1]}),
        (entry(0.5, verification={"at": [2]}), {"at": [2]}),
        (entry(0.25), None),
    ):
        results.write(str(tmp_path), [written])
        assert kept() == wanted


def test_every_choice_of_options_draws_in_a_folder_of_its_own():
    folders = [
        results.picture_folder("market1501", {"flip": {}, "k_reciprocal": options})
        for options in ({"k1": 20}, {"k1": 10, "k2": 6}, {"k1": 10, "k2": 3})
    ]
    assert folders == [
        "reranked-flip-k_reciprocal/market1501",
        "reranked-flip-k_reciprocal,k1=10/market1501",
        "reranked-flip-k_reciprocal,k1=10,k2=3/market1501",
    ]
    assert results.picture_folder("market1501:classic", {}) == "market1501-classic"


def test_embeddings_do_not_depend_on_the_batch_size(toy_config, toy):
    method, variables = toy
    records = open_records("tiny", "gallery", toy_config.data.data_dir)
    mesh = sharding.make_mesh(jax.devices()[:1])
    rows = []
    for size in (1, 7, 64):
        embed = Embedder(method, mesh, image_size=(32, 16), batch_size=size)
        rows.append(embed(variables, records, "gallery")["vector"])
    assert rows[0].shape == (len(records), 6)
    np.testing.assert_allclose(rows[1], rows[0], atol=1e-6)
    np.testing.assert_allclose(rows[2], rows[0], atol=1e-6)


def _evaluate(config, method, variables, *, stage="second", **options):
    mesh = sharding.make_mesh()
    evaluator = evaluate.Evaluator(method, mesh, experiment.build_evaluation(config))
    (protocol,) = experiment.build_protocols(config)
    variables = jax.device_put(variables, sharding.replicated(mesh))
    return evaluator.evaluate(variables, protocol, stage=stage, step=7, **options)


def test_pair_networks_are_compiled_once(toy_config, toy, monkeypatch):
    traced = []
    for name in ("pair_maps", "score_pairs", "fuse"):
        real = getattr(toy_method.Scorer, name)

        def spy(*args, name=name, real=real, **rest):
            traced.append(name)
            return real(*args, **rest)

        monkeypatch.setattr(toy_method.Scorer, name, spy)
    method, variables = toy
    mesh = sharding.make_mesh()
    variables = jax.device_put(variables, sharding.replicated(mesh))
    evaluator = evaluate.Evaluator(
        method, mesh, experiment.build_evaluation(toy_config)
    )
    (protocol,) = experiment.build_protocols(toy_config)
    first, again = (
        evaluator.evaluate(variables, protocol, stage="second", step=step)
        for step in (1, 2)
    )
    assert first["metrics"] == again["metrics"]
    # 15 queries in blocks of 8, 3 candidates each in blocks of up to 4.
    assert sorted(traced) == ["fuse", "pair_maps", "score_pairs"]


@pytest.mark.parametrize("stage", ["first", "second"])
def test_pictures_of_a_stage(toy_config, toy, tmp_path, stage):
    _evaluate(toy_config, *toy, stage=stage, picture_dir=tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    wanted = {"ranking.json", "ranking.png", "routes.png", "details.json"}
    wanted |= {"hardest.png", "easiest.png"}
    if stage == "second":
        wanted |= {"ranking_pairs.png", "pair_maps.png", "correspondences.png"}
    assert names == wanted


def test_nothing_is_drawn_where_no_pictures_are_wanted(toy_config, toy, tmp_path):
    toy_config.evaluation.pictures = False
    entry = _evaluate(toy_config, *toy, stage="first", picture_dir=tmp_path / "none")
    assert entry["metrics"]["mAP"] > 0
    assert not (tmp_path / "none").exists()


def test_answers_are_drawn_with_the_parts_they_do_not_show(
    toy_config, toy, tmp_path, monkeypatch
):
    """Queries over their nearest images; visible is what `embed` says."""
    method, variables = toy
    titles = ("all", "upper", "lower")
    item = Maps(np.zeros((8, 3, 4, 2)), titles)
    fields = {"parts": item, "routes": Maps(item.values, ("a", "b", "c"))}
    monkeypatch.setattr(method, "pictures", lambda *_: fields)
    calls = {}
    monkeypatch.setattr(
        pictures,
        "draw",
        lambda path, *args, **rest: calls.update({path.name: (args, rest)}),
    )
    _evaluate(toy_config, method, variables, stage="first", picture_dir=tmp_path)
    assert set(calls) == {"parts.png", "routes.png", "parts_answers.png"}
    (images, found), rest = calls["parts_answers.png"]
    assert found is item
    query, gallery = (_images(toy_config, split)[1] for split in ("query", "gallery"))
    seen = [method.embed(variables, batch["image"]) for batch in (query, gallery)]
    q, g = (np.asarray(side["vector"]) for side in seen)
    keys = np.abs(q[:, None] - g[None]).sum(-1)
    row = 0
    for i in (0, 14):  # the first and the last of the queries
        persons = [(query["person"][i], query, i)]
        for place in rest["captions"][row + 1 : row + 4]:
            j = _best(keys, i, (query, gallery), 10)[int(place.split()[1]) - 1]
            persons.append((gallery["person"][j], gallery, j))
        for person, batch, index in persons:
            np.testing.assert_array_equal(images[row], batch["image"][index])
            visible = seen[batch is gallery]["visibility"][index]
            wanted = ["" if visible[part] else "not visible" for part in (0, 2)]
            assert rest["notes"][row] == ["", *wanted]
            colour = pictures.RIGHT if person == query["person"][i] else pictures.WRONG
            expected = pictures.QUERY if batch is query else colour
            assert rest["frames"][row] == expected
            row += 1
    assert row == len(images) == 2 * rest["row_group"]
    assert {note for notes in rest["notes"] for note in notes} == {"", "not visible"}


@pytest.fixture
def drawn(toy_config, tmp_path, monkeypatch):
    """What an evaluation that scores all pairs gives to be drawn, and what it should.

    Calls by function; images, embeddings and maps of query and gallery; keys.
    """
    toy_config.model.top_k = None
    calls = {"ranking_lists": [], "draw_pairs": []}
    for name, kept in calls.items():
        monkeypatch.setattr(
            pictures, name, lambda *args, kept=kept, **rest: kept.append((args, rest))
        )
    method = experiment.build_method(toy_config, num_classes=9)
    variables = random_variables(method.init, {"image": np.zeros((8, 32, 16, 3))})
    _evaluate(toy_config, method, variables, picture_dir=tmp_path)
    batches = [_images(toy_config, split)[1] for split in ("query", "gallery")]
    seen = [method.embed(variables, b["image"]) for b in batches]
    q, g = (np.asarray(e["vector"]) for e in seen)
    scorer = method.pair_scorer("second")
    maps = [
        scorer.pair_maps(variables, b["image"], camera=b["camera"]) for b in batches
    ]
    tiled = {"map": jnp.tile(maps[1]["map"], (len(q), 1, 1, 1, 1))}
    scores = scorer.score_pairs(variables, maps[0], tiled)
    distances = np.abs(q[:, None] - g[None]).sum(-1)
    keys = distances, np.asarray(scores) - np.float32(1e3)
    return calls, batches, seen, maps, keys


def _best(keys, row, batches, count):
    """Gallery indices of a ranking list, by the definition."""
    query, gallery = batches
    kept = gallery["person"] != query["person"][row]
    kept |= gallery["camera"] != query["camera"][row]
    return np.argsort(np.where(kept, keys[row], np.inf), kind="stable")[:count]


def test_lists_before_and_after_pairs_are_scored(drawn, toy_config, tmp_path):
    calls, batches, seen, _, keys = drawn
    (_, (args, rest), *_) = calls["ranking_lists"]
    assert args[0] == tmp_path / "ranking_pairs.png"
    rows = [0, 3, 6, 11, 14]  # five of the ten of ranking.png
    nearest = np.stack([_best(k, i, batches, 10) for i in rows for k in keys])
    assert (nearest[::2] != nearest[1::2]).any()
    rows = np.repeat(rows, 2)
    query, gallery = batches
    np.testing.assert_array_equal(args[1], query["image"][rows])
    np.testing.assert_array_equal(args[2], gallery["image"][nearest])
    right = gallery["person"][nearest] == query["person"][rows][:, None]
    np.testing.assert_array_equal(rest["correct"], right)
    q, g = (np.asarray(e["visibility"]) for e in seen)
    # What has no name is not drawn.
    np.testing.assert_array_equal(rest["query_visibility"], q[rows][:, [0, 2]])
    np.testing.assert_array_equal(rest["gallery_visibility"], g[nearest][..., [0, 2]])
    assert rest["part_titles"] == ("upper", "lower")
    assert rest["row_group"] == 2
    found = open_records("tiny", "gallery", toy_config.data.data_dir)
    values = np.stack([k[i] for i in (0, 3, 6, 11, 14) for k in keys])
    for note, list_, value in zip(rest["notes"], nearest, values, strict=True):
        wanted = [f"{found.filename(i)}\n{value[i]:.3f}" for i in list_]
        assert note == wanted
    assert [c.split("; ")[1] for c in rest["captions"]] == 5 * ["before", "after"]


def test_pairs_that_are_drawn(drawn, tmp_path):
    calls, batches, _, maps, (_, scores) = drawn
    names = [args[0].name for args, _ in calls["draw_pairs"]]
    assert names == ["pair_maps.png", "correspondences.png"]
    ((_, query_images, images, item), rest) = calls["draw_pairs"][0]
    rows, ranks = np.array([0, 5, 9, 14]), rest["ranks"]
    assert ranks.shape == (4, 4)
    lists = np.stack([_best(scores, i, batches, 10) for i in rows])
    nearest = np.take_along_axis(lists, ranks - 1, axis=1)
    query, gallery = batches
    np.testing.assert_array_equal(query_images, query["image"][rows])
    np.testing.assert_array_equal(images, gallery["image"][nearest])
    right = gallery["person"][nearest] == query["person"][rows][:, None]
    np.testing.assert_array_equal(rest["correct"], right)
    q, g = (np.asarray(m["map"]) for m in maps)
    gap = np.abs(q[rows][:, None] - g[nearest]).mean(-1)
    np.testing.assert_allclose(item.query, gap, atol=1e-6)


def _ranking(toy_config, keys):
    protocol = experiment.build_protocols(toy_config)[0]
    query, gallery = (_images(toy_config, split)[0] for split in ("query", "gallery"))
    ranking = scoring.Ranking(protocol, query, gallery, ())
    ranking.update(np.arange(len(query)), keys)
    return ranking, query, gallery


def test_a_right_match_is_among_the_examples(toy_config):
    query, gallery = (_images(toy_config, split)[0] for split in ("query", "gallery"))
    right = gallery.person == query.person[:, None]
    # Right ones last; then the first query's best one at rank 7, the last one's at 2.
    keys = right * 100.0 + np.arange(len(gallery))
    for row, rank in ((0, 7), (len(query) - 1, 2)):
        valid = right[row] & (gallery.camera != query.camera[row])
        keys[row, valid.argmax()] = np.sort(keys[row])[rank - 1] - 0.5
    ranking, query, gallery = _ranking(toy_config, keys)
    chosen = ranking.lists.examples(4, 4)
    np.testing.assert_array_equal(chosen.rows, [0, 5, 9, 14])
    np.testing.assert_array_equal(
        chosen.ranks, [[1, 2, 3, 7], [1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]]
    )
    found = gallery.person[chosen.gallery] == query.person[chosen.rows][:, None]
    wanted = np.zeros((4, 4), bool)
    wanted[0, 3] = wanted[3, 1] = True
    np.testing.assert_array_equal(found, wanted)


def test_examples_of_short_lists(toy_config, monkeypatch):
    """Fewer gallery images count than a list has places."""
    query, gallery = (_images(toy_config, split)[0] for split in ("query", "gallery"))
    monkeypatch.setattr(lists, "PICTURED_RANKS", 50)
    keys = np.tile(np.arange(len(gallery), dtype=np.float32), (len(query), 1))
    chosen = _ranking(toy_config, keys)[0].lists.examples(2, 40)
    assert (chosen.gallery >= 0).all()
    counted = [27, 27]  # of 30, without 3 of the query's own camera
    np.testing.assert_array_equal((chosen.ranks > 0).sum(1), counted)


def test_a_camera_filter_without_common_cameras_is_reported_as_none(toy_config):
    (protocol,) = experiment.build_protocols(toy_config)
    query, gallery = (_images(toy_config, split)[0] for split in ("query", "gallery"))
    entry = results.describe(protocol, query, gallery, 7)
    assert entry["camera_filter"] is True
    # As a table without cameras is stored: one for queries, another for the gallery.
    query.camera, gallery.camera = 0 * query.camera, 0 * gallery.camera + 1
    entry = results.describe(protocol, query, gallery, 7)
    assert entry["camera_filter"] is False
    json.dumps(entry)


def test_no_checkpoint(toy_config, tmp_path):
    with pytest.raises(UserError, match="no checkpoint in"):
        evaluate.evaluate_checkpoint(
            toy_config, str(tmp_path / "none"), workdir=str(tmp_path)
        )
