import jax
import numpy as np
import pytest

from reid_jax.retrieval.fusion import fuse_z_scores, sort_candidates

fuse = jax.jit(fuse_z_scores, static_argnames="weight")


def fusion_case(candidates):
    rng = np.random.default_rng(0)
    distances = rng.random((5, 12)).astype(np.float32) * 4
    near = np.argsort(distances, axis=1, kind="stable")[:, :candidates].astype(np.int32)
    return distances, near, rng.random((5, candidates)).astype(np.float32)


def z_scores(values):
    return (values - values.mean()) / values.std()


@pytest.mark.parametrize("candidates", [12, 4])
def test_fusion_equals_a_loop_over_queries(candidates):
    distances, near, scores = fusion_case(candidates)
    found = np.asarray(fuse(distances, near, scores, weight=0.7))
    for row in range(5):
        mixed = z_scores(distances[row, near[row]].astype(np.float64))
        mixed = mixed - 0.7 * z_scores(scores[row].astype(np.float64))
        order = near[row][np.argsort(mixed)].tolist()
        order += [g for g in np.argsort(distances[row]).tolist() if g not in near[row]]
        assert np.argsort(found[row]).tolist() == order
        gaps = found[row, near[row]] - found[row, near[row, 0]]
        np.testing.assert_allclose(gaps, mixed - mixed[0], atol=1e-4)


@pytest.mark.parametrize("candidates", [12, 4, 1])
def test_weight_zero_is_the_global_ranking(candidates):
    distances, near, scores = fusion_case(candidates)
    for weight, same in ((0.0, True), (5.0, candidates == 1)):
        found = np.argsort(fuse(distances, near, scores, weight=weight), axis=1)
        assert (found == np.argsort(distances, axis=1)).all() == same


def test_equal_scores_and_distances_fuse_without_nan():
    near = np.arange(3, dtype=np.int32)[None]
    ones = np.ones((1, 3), np.float32)
    keys = fuse(ones, near, ones, weight=0.3)
    assert (np.asarray(keys) == 0).all()


def test_candidates_are_sorted_before_all_others():
    rng = np.random.default_rng(0)
    distances = rng.random((3, 9)).astype(np.float32)
    candidates = np.argsort(distances, axis=1)[:, :4].astype(np.int32)
    scores = rng.normal(size=(3, 4)).astype(np.float32)
    scores[1, 2] = scores[1, 0]  # equal ones stay equal
    keys = np.asarray(jax.jit(sort_candidates)(distances, candidates, scores))
    for row in range(3):
        order = candidates[row][np.argsort(scores[row], kind="stable")]
        rest = [g for g in np.argsort(distances[row]) if g not in order]
        found = np.argsort(keys[row], kind="stable")
        assert {*found[:4]} == {*order}
        np.testing.assert_array_equal(found[4:], rest)
        if row != 1:
            np.testing.assert_array_equal(found[:4], order)
    assert keys[1, candidates[1, 2]] == keys[1, candidates[1, 0]]
    assert len(np.unique(keys[1])) == 8
    scores[0, 0] = np.nan  # stays visible
    keys = np.asarray(jax.jit(sort_candidates)(distances, candidates, scores))
    assert np.isnan(keys[0, candidates[0, 0]])
