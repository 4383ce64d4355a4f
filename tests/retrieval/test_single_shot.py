"""Single-shot ranking against a direct loop over drawn galleries, and by hand."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from reid_jax.errors import UserError
from reid_jax.retrieval.labels import Labels
from reid_jax.retrieval.ranking import Ranker
from reid_jax.retrieval.single_shot import SingleShotRanker
from tests.retrieval.test_ranking import reference


def drawn_for(query, gallery, order, row, camera_filter):
    """Indices of the gallery that query `row` sees in one draw, by the definition."""
    kept = [g for g in range(len(gallery)) if gallery.person[g] == 0]
    for person in set(gallery.person[gallery.person > 0].tolist()):
        images = [
            g
            for g in range(len(gallery))
            if gallery.person[g] == person
            and not (
                camera_filter
                and person == query.person[row]
                and gallery.camera[g] == query.camera[row]
            )
        ]
        kept += sorted(images, key=lambda g: order[g])[:1]
    return np.array(sorted(kept), int)


def loop(keys, query, gallery, *, repeats, seed, camera_filter, ap, max_rank):
    """Mean over queries and draws of the multi-shot reference on what was drawn."""
    rng = np.random.default_rng(seed)
    results = []
    for _ in range(repeats):
        order = rng.permutation(len(gallery))
        for row in range(len(query)):
            drawn = drawn_for(query, gallery, order, row, camera_filter)
            if query.person[row] <= 0 or query.person[row] not in gallery.person[drawn]:
                continue
            results.append(
                reference(
                    keys[row : row + 1, drawn],
                    Labels(query.person[row : row + 1], query.camera[row : row + 1]),
                    Labels(gallery.person[drawn], gallery.camera[drawn]),
                    camera_filter=camera_filter,
                    ap=ap,
                    max_rank=max_rank,
                )[:3]
            )
    cmc, precision, penalty = zip(*results, strict=True)
    valid = len(results) // repeats
    return np.mean(cmc, 0), np.mean(precision), np.mean(penalty), valid


def rank(keys, query, gallery, *, block=4, camera_filter=True, **options):
    ranker = SingleShotRanker(query, gallery, camera_filter=camera_filter, **options)
    for start in range(0, len(query), block):
        rows = np.arange(start, min(start + block, len(query)))
        ranker.update(rows, keys[np.resize(rows, block)])  # padded to a block
    return ranker.result()


def some_set(seed, *, images, persons=6, cameras=3):
    rng = np.random.default_rng(seed)
    return Labels(rng.integers(-1, persons, images), rng.integers(0, cameras, images))


def has_match(query, gallery, *, camera_filter):
    same = query.person[:, None] == gallery.person
    other = query.camera[:, None] != gallery.camera
    return (same & (other | (not camera_filter)) & (query.person[:, None] > 0)).any()


def test_no_match_at_all_is_an_error_with_reasons():
    labels = Labels([1, 2], [0, 0])
    with pytest.raises(UserError, match="none of the 2 queries has a match"):
        SingleShotRanker(labels, labels, repeats=2, seed=0, camera_filter=True)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 1000),
    camera_filter=st.booleans(),
    ap=st.sampled_from(["rectangle", "trapezoid"]),
    values=st.sampled_from([3, 1000]),
)
def test_equals_a_direct_loop(seed, camera_filter, ap, values):
    query, gallery = some_set(seed, images=7), some_set(seed + 1, images=25)
    # Few values: many ties.
    keys = np.random.default_rng(seed).integers(0, values, (7, 25)).astype(np.float32)
    options = {
        "repeats": 4,
        "seed": seed,
        "camera_filter": camera_filter,
        "ap": ap,
        "max_rank": 8,
    }
    assume(has_match(query, gallery, camera_filter=camera_filter))
    got = rank(keys, query, gallery, **options)
    cmc, precision, penalty, valid = loop(keys, query, gallery, **options)
    np.testing.assert_allclose(got.cmc, cmc, atol=1e-12)
    np.testing.assert_allclose(got.mAP, precision, atol=1e-12)
    np.testing.assert_allclose(got.mINP, penalty, atol=1e-12)
    assert got.valid_queries == valid


def test_one_image_per_identity_leaves_nothing_to_draw():
    """On Partial-iLIDS, single-shot and all gallery images are the same protocol."""
    rng = np.random.default_rng(0)
    query = Labels(np.arange(1, 120), np.zeros(119))
    gallery = Labels(rng.permutation(np.arange(1, 120)), np.ones(119))
    keys = rng.normal(size=(119, 119))
    ranker = Ranker(query, gallery, camera_filter=True)
    ranker.update(np.arange(119), keys)
    wanted = ranker.result()
    got = rank(keys, query, gallery, repeats=3, seed=5)
    np.testing.assert_allclose(got.cmc, wanted.cmc, atol=1e-12)
    np.testing.assert_allclose(got.mAP, wanted.mAP, atol=1e-12)


def test_mean_over_many_draws():
    """Two images of the person, one nearer and one farther than the only rival."""
    query = Labels([1], [0])
    gallery = Labels([1, 1, 2], [1, 1, 1])
    got = rank(np.array([[0.1, 0.9, 0.5]]), query, gallery, repeats=4000, seed=0)
    np.testing.assert_allclose(got.cmc[:2], [0.5, 1.0], atol=0.03)
    np.testing.assert_allclose(got.mAP, 0.75, atol=0.015)


def test_the_seed_decides_and_blocks_do_not():
    query = Labels(np.arange(1, 6), np.zeros(5))
    gallery = Labels(np.repeat(np.arange(1, 6), 5), np.ones(25))
    keys = np.random.default_rng(0).normal(size=(5, 25))
    first, again, other = (
        rank(keys, query, gallery, repeats=3, seed=seed, block=block)
        for seed, block in ((0, 1), (0, 5), (1, 5))
    )
    assert first.mAP == again.mAP
    assert first.mAP != other.mAP


def test_nan_and_unscored_queries_are_errors():
    query, gallery = Labels([1, 2], [0, 0]), Labels([1, 2], [1, 1])
    chosen = {"repeats": 2, "seed": 0, "camera_filter": True}
    ranker = SingleShotRanker(query, gallery, **chosen)
    with pytest.raises(UserError, match="first for query 1"):
        ranker.update(np.arange(2), np.array([[0.0, 1.0], [np.nan, 1.0]]))
    ranker.update(np.arange(1), np.array([[0.0, 1.0]]))
    with pytest.raises(ValueError, match="1 of 2 queries were never scored"):
        ranker.result()
    with pytest.raises(UserError, match="rectangle"):
        SingleShotRanker(query, gallery, ap="area", **chosen)
