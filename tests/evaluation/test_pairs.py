"""Pairs scored in blocks, against a loop over pairs in float64."""

import collections

import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.evaluation.pairs import PairNetwork, PairRescorer
from reid_jax.models import method
from reid_jax.retrieval.rescoring import MapStore

QUERIES, GALLERY = 11, 30
RECORD = (6 + 4) * 4
"""Bytes of one image's maps below."""


class Scorer(method.PairScorer):
    """Asymmetric and not linear in the maps; z-scores over what was scored."""

    def __init__(self, top_k):
        self.top_k = top_k
        self.shapes = []

    def score_pairs(self, variables, query_maps, candidate_maps):
        self.shapes.append(candidate_maps["map"].shape[:2])
        gap = jnp.abs(query_maps["map"][:, None] - 2 * candidate_maps["map"])
        product = query_maps["rest"][:, None] * candidate_maps["rest"]
        return variables["scale"] * gap.sum((2, 3)) + jnp.tanh(product).sum(2)

    def fuse(self, distances, candidates, scores):
        rows = jnp.arange(len(distances))[:, None]
        scaled = (scores - scores.mean(1, keepdims=True)) / scores.std(1, keepdims=True)
        return distances.at[rows, candidates].add(scaled)


def maps_of(seed, indices):
    """Maps of images, a function of their index alone."""
    values = [np.random.default_rng([seed, i]).normal(size=10) for i in indices]
    values = np.array(values, np.float32)
    return {"map": values[:, :6].reshape(-1, 3, 2), "rest": values[:, 6:]}


def brute_force(top_k, distances):
    """Keys by the definition, one pair after the other."""
    keys = distances.astype(np.float64)
    for q, row in enumerate(distances):
        query, scores = maps_of(0, [q]), []
        chosen = np.argsort(row, kind="stable")[:top_k]
        for g in chosen:
            candidate = maps_of(1, [g])
            gap = np.abs(query["map"].astype(np.float64) - 2 * candidate["map"]).sum()
            product = query["rest"].astype(np.float64) * candidate["rest"]
            scores.append(0.3 * gap + np.tanh(product).sum())
        keys[q, chosen] += (scores - np.mean(scores)) / np.std(scores)
    return keys


class Setting:
    """Runs all blocks of queries, and counts what is computed on the way."""

    def __init__(self, folder, *, top_k, query_block, pair_block, stored=GALLERY):
        self.scorer = Scorer(top_k)
        self.computed = collections.Counter()
        self.fetched = []
        self.progress = []
        self.distances = np.random.default_rng(5).uniform(size=(QUERIES, GALLERY))
        self.query_block, self.passes = query_block, []
        store = MapStore(
            self._compute,
            directory=folder,
            max_bytes=stored * RECORD,
            batch_size=pair_block,
        )
        fetch = store.fetch
        store.fetch = lambda indices: (
            self.fetched.append(len(indices)) or fetch(indices)
        )
        self.rescorer = PairRescorer(
            PairNetwork(self.scorer),
            {"scale": 0.3},
            query_maps=lambda rows: maps_of(0, rows),
            gallery_maps=store,
            pair_block=pair_block,
            progress=self.progress.append,
        )

    def _compute(self, indices):
        self.computed.update(indices.tolist())
        return maps_of(1, indices)

    def keys(self):
        blocks = []
        for start in range(0, QUERIES, self.query_block):
            before = self.computed.copy()
            rows = np.arange(start, min(start + self.query_block, QUERIES))
            filled = np.resize(rows, self.query_block)
            distances = jnp.asarray(self.distances[filled], jnp.float32)
            keys = np.asarray(self.rescorer.keys(rows, distances))
            assert keys.shape == distances.shape
            blocks.append(keys[: len(rows)])
            self.passes.append(self.computed - before)
        return np.concatenate(blocks)


@pytest.mark.parametrize("top_k", [None, 5, 100])
@pytest.mark.parametrize(
    ("query_block", "pair_block"), [(1, 30), (4, 7), (11, 1), (16, 64)]
)
def test_keys_do_not_depend_on_the_blocks(tmp_path, top_k, query_block, pair_block):
    setting = Setting(
        tmp_path, top_k=top_k, query_block=query_block, pair_block=pair_block
    )
    wanted = brute_force(top_k, setting.distances)
    np.testing.assert_allclose(setting.keys(), wanted, rtol=1e-5, atol=1e-5)
    # One compilation, of one query with a block of candidates.
    block = min(pair_block, top_k or pair_block)
    assert setting.scorer.shapes == [(1, block)]
    assert set(setting.fetched) == {block}
    assert sum(setting.progress) == QUERIES * min(top_k or GALLERY, GALLERY)


@pytest.mark.parametrize("stored", [0, 12, 18, 30])
def test_the_whole_gallery_is_computed_once_per_block_of_queries(tmp_path, stored):
    setting = Setting(tmp_path, top_k=None, query_block=3, pair_block=6, stored=stored)
    wanted = brute_force(None, setting.distances)
    np.testing.assert_allclose(setting.keys(), wanted, rtol=1e-5, atol=1e-5)
    first, *later = setting.passes
    assert first == dict.fromkeys(range(GALLERY), 1)
    assert len(later) == 3
    for again in later:
        assert set(again.values()) <= {1}
        # What fits on the disk is there the second time.
        assert len(again) == GALLERY - stored
