"""k-reciprocal re-ranking against the paper's definitions in float64 NumPy."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.retrieval import k_reciprocal, search
from reid_jax.retrieval.distances import euclidean, normalise
from reid_jax.retrieval.k_reciprocal import Encoding, KReciprocal
from reid_jax.retrieval.visible_parts import visible_euclidean
from tests.retrieval.k_reciprocal_in_numpy import rerank


def _manhattan(query, gallery):
    return jnp.abs(query["vector"][:, None] - gallery["vector"]).sum(-1)


def _vectors(query, gallery):
    return euclidean(query["vector"], gallery["vector"])


def _parts(query, gallery):
    pair = (query["parts"], query["visibility"], gallery["parts"])
    return visible_euclidean(*pair, gallery["visibility"])


def _random(seed, size, width=8):
    """Some people, some of them alike."""
    rng = np.random.default_rng(seed)
    people = rng.standard_normal((max(size // 6, 1), width))
    noise = rng.standard_normal((size, width))
    return (people[rng.integers(len(people), size=size)] + 0.7 * noise).astype("f")


def _whole(seed, size):
    """Few whole numbers: exact distances, so many ties and copies of images."""
    return np.random.default_rng(seed).integers(0, 3, (size, 3)).astype("f")


COMPARISONS = {
    distance: search.Comparison(distance, devices=jax.devices()[:1])
    for distance in (_manhattan, _vectors, _parts)
}


def _reranked(distance, embedding, queries, options, *, block=7):
    comparison = COMPARISONS[distance]
    gallery = search.Gallery(comparison, embedding)
    nearest = gallery.nearest(embedding, k_reciprocal.searched(options), block=block)
    encoding = Encoding(
        options,
        nearest,
        lambda *pair: search.pair_distances(comparison, embedding, *pair, block=block),
        queries=queries,
    )
    q, g = (
        jax.tree.map(lambda x, part=part: x[part], embedding)
        for part in (slice(queries), slice(queries, None))
    )
    return encoding.keys(np.arange(queries), distance(q, g))


@pytest.mark.parametrize(
    ("size", "queries", "options"),
    [
        (60, 20, KReciprocal()),
        (60, 20, KReciprocal(k1=7, k2=3, lambda_value=0.0)),
        (60, 1, KReciprocal(k1=7, k2=1, squared=False)),
        (60, 30, KReciprocal(k1=7, k2=7, normalised=False)),
        (60, 20, KReciprocal(k1=7, k2=2, strict=False)),
        # Fewer images than neighbours.
        (12, 3, KReciprocal()),
        (2, 1, KReciprocal(k1=1, k2=1)),
    ],
)
@pytest.mark.parametrize("made", [_random, _whole])
def test_it_is_the_papers(made, size, queries, options):
    vectors = made(size, size)
    if made is _whole:
        wanted = np.abs(vectors[:, None] - vectors).sum(-1)
        distance = _manhattan
    else:
        wide = vectors.astype(np.float64)
        wanted = np.sqrt(np.square(wide[:, None] - wide).sum(-1))
        distance = _vectors
    got = _reranked(distance, {"vector": vectors}, queries, options)
    assert got.dtype == np.float32
    wanted = rerank(wanted, queries, options)
    np.testing.assert_allclose(got, wanted, atol=1e-5, rtol=1e-5)


def test_two_thirds_make_a_difference():
    """Otherwise the cases above would not tell more than 2/3 from 2/3 or more."""
    vectors = _random(60, 60).astype(np.float64)
    apart = np.sqrt(np.square(vectors[:, None] - vectors).sum(-1))
    one, other = (
        rerank(apart, 20, KReciprocal(k1=7, k2=2, strict=strict))
        for strict in (True, False)
    )
    assert np.abs(one - other).max() > 1e-3


def test_parts_of_which_some_are_hidden():
    rng = np.random.default_rng(3)
    parts = np.asarray(normalise(jnp.asarray(rng.standard_normal((60, 3, 6)))))
    visible = rng.random((60, 3)) < 0.7
    wide = parts.astype(np.float64)
    apart = np.full((60, 60), 2.0)
    for i in range(60):
        for j in range(60):
            both = visible[i] & visible[j]
            if both.any():
                gaps = np.linalg.norm(wide[i] - wide[j], axis=-1)
                apart[i, j] = gaps[both].mean()
    options = KReciprocal(k1=7, k2=3)
    got = _reranked(_parts, {"parts": parts, "visibility": visible}, 10, options)
    np.testing.assert_allclose(got, rerank(apart, 10, options), atol=1e-5)


def test_images_in_one_place():
    """A collapsed network: all are equally far, and stay in their order."""
    got = _reranked(_manhattan, {"vector": np.ones((60, 3), "f")}, 5, KReciprocal())
    assert np.isfinite(got).all()
    wanted = rerank(np.zeros((60, 60)), 5, KReciprocal())
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_the_sets_of_many_blocks(monkeypatch):
    embedding, options = {"vector": _random(0, 60)}, KReciprocal(k1=7)
    whole = _reranked(_vectors, embedding, 10, options)
    monkeypatch.setattr(k_reciprocal, "_LOOKUPS", 2000)
    monkeypatch.setattr(k_reciprocal, "_COMPARED", 800)
    again = _reranked(_vectors, embedding, 10, options)
    np.testing.assert_array_equal(again, whole)


def test_memory_grows_by_the_square_of_k1():
    """All images are neighbours of each other; their cube would be 110 MB."""
    size, options = 120, KReciprocal(k1=120)
    apart = np.abs(np.subtract.outer(*2 * [np.random.default_rng(0).random(size)]))
    apart = apart.astype("f")
    order = np.argsort(apart, axis=1, kind="stable")
    found = search.Nearest(np.sort(apart), order.astype("i"), apart.max(1))
    tracemalloc.start()
    encoding = Encoding(options, found, lambda i, j: apart[i, j], queries=20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
    got = encoding.keys(np.arange(20), apart[:20, 20:])
    np.testing.assert_allclose(got, rerank(apart, 20, options), atol=1e-5)


def test_memory_does_not_grow_by_the_square_of_the_images(monkeypatch):
    """Pairs of all images would be 9 MB; here are images on a line, and few k1."""
    monkeypatch.setattr(k_reciprocal, "_MARKED", 2**20)
    neighbours = np.clip(np.arange(3000), 1, 2998)[:, None] + np.int32([0, -1, 1])
    tracemalloc.start()
    rows, members = k_reciprocal._members(neighbours, KReciprocal(k1=2))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6
    assert (np.abs(rows - members) <= 3).all()


def test_no_queries_have_no_keys():
    vectors = {"vector": _random(0, 12)}
    assert _reranked(_vectors, vectors, 0, KReciprocal(k1=3, k2=2)).shape == (0, 12)
