"""Neighbours and distances wherever a gallery lies, against a sort of everything."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.retrieval import search


def _distance(query, gallery):
    return jnp.abs(query["vector"][:, None] - gallery["vector"]).sum(-1)


@pytest.fixture(scope="module")
def data():
    """Whole numbers, so that there are many ties; a row is 12 bytes."""
    rng = np.random.default_rng(0)
    query, gallery = (
        {"vector": rng.integers(0, 5, (n, 3)).astype("f")} for n in (13, 203)
    )
    apart = np.abs(query["vector"][:, None] - gallery["vector"]).sum(-1)
    return query, gallery, apart


@pytest.mark.parametrize(
    ("devices", "device_bytes", "mesh", "parts", "k"),
    [
        (8, 4 << 30, 1, 1, 6),  # what fits on one stays there
        (2, 12 * 110, 2, 1, 6),
        (8, 12 * 26, 8, 1, 500),
        (1, 12 * 50, 1, 5, 6),
        (2, 12 * 50, 2, 3, 500),
        (8, 1, 8, 26, 6),
    ],
)
def test_neighbours_are_the_same_wherever_they_lie(
    data, devices, device_bytes, mesh, parts, k, monkeypatch
):
    query, gallery, apart = data
    comparison = search.Comparison(
        _distance,
        search.Search(device_bytes=device_bytes),
        jax.devices()[:devices],
    )
    placed = search.Gallery(comparison, gallery)
    assert placed.mesh.size == mesh
    put, starts, compared = placed._put, [], []
    monkeypatch.setattr(
        placed, "_put", lambda start: starts.append(start) or put(start)
    )
    found = placed.nearest(query, k, block=8, progress=compared.append)
    # A part is sent once, however many blocks of queries there are.
    assert len(starts) == (parts if parts > 1 else 0)
    assert sum(compared) == apart.size
    order = np.argsort(apart, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(found.indices, order)
    wanted = np.take_along_axis(apart, order, axis=1)
    np.testing.assert_array_equal(found.distances, wanted)
    np.testing.assert_array_equal(found.farthest, apart.max(1))
    distances, finite = placed.distances(query)
    np.testing.assert_array_equal(np.asarray(distances), apart)
    assert np.asarray(finite).all()


@pytest.mark.parametrize(("size", "k"), [(1, 1), (1000, 3), (997, 40)])
def test_least_of_long_rows(size, k):
    rng = np.random.default_rng(size)
    values = rng.integers(-9, 9, (5, size)).astype("f")
    values[:, ::7] = -0.0
    found, index = jax.jit(search.least, static_argnums=1)(values, k)
    order = np.argsort(values, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(index, order)
    np.testing.assert_array_equal(found, np.take_along_axis(values, order, axis=1))


def test_an_approximation_by_name_finds_most(data, monkeypatch):
    query, gallery, apart = data
    asked, real = [], jax.lax.approx_min_k
    monkeypatch.setattr(
        jax.lax,
        "approx_min_k",
        lambda *of, **how: asked.append(how) or real(*of, **how),
    )
    chosen = search.Search(by="approx_max_k", recall=0.9)
    comparison = search.Comparison(_distance, chosen, jax.devices()[:1])
    found = search.Gallery(comparison, gallery).nearest(query, 6, block=13)
    wanted = np.sort(apart, axis=1)[:, :6]
    assert (found.distances == wanted).mean() >= 0.9
    assert asked == [{"recall_target": 0.9}]  # a CPU finds all in any case


def test_distances_of_pairs(data):
    query, _, _ = data
    comparison = search.Comparison(_distance, devices=jax.devices()[:1])
    left, right = np.array([0, 5, 5, 12, 3]), np.array([1, 5, 6, 0, 2])
    found = search.pair_distances(comparison, query, left, right, block=4)
    wanted = np.abs(query["vector"][left] - query["vector"][right]).sum(-1)
    np.testing.assert_array_equal(found, wanted)
    none = np.zeros(0, int)
    assert search.pair_distances(comparison, query, none, none).shape == (0,)
