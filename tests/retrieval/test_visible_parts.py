import jax
import numpy as np

from reid_jax.retrieval.visible_parts import NOTHING_IN_COMMON, visible_euclidean


def example(seed=0, rows=6, parts=4):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(rows, parts, 5))
    features /= np.linalg.norm(features, axis=2, keepdims=True)
    return features.astype(np.float32), rng.random((rows, parts)) < 0.5


def by_loops(query, query_visible, gallery, gallery_visible):
    result = np.empty((len(query), len(gallery)))
    for i, j in np.ndindex(*result.shape):
        gaps = [
            np.linalg.norm(query[i, k].astype(np.float64) - gallery[j, k])
            for k in range(query.shape[1])
            if query_visible[i, k] and gallery_visible[j, k]
        ]
        result[i, j] = np.mean(gaps) if gaps else NOTHING_IN_COMMON
    return result


def test_equals_loops():
    query, gallery = example(), example(1, rows=9)
    query[1][0] = False  # shows nothing
    query[1][1] = [True, True, False, False]
    gallery[1][0] = [False, False, True, True]
    found = np.asarray(jax.jit(visible_euclidean)(*query, *gallery))
    np.testing.assert_allclose(found, by_loops(*query, *gallery), atol=1e-3)
    assert (found[0] == NOTHING_IN_COMMON).all()
    assert found[1, 0] == NOTHING_IN_COMMON
    assert found.max() <= NOTHING_IN_COMMON


def test_symmetric_finite_and_independent_of_the_gallery():
    query, gallery = example(), example(1, rows=9)
    there = np.asarray(visible_euclidean(*query, *gallery))
    back = np.asarray(visible_euclidean(*gallery, *query))
    np.testing.assert_allclose(there, back.T, atol=1e-6)
    few = visible_euclidean(*query, gallery[0][:1], gallery[1][:1])
    np.testing.assert_allclose(there[:, :1], few, atol=1e-6)
    nothing = np.zeros_like(query[0]), np.zeros_like(query[1])
    assert np.isfinite(visible_euclidean(*query, *nothing)).all()
