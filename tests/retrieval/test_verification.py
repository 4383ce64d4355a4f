"""ROC from histograms against all scores, sorted.

Checked once against scikit-learn's `roc_curve` as well.
"""

import numpy as np
import pytest

from reid_jax.errors import UserError
from reid_jax.retrieval.labels import Labels
from reid_jax.retrieval.verification import RATES, Verification, _bin, _greatest


def _data(seed, exact):
    """Labels with junk, distractors and an unlabelled query; distances."""
    rng = np.random.default_rng(seed)
    query = Labels(rng.integers(0, 6, 30), rng.integers(0, 3, 30))
    gallery = Labels(rng.integers(-1, 6, 400), rng.integers(0, 3, 400))
    same = query.person[:, None] == gallery.person
    distances = rng.normal(np.where(same, 0.7, 1.6), 0.3)
    if exact:  # each in a bin of its own
        distances = np.round(distances * 256) / 256
    return query, gallery, distances.astype("f")


def _pairs(query, gallery, distances, camera_filter):
    """Distance and whether it is one person, of all pairs that count."""
    found = []
    for i, (person, camera) in enumerate(zip(query.person, query.camera, strict=True)):
        for j, (other, by) in enumerate(
            zip(gallery.person, gallery.camera, strict=True)
        ):
            same = person == other
            filtered = camera_filter and same and camera == by
            if person > 0 and other >= 0 and not filtered:
                found.append((distances[i, j], same))
    apart, same = zip(*found, strict=True)
    return np.array(apart), np.array(same)


def _best(apart, same, rate):
    """Greatest TPR with at most that FPR over all thresholds, and its least one."""
    best = 0.0, None
    for threshold in np.unique(apart):
        accepted = apart <= threshold
        if (accepted & ~same).sum() / (~same).sum() <= rate:
            tpr = (accepted & same).sum() / same.sum()
            if tpr > best[0]:
                best = tpr, threshold
    return best


@pytest.mark.parametrize("camera_filter", [True, False])
def test_all_thresholds_tried(camera_filter):
    query, gallery, distances = _data(0, exact=True)
    roc = Verification(query, gallery, camera_filter=camera_filter)
    for start in range(0, 30, 8):  # the last block is padded
        rows = np.arange(start, min(start + 8, 30))
        roc.update(rows, distances[np.resize(rows, 8)])
    curve = roc.curve()
    apart, same = _pairs(query, gallery, distances, camera_filter)
    assert curve.true_positives[-1] == same.sum()
    assert curve.false_positives[-1] == (~same).sum()
    reached = curve.fpr[len(curve.fpr) // 3]  # to the last bit
    for rate in (1e-3, 1e-2, 0.1, 1.0, reached):
        tpr, threshold = _best(apart, same, rate)
        got, at = curve.at(rate)
        np.testing.assert_allclose(got, tpr, rtol=1e-12)
        assert threshold <= at < threshold + 1 / 256
        # The threshold gives what it is said to give.
        accepted = apart <= np.float32(at)
        assert accepted[same].mean() == got
        assert accepted[~same].mean() <= rate


def test_numbers_of_one_bin_are_near():
    query, gallery, distances = _data(1, exact=False)
    roc = Verification(query, gallery, camera_filter=True)
    roc.update(np.arange(30), distances)
    apart, same = _pairs(query, gallery, distances, camera_filter=True)
    tpr, threshold = _best(apart, same, 0.01)
    got, at = roc.curve().at(0.01)
    assert abs(got - tpr) < 0.01
    assert abs(at - threshold) < 0.01


def test_bins_are_in_the_order_of_the_numbers():
    values = np.array([-3e38, -2.0, -1.0, -1e-9, -0.0, 0.0, 1e-9, 1.0, 2.0, 3e38], "f")
    bins = _bin(values)
    assert (np.diff(bins) >= 0).all()
    assert len(np.unique(bins)) == 9  # the zeros are one
    greatest = _greatest(bins)
    assert (greatest >= values).all()
    np.testing.assert_array_equal(_bin(greatest), bins)


def test_report_and_nothing_to_report():
    query, gallery, distances = _data(2, exact=True)
    roc = Verification(query, gallery, camera_filter=True)
    with pytest.raises(UserError, match="one person"):
        roc.curve()
    roc.update(np.arange(30), distances)
    alone = Labels(np.array([3, 3, -1]), np.arange(3))
    with pytest.raises(UserError, match="shows different persons"):
        Verification(alone, alone, camera_filter=True)
    report = roc.curve().report()
    assert [one["fpr"] for one in report["at"]] == list(RATES)
    # No threshold accepts fewer than a whole false pair of two thousand.
    overlapping = Verification(query, gallery, camera_filter=True)
    overlapping.update(np.arange(30), np.zeros_like(distances))
    assert overlapping.curve().at(1e-3) == (0.0, None)
