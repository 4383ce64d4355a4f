"""Averages of embeddings against loops over images."""

import tracemalloc

import jax
import numpy as np
import pytest

from reid_jax.errors import UserError
from reid_jax.retrieval import expansion, search
from reid_jax.retrieval.distances import euclidean


def _unit(rng, *shape):
    vectors = rng.standard_normal(shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype("f")


@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_vectors_take_in_their_neighbours(alpha):
    rng = np.random.default_rng(0)
    query, gallery = _unit(rng, 7, 4), _unit(rng, 9, 4)
    nearest = np.argsort(-query @ gallery.T, axis=1)[:, :3]
    wanted = []
    for vector, indices in zip(query.astype("d"), nearest, strict=True):
        total = vector.copy()
        for other in gallery[indices].astype("d"):
            total += max(vector @ other, 0) ** alpha * other
        wanted.append(total / np.linalg.norm(total))
    got = expansion.expanded(
        {"vector": query}, {"vector": gallery}, nearest, alpha=alpha, block=5
    )
    np.testing.assert_allclose(got["vector"], wanted, atol=1e-6)


def test_many_neighbours_are_averaged_some_at_a_time():
    """All of them at once would be 33 MB."""
    rng = np.random.default_rng(3)
    query, gallery = _unit(rng, 256, 32), _unit(rng, 1000, 32)
    nearest = np.tile(np.arange(1000), (256, 1))
    tracemalloc.start()
    got = expansion.expanded(
        {"vector": query}, {"vector": gallery}, nearest, alpha=0.0, block=256
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6
    wanted = query.astype("d") + gallery.astype("d").sum(0)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(got["vector"], wanted, atol=1e-5)


def test_parts_take_in_what_neighbours_show():
    rng = np.random.default_rng(1)
    sides = [
        {"parts": _unit(rng, n, 3, 4), "visibility": rng.random((n, 3)) < 0.6}
        for n in (6, 8)
    ]
    query, gallery = sides
    nearest = np.stack([rng.permutation(8)[:4] for _ in range(6)])
    got = expansion.expanded(query, gallery, nearest, alpha=2.0, block=4)
    for i, indices in enumerate(nearest):
        total = query["parts"][i].astype("d")
        for j in indices:
            both = query["visibility"][i] & gallery["visibility"][j]
            pairs = zip(query["parts"][i], gallery["parts"][j], strict=True)
            cosines = np.array([a @ b for a, b in pairs])
            cosine = cosines[both].mean() if both.any() else 0.0
            for part in np.flatnonzero(gallery["visibility"][j]):
                total[part] += max(cosine, 0) ** 2 * gallery["parts"][j, part]
        total /= np.linalg.norm(total, axis=1, keepdims=True)
        np.testing.assert_allclose(got["parts"][i], total, atol=1e-6)
    np.testing.assert_array_equal(got["visibility"], query["visibility"])


def test_others_are_not_the_image_itself():
    vectors = np.array([[0.0], [1.0], [3.0], [1.0], [1.0]], "f")
    comparison = search.Comparison(
        lambda q, g: euclidean(q["vector"], g["vector"]), devices=jax.devices()[:1]
    )
    gallery = search.Gallery(comparison, {"vector": vectors})
    nearest = gallery.nearest({"vector": vectors}, 3, block=5)
    # The last of the three copies is not among its three nearest with itself first.
    wanted = [[1, 3], [3, 4], [1, 3], [1, 4], [1, 3]]
    np.testing.assert_array_equal(expansion.others(nearest), wanted)
    two = nearest._replace(
        indices=nearest.indices[:, :2], distances=nearest.distances[:, :2]
    )
    np.testing.assert_array_equal(expansion.others(two), [[1], [3], [1], [1], [1]])


def test_an_image_and_its_mirror_image():
    """Left and right change places; a part is what one of the two shows of it."""
    rng = np.random.default_rng(2)
    names = ("head", "left arm", "right arm", "")
    sides = expansion.other_sides(names)
    assert sides == (0, 2, 1, 3)
    here, there = _unit(rng, 1, 4, 5), _unit(rng, 1, 4, 5)
    seen = np.array([[True, True, False, False]])
    mirrored = np.array([[True, False, True, False]])
    got = expansion.with_mirrored(
        {"parts": here, "visibility": seen},
        {"parts": there, "visibility": mirrored},
        sides,
    )
    np.testing.assert_array_equal(got["visibility"], [[True, True, False, False]])
    wanted = here[0, [0, 1, 2, 3]] + there[0, [0, 2, 1, 3]]
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(got["parts"][0, [0, 1, 2, 3]], wanted, atol=1e-6)
    mirrored = np.array([[False, True, False, True]])
    got = expansion.with_mirrored(
        {"parts": here, "visibility": seen},
        {"parts": there, "visibility": mirrored},
        sides,
    )
    np.testing.assert_array_equal(got["visibility"], [[True, True, True, True]])
    wanted = [here[0, 0], here[0, 1], there[0, 1], there[0, 3]]
    np.testing.assert_allclose(got["parts"][0], wanted, atol=1e-6)


def test_what_cannot_be_averaged_is_named():
    with pytest.raises(UserError, match=r"flip averages .*`length`"):
        expansion.check_averaged({"vector": 0, "length": 1}, "flip")
    with pytest.raises(
        UserError, match="no 'right arm' is among left arm, head: leave"
    ):
        expansion.other_sides(("left arm", "head"))
