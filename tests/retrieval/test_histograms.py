"""Histograms of pairs against loops over pairs."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reid_jax.retrieval.histograms import Histograms, PairHistograms
from reid_jax.retrieval.labels import Labels


def loop(distances, query, gallery, camera_filter):
    """Distances of right and of wrong pairs, one pair after the other."""
    right, wrong = [], []
    for q in range(len(query)):
        for g in range(len(gallery)):
            same = query.person[q] == gallery.person[g]
            one_camera = query.camera[q] == gallery.camera[g]
            left_out = camera_filter and same and one_camera
            if query.person[q] <= 0 or gallery.person[g] < 0 or left_out:
                continue
            (right if same else wrong).append(float(distances[q, g]))
    return right, wrong


def labels(rng, count):
    return Labels(rng.integers(-1, 4, count), rng.integers(0, 3, count))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([0.0, 1e-30, 1.0, 1e6]),
    offset=st.sampled_from([0.0, -1.5, 1e4]),
    camera_filter=st.booleans(),
)
def test_counts_are_those_of_a_loop_whatever_the_blocks(
    seed, scale, offset, camera_filter
):
    rng = np.random.default_rng(seed)
    query, gallery = labels(rng, 9), labels(rng, 13)
    distances = (offset + scale * rng.standard_cauchy((9, 13))).astype(np.float32)
    right, wrong = loop(distances, query, gallery, camera_filter)

    results = []
    for order in ([0, 9], [0, 4, 8, 9]):
        counted = PairHistograms(query, gallery, camera_filter=camera_filter, bins=16)
        for start, stop in reversed(list(itertools.pairwise(order))):
            padded = np.resize(distances[start:stop], (max(stop - start, 2), 13))
            rows = np.arange(start, stop)
            counted.update(rows, padded if stop == 9 else distances[rows])
        results.append(counted.result())
    one, other = results

    assert len(one.right) <= 16
    np.testing.assert_array_equal(one.edges, other.edges)
    np.testing.assert_array_equal(one.right, other.right)
    np.testing.assert_array_equal(one.wrong, other.wrong)
    for counts, values in ((one.right, right), (one.wrong, wrong)):
        places = np.searchsorted(one.edges, values, side="right") - 1
        np.testing.assert_array_equal(
            counts, np.bincount(places, minlength=len(counts)) if len(counts) else []
        )


def test_bins_are_as_fine_as_their_number_allows():
    query, gallery = Labels([1], [0]), Labels([1, 2, 3], [1, 1, 1])
    counted = PairHistograms(query, gallery, camera_filter=True, bins=100)
    counted.update(np.arange(1), np.array([[0.1, 0.9, 1.0]]))
    found = counted.result()
    assert np.diff(found.edges) == pytest.approx(1 / 64)
    assert found.right.nonzero()[0] == [0]
    assert found.edges[0] <= 0.1 < found.edges[1]
    assert found.wrong.sum() == 2


def test_equal_error_is_where_both_shares_meet():
    rng = np.random.default_rng(0)
    edges = np.arange(9) / 4
    right, wrong = rng.integers(0, 50, (2, 8))
    threshold, rate = Histograms(edges, right, wrong).equal_error()
    errors = {}
    for i, edge in enumerate(edges):
        errors[edge] = right[i:].sum() / right.sum(), wrong[:i].sum() / wrong.sum()
    best = min(errors, key=lambda edge: abs(errors[edge][0] - errors[edge][1]))
    assert threshold == best
    assert rate == pytest.approx(np.mean(errors[best]))
