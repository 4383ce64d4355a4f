"""The benchmarks of pairs run, agree with their own references, and report figures."""

import functools
import json

import jax
import numpy as np
import pytest

from benchmarks import look_alikes, pair_scoring, pair_training
from data_pipelines.synthetic import identity, seeds
from reid_jax.errors import UserError
from tests.layers.test_pair_graph import VARIANTS, images, nodes_of, weights_of
from tests.models.test_cacenet import Patches

SMALL = ["--grid=3x2", "--width=1"]


def test_training(capsys):
    reports = pair_training.main(["--batches=8", "--blocks=2", "--mode=code", *SMALL])
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line) for line in lines] == reports
    assert [r["form"] for r in reports] == ["blocks of 16 pairs", "naive"]
    assert all(r["seconds"] > 0 for r in reports)


def test_what_does_not_fit_is_not_run(capsys):
    (report, _) = pair_training.main(
        ["--batches=4", "--blocks=1", "--limit_gib=0", *SMALL]
    )
    assert report["seconds"] is None
    assert "not run" in report["note"]


def test_scoring(capsys):
    report = pair_scoring.main(
        [
            *("--pairs=8", "--queries=2", "--top_k=5", "--block=4", "--size=tiny"),
            *("--cache_gib=0.00001", *SMALL),
        ]
    )
    assert json.loads(capsys.readouterr().out) == report
    assert report["streaming"]["gallery_images"] == 300
    assert report["streaming"]["pairs"] == 10
    assert report["streaming"]["extrapolated"]["pairs_of_all_queries"] == 40 * 5
    assert report["scoring"]["largest_difference"] < 1e-4


def test_look_alikes_wear_the_same_and_differ():
    groups = look_alikes.look_alikes(2_000)
    numbers = [number for group in groups for number in group]
    assert numbers
    assert len({*numbers}) == len(numbers) == look_alikes.ALIKE * len(groups)
    for group in groups:
        rngs = [seeds.generator("person", "market", number) for number in group]
        people = [identity.person(rng) for rng in rngs]
        assert len({(who.upper, who.lower) for who in people}) == 1
        for name in ("torso_cloth", "lower_cloth"):
            cloths = [getattr(who, name) for who in people]
            assert len({cloth.pattern for cloth in cloths}) == 1
            assert np.ptp([cloth.base for cloth in cloths], axis=0).max() <= 0.25
        assert len({who.width for who in people}) == len(people)


def test_what_a_graph_selects():
    maps, parts = images(4)
    found = {}
    for name in ("full", "centred"):
        graph = VARIANTS[name]
        weights = weights_of(graph)
        nodes = jax.tree.map(np.asarray, nodes_of(graph, weights, maps, parts))
        select = functools.partial(look_alikes.selection, graph)
        found[name] = jax.jit(select)(weights, nodes)
    assert found["full"]["zero edges"] == 0
    np.testing.assert_allclose(found["full"]["cosine with full"], 1, rtol=1e-5)
    assert 0.2 < found["centred"]["zero edges"] < 0.9
    assert found["centred"]["cosine with full"] < 0.99
    # Half the difference of means: all of it is the pair's but its mean over others.
    means = maps.reshape(4, -1, maps.shape[-1]).mean(1)
    vectors = np.array(
        [[means[i] - means[j] for j in range(4) if j != i] for i in range(4)]
    )
    vectors = vectors @ weights_of(VARIANTS["full"])["theta"]
    varying = vectors - vectors.mean(1, keepdims=True)
    share = np.square(varying).sum() / np.square(vectors).sum()
    np.testing.assert_allclose(found["full"]["share of the pair"], share, rtol=1e-3)


def test_alignments_rerank_the_same_lists(tmp_path, capsys, monkeypatch):
    def build(fields, train, build=look_alikes.build):
        method = build(fields, train)
        method.module = method.module.clone(backbone=Patches())
        return method

    monkeypatch.setattr(look_alikes, "build", build)
    arguments = [
        *("--seeds=1", "--people=2000", "--groups=2", "--test_groups=1"),
        *("--first_steps=2", "--steps=2", "--top_k=5", "--variants=ones"),
        f"--workdir={tmp_path}",
    ]
    look_alikes.main(arguments)
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["none", "ones"]
    assert capsys.readouterr().out.splitlines() == lines
    first, last = map(json.loads, lines)
    for figures in (first, *(last[metric] for metric in look_alikes.METRICS)):
        assert 0 < figures["mAP"] <= 100
    look_alikes.main(arguments)  # nothing is missing
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match=r"'top_k': 5}, not of .*'top_k': 6}"):
        look_alikes.main([*arguments, "--top_k=6"])
    with pytest.raises(UserError, match="--variants=ones,typo: known are part"):
        look_alikes.main([*arguments, "--variants=ones,typo"])
