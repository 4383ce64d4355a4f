"""The store of maps against computing everything; candidates against a full sort."""

import collections

import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.retrieval import rescoring
from reid_jax.retrieval.rescoring import MapStore, candidates

RECORD = 3 * 2 * 4 + 5 * 2 + 1
"""Bytes of one image's maps below."""


class Network:
    """Maps that are a function of the index, of several types; counts its calls."""

    def __init__(self):
        self.computed = collections.Counter()
        self.largest_batch = 0

    def __call__(self, indices):
        self.computed.update(indices.tolist())
        self.largest_batch = max(self.largest_batch, len(indices))
        return self.maps(indices)

    @staticmethod
    def maps(indices):
        indices = np.asarray(indices)
        grid = np.arange(6, dtype=np.float32).reshape(3, 2)
        spread = indices[..., None, None] + grid / 10
        half = jnp.asarray(indices)[..., None] * jnp.arange(5.0)
        return {
            "map": spread.astype(np.float32),
            "rest": (half.astype(jnp.bfloat16), np.asarray(indices % 2 == 0)),
        }


def assert_same(maps, expected):
    np.testing.assert_array_equal(maps["map"], expected["map"])
    assert maps["rest"][0].dtype == jnp.bfloat16
    for value, wanted in zip(maps["rest"], expected["rest"], strict=True):
        np.testing.assert_array_equal(value, wanted)


@pytest.mark.parametrize("images_on_disk", [0, 1, 3, 7, 100])
def test_equal_maps_whatever_the_budget(tmp_path, images_on_disk):
    rng = np.random.default_rng(0)
    network, bound = Network(), images_on_disk * RECORD + 5
    with MapStore(network, directory=tmp_path, max_bytes=bound, batch_size=4) as store:
        for _ in range(12):
            indices = rng.integers(0, 20, (3, 5))
            assert_same(store.fetch(indices), Network.maps(indices))
            assert store.bytes_on_disk <= bound
    assert network.largest_batch <= 4
    if images_on_disk == 100:
        assert set(network.computed.values()) == {1}
    else:
        assert max(network.computed.values()) > 1


def test_least_recently_fetched_makes_room(tmp_path):
    network = Network()
    with MapStore(network, directory=tmp_path, max_bytes=3 * RECORD) as store:
        for indices in ([0, 1, 2], [0], [3], [0, 2, 3]):
            store.fetch(np.array(indices))
        assert network.computed == {0: 1, 1: 1, 2: 1, 3: 1}
        store.fetch(np.array([1]))
        assert network.computed[1] == 2


def test_nothing_stays_on_disk(tmp_path):
    store = MapStore(Network(), directory=tmp_path, max_bytes=10 * RECORD)
    store.fetch(np.array([4, 2]))
    assert store.bytes_on_disk == 2 * RECORD
    store.close()
    assert list(tmp_path.iterdir()) == []


def test_mistakes_of_the_caller(tmp_path):
    shapes = iter([(2, 3), (2, 4)])
    with MapStore(
        lambda _: np.zeros(next(shapes)), directory=tmp_path, max_bytes=10**4
    ) as store:
        store.fetch(np.array([0, 1]))
        with pytest.raises(ValueError, match="the maps changed"):
            store.fetch(np.array([2, 3]))
        with pytest.raises(ValueError, match="no images"):
            store.fetch(np.zeros((0, 3), int))


@pytest.mark.parametrize("device", [False, True])
@pytest.mark.parametrize("levels", [1, 4, 10**6])
@pytest.mark.parametrize("k", [1, 7, 30, 99])
def test_candidates_equal_a_stable_sort(monkeypatch, device, levels, k):
    monkeypatch.setattr(rescoring, "on_accelerator", lambda _: device)
    distances = np.random.default_rng(k).integers(0, levels, (6, 30)) / 8.0
    distances[:, ::3] *= -1.0  # some zeros become -0
    found = candidates(jnp.float32(distances), k)
    assert found.dtype == np.int32
    expected = np.argsort(distances, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(found, expected)
