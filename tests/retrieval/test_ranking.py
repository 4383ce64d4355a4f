"""Ranking against a direct loop in float64, a published result and hand counts."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st

from reid_jax.errors import UserError
from reid_jax.retrieval import ranking
from reid_jax.retrieval.labels import Labels, MatchIndex
from reid_jax.retrieval.lists import top_matches
from reid_jax.retrieval.ranking import Ranker


def kept_in_order(keys, person, camera, gallery, camera_filter):
    """Gallery indices that count for one query, by (distance, index)."""
    kept = [
        g
        for g in range(len(gallery))
        if gallery.person[g] >= 0
        and not (
            camera_filter
            and gallery.person[g] == person
            and gallery.camera[g] == camera
        )
    ]
    return sorted(kept, key=lambda g: (float(keys[g]), g))


def reference(keys, query, gallery, *, camera_filter, ap, max_rank):
    """CMC, mAP, mINP and the number of valid queries, one query after the other."""
    cmc, precisions, penalties = np.zeros(max_rank), [], []
    for q in range(len(query)):
        if query.person[q] <= 0:
            continue
        order = kept_in_order(
            keys[q], query.person[q], query.camera[q], gallery, camera_filter
        )
        right = [gallery.person[g] == query.person[q] for g in order]
        if not any(right):
            continue
        total, found, last = 0.0, 0, 0
        for rank, hit in enumerate(right):
            if not hit:
                continue
            new = (found + 1) / (rank + 1)
            old = found / rank if rank else 1.0
            total += new if ap == "rectangle" else (old + new) / 2
            found, last = found + 1, rank + 1
        precisions.append(total / found)
        penalties.append(found / last)
        cmc[right.index(True) :] += 1
    valid = len(precisions)
    return cmc / max(valid, 1), np.mean(precisions), np.mean(penalties), valid


def rank(keys, query, gallery, *, block=None, camera_filter=True, **options):
    ranker = Ranker(query, gallery, camera_filter=camera_filter, **options)
    block = block or len(query)
    for start in range(0, len(query), block):
        rows = np.arange(start, min(start + block, len(query)))
        ranker.update(rows, keys[rows])
    return ranker.result()


def assert_equal(result, expected):
    cmc, mean_ap, mean_inp, valid = expected
    np.testing.assert_allclose(result.cmc, cmc, rtol=0, atol=1e-12)
    np.testing.assert_allclose(result.mAP, mean_ap, rtol=1e-12)
    np.testing.assert_allclose(result.mINP, mean_inp, rtol=1e-12)
    assert result.valid_queries == valid


def random_case(seed, queries, images, *, levels, persons=5, cameras=3):
    """Distances of few levels (ties), with distractors, junk and unlabelled queries."""
    rng = np.random.default_rng(seed)
    keys = rng.integers(0, levels, (queries, images)).astype(np.float32) / 8
    query = Labels(
        rng.integers(0, persons + 2, queries), rng.integers(0, cameras, queries)
    )
    gallery = Labels(
        rng.integers(-1, persons + 1, images), rng.integers(0, cameras, images)
    )
    return keys, query, gallery


@pytest.fixture(params=["host", "device"])
def path(request, monkeypatch):
    """Both ways to count; the one for accelerators runs on a CPU as well."""
    if request.param == "device":
        monkeypatch.setattr(ranking, "on_accelerator", lambda keys: True)
    return request.param


@pytest.mark.parametrize("ap", ["rectangle", "trapezoid"])
@pytest.mark.parametrize("camera_filter", [True, False])
def test_equals_a_direct_loop(path, ap, camera_filter):
    keys, query, gallery = random_case(0, 40, 90, levels=30)
    options = {"camera_filter": camera_filter, "ap": ap, "max_rank": 12}
    result = rank(keys, query, gallery, **options)
    assert_equal(result, reference(keys, query, gallery, **options))
    assert 0 < result.valid_queries < 40


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    queries=st.integers(1, 7),
    images=st.integers(1, 25),
    levels=st.sampled_from([1, 2, 5, 1000]),
    camera_filter=st.booleans(),
    ap=st.sampled_from(["rectangle", "trapezoid"]),
    block=st.integers(1, 7),
)
def test_equals_a_direct_loop_with_many_ties(
    seed, queries, images, levels, camera_filter, ap, block
):
    keys, query, gallery = random_case(seed, queries, images, levels=levels)
    options = {"camera_filter": camera_filter, "ap": ap, "max_rank": 10}
    try:
        result = rank(keys, query, gallery, block=block, **options)
    except UserError:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the mean of no query
            assert reference(keys, query, gallery, **options)[3] == 0
        return
    assert_equal(result, reference(keys, query, gallery, **options))


@pytest.mark.parametrize("levels", [1, 3, 10**6])
def test_device_and_host_agree_bit_for_bit(monkeypatch, levels):
    keys, query, gallery = random_case(1, 30, 64, levels=levels)
    host = rank(keys, query, gallery, block=8)
    monkeypatch.setattr(ranking, "on_accelerator", lambda keys: True)
    device = rank(jnp.asarray(keys), query, gallery, block=8)
    np.testing.assert_array_equal(host.cmc, device.cmc)
    assert (host.mAP, host.mINP) == (device.mAP, device.mINP)


def test_one_compilation_for_all_full_blocks(monkeypatch):
    monkeypatch.setattr(ranking, "on_accelerator", lambda keys: True)
    keys, query, gallery = random_case(3, 24, 37, levels=50)
    padded = np.concatenate([keys, np.full((8, 37), np.nan, np.float32)])
    ranker = Ranker(query, gallery, camera_filter=True)
    before = ranking._count_on_device._cache_size()
    for start in (0, 10, 20):
        rows = np.arange(start, min(start + 10, 24))
        ranker.update(rows, jnp.asarray(padded[start : start + 10]))
    assert ranking._count_on_device._cache_size() == before + 1
    assert ranker.result().mAP == rank(keys, query, gallery).mAP


def test_cpu_arrays_are_counted_on_the_host():
    assert not ranking.on_accelerator(np.zeros((2, 2)))
    assert not ranking.on_accelerator(jnp.zeros((2, 2)))


@pytest.mark.parametrize("images", [1, 5, 30])
def test_gallery_shorter_than_max_rank(path, images):
    person = np.arange(1, images + 1)
    query = Labels(person[::-1], np.zeros(images))
    gallery = Labels(person, np.ones(images))
    keys = np.random.default_rng(0).random((images, images)).astype(np.float32)
    result = rank(keys, query, gallery, max_rank=50)
    assert result.cmc.shape == (50,)
    assert (result.cmc[images - 1 :] == 1.0).all()
    expected = reference(
        keys, query, gallery, camera_filter=True, ap="rectangle", max_rank=50
    )
    assert_equal(result, expected)


def test_hand_counted(path):
    """Order of the gallery: wrong, right, junk (same camera), distractor, right."""
    query = Labels([7], [0])
    gallery = Labels([7, 3, 7, 0, 7, -1], [1, 0, 0, 2, 2, 0])
    keys = np.array([[0.2, 0.1, 0.3, 0.4, 0.5, 0.0]], np.float32)
    result = rank(keys, query, gallery, max_rank=4)
    assert result.metrics([1, 2]) == pytest.approx(
        {"rank1": 0.0, "rank2": 1.0, "mAP": (1 / 2 + 2 / 4) / 2, "mINP": 2 / 4}
    )
    trapezoid = rank(keys, query, gallery, ap="trapezoid").mAP
    assert trapezoid == pytest.approx(((0 / 1 + 1 / 2) / 2 + (1 / 3 + 2 / 4) / 2) / 2)


def test_collapsed_embedding_scores_by_position(path):
    """All distances equal: the one match stands last, so nothing is found early."""
    query, gallery = Labels([1], [0]), Labels([2] * 99 + [1], [1] * 100)
    result = rank(np.zeros((1, 100), np.float32), query, gallery, max_rank=100)
    assert result.cmc[98] == 0.0
    assert result.mAP == pytest.approx(0.01)


def test_published_result_of_pku_sketch(shared_data):
    """Rank@1 0.14, Rank@5 0.36, Rank@10 0.48, mAP 0.178000: the released log's last
    line, computed by the original trapezoidal evaluation from these features."""
    stored = scipy.io.loadmat(shared_data / "oracle_pku_sketch" / "pytorch_result.mat")
    query = Labels(stored["query_label"][0], stored["query_cam"][0])
    gallery = Labels(stored["gallery_label"][0], stored["gallery_cam"][0])
    keys = -stored["query_f"] @ stored["gallery_f"].T  # unit vectors: cosine
    result = rank(keys, query, gallery, ap="trapezoid")
    metrics = result.metrics([1, 5, 10])
    assert metrics.pop("mINP") > 0  # not published
    published = {"rank1": 0.14, "rank5": 0.36, "rank10": 0.48, "mAP": 0.178}
    assert metrics == pytest.approx(published, abs=5e-7)


def test_half_precision_and_infinite_keys(path):
    query, gallery = Labels([1], [0]), Labels([2, 1, 2], [1, 1, 1])
    keys = jnp.array([[np.inf, np.inf, -np.inf]], jnp.bfloat16)
    assert rank(keys, query, gallery).cmc[:3].tolist() == [0, 0, 1]


def test_nan_is_an_error_that_says_where(path):
    keys, query, gallery = random_case(2, 6, 20, levels=9)
    keys[4, 3] = np.nan
    with pytest.raises(UserError, match=r"1 of the queries 0 to 5.* NaN.* query 4"):
        rank(keys, query, gallery)


def test_no_valid_query_counts_the_reasons():
    query = Labels([1, 2, 2, 3, 3, 3, 0, -1, 0, 0], np.zeros(10))
    gallery = Labels([3, 3, 4, 0, -1], [0, 0, 1, 0, 0])
    with pytest.raises(UserError) as error:
        Ranker(query, gallery, camera_filter=True)
    message = str(error.value)
    assert "none of the 10 queries has a match among the 5 gallery" in message
    assert "  3 show a person who is not in the gallery" in message
    assert "  3 show a person whom only the query's own camera saw" in message
    assert "camera_filter=False" in message
    assert "  4 have no person label" in message
    assert Ranker(query, gallery, camera_filter=False)


def test_mistakes_of_the_caller():
    keys, query, gallery = random_case(0, 8, 30, levels=9)
    with pytest.raises(UserError, match="'rectangle' or 'trapezoid'"):
        Ranker(query, gallery, camera_filter=True, ap="rectangular")
    ranker = Ranker(query, gallery, camera_filter=True, max_rank=20)
    with pytest.raises(ValueError, match="do not fit 30 gallery images"):
        ranker.update(np.arange(8), keys[:, :29])
    ranker.update(np.arange(5), keys[:5])
    with pytest.raises(ValueError, match=r"3 of 8 queries were never scored.*query 5"):
        ranker.result()
    ranker.update(np.arange(5, 8), keys[5:])
    with pytest.raises(UserError, match=r"ranks \[30\] are outside 1..20"):
        ranker.result().metrics([1, 30])
    with pytest.raises(ValueError, match="vectors of one length"):
        Labels([1, 2], [1])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    levels=st.sampled_from([1, 3, 1000]),
    k=st.integers(1, 12),
    camera_filter=st.booleans(),
)
def test_top_matches_equal_the_head_of_the_order(seed, levels, k, camera_filter):
    keys, query, gallery = random_case(seed, 5, 9, levels=levels)
    rows = np.array([3, 0, 4])
    index = MatchIndex(query, gallery, camera_filter=camera_filter)
    lists = top_matches(keys[rows], rows, index, k=k)
    assert lists.shape == (3, k)
    assert lists.dtype == np.int32
    for found, q in zip(lists, rows, strict=True):
        person = query.person[q] if query.person[q] > 0 else 10**6
        order = kept_in_order(keys[q], person, query.camera[q], gallery, camera_filter)
        assert found.tolist() == (order + [-1] * k)[:k]


@pytest.mark.parametrize("person", [[2**32 + 1], [1.5], [np.nan]])
def test_labels_do_not_wrap_around(person):
    with pytest.raises(ValueError, match="person holds numbers that are no 32-bit"):
        Labels(person, [0])
