"""P x K plans: what holds for every batch, and the epoch of BoT."""

import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.sampling import PKPlan
from reid_jax.errors import UserError


def persons(counts, *, gap=3):
    """Person numbers with `counts` images each, shuffled, not contiguous."""
    person = np.repeat(np.arange(1, len(counts) + 1) * gap, counts)
    return np.random.default_rng(0).permutation(person)


def plan_of(counts, p, k, seed=0):
    person = persons(counts)
    plan = PKPlan(person, identities=p, images_per_identity=k, seed=seed)
    return person, plan


@st.composite
def cases(draw):
    counts = draw(st.lists(st.integers(1, 23), min_size=2, max_size=14))
    p = draw(st.integers(1, len(counts)))
    return counts, p, draw(st.integers(1, 6)), draw(st.integers(0, 2**31))


@settings(max_examples=80, deadline=None)
@given(cases())
def test_every_batch_holds_p_identities_with_k_images(case):
    counts, p, k, seed = case
    person, plan = plan_of(counts, p, k, seed)
    for step in range(2 * plan.steps_per_epoch + 1):
        batch = plan.batch(step)
        assert batch.shape == (p * k,)
        rows = person[batch].reshape(p, k)
        assert (rows == rows[:, :1]).all()
        assert len(set(rows[:, 0])) == p
        for chunk, identity in zip(batch.reshape(p, k), rows[:, 0], strict=True):
            if (person == identity).sum() >= k:
                assert len(set(chunk)) == k


@settings(max_examples=80, deadline=None)
@given(cases())
def test_epoch_length_and_use_of_images(case):
    counts, p, k, seed = case
    person, plan = plan_of(counts, p, k, seed)
    expected = 0
    for count in counts:
        expected += max(1, count // k)
    assert plan.steps_per_epoch == expected // p
    batches = np.stack([plan.batch(s) for s in range(plan.steps_per_epoch)])
    chunks = Counter(person[batches.reshape(-1, k)[:, 0]].tolist())
    dropped = sum(
        max(0, max(1, c // k) - chunks[3 * (i + 1)]) for i, c in enumerate(counts)
    )
    capped = sum(max(0, max(1, c // k) - plan.steps_per_epoch) for c in counts)
    # Beyond what the cap takes away, at most one incomplete batch is left over.
    assert dropped <= capped + p - 1


def test_an_epoch_repeats_no_image_where_no_cap_applies():
    person, plan = plan_of([8] * 12, 4, 4)
    drawn = np.concatenate([plan.batch(s) for s in range(plan.steps_per_epoch)])
    assert sorted(drawn) == list(range(len(person)))


def test_batches_are_a_pure_function_of_seed_and_step():
    _, plan = plan_of([5, 9, 2, 7, 4, 4], 3, 4, seed=5)
    _, other = plan_of([5, 9, 2, 7, 4, 4], 3, 4, seed=5)
    steps = list(range(3 * plan.steps_per_epoch))
    forward = [plan.batch(s) for s in steps]
    copied = pickle.loads(pickle.dumps(other))
    for s in [*reversed(steps), *steps[::2]]:
        np.testing.assert_array_equal(forward[s], other.batch(s))
        np.testing.assert_array_equal(forward[s], copied.batch(s))
    _, reseeded = plan_of([5, 9, 2, 7, 4, 4], 3, 4, seed=6)
    assert any((forward[s] != reseeded.batch(s)).any() for s in steps)
    first, second = forward[: len(steps) // 3], forward[len(steps) // 3 :]
    assert any((a != b).any() for a, b in zip(first, second, strict=False))


def test_every_identity_has_its_turn():
    # 40 single-image identities, 8 per batch: each is seen once in five batches.
    person, plan = plan_of([1] * 40, 8, 4)
    seen = np.concatenate([person[plan.batch(s)] for s in range(5)])
    assert Counter(seen.tolist()) == {int(i): 4 for i in person}


def test_the_order_of_identities_varies_within_an_epoch():
    # A fixed order would tie identities to batch rows, which groups of rows (ghost
    # batch norm, mining groups) would notice.
    person, plan = plan_of([32] * 8, 8, 4)
    assert plan.steps_per_epoch == 8
    orders = {tuple(person[plan.batch(s)[::4]]) for s in range(8)}
    assert len(orders) == 8


def _bots_epoch(counts, p, k):
    """Each batch's identities: P at random of those with chunks left."""
    rng = np.random.default_rng(0)
    left = {i: max(1, count // k) for i, count in enumerate(counts)}
    while len(left) >= p:
        batch = set(rng.choice(list(left), p, replace=False).tolist())
        left = {i: n - (i in batch) for i, n in left.items() if n > (i in batch)}
        yield batch


def _others_met(batches):
    """How many other identities one meets in an epoch, on average."""
    met = {}
    for batch in batches:
        for identity in batch:
            met.setdefault(identity, set()).update(batch - {identity})
    return np.mean([len(others) for others in met.values()])


def test_identities_meet_as_many_others_as_in_bots_batches():
    counts = np.random.default_rng(1).integers(4, 40, 300)
    person, plan = plan_of(counts, 16, 4)
    steps = range(plan.steps_per_epoch)
    ours = _others_met(set(person[plan.batch(step)].tolist()) for step in steps)
    assert ours > 0.98 * _others_met(_bots_epoch(counts, 16, 4))


def test_labels_are_contiguous_and_leave_out_no_identities():
    person = np.array([7, 0, 3, -1, 7, 12, 0, 3])
    plan = PKPlan(person, identities=2, images_per_identity=2, seed=0)
    assert plan.labels.tolist() == [1, -1, 0, -1, 1, 2, -1, 0]
    assert plan.labels.dtype == np.int32
    assert plan.num_classes == 3
    for step in range(20):
        assert (person[plan.batch(step)] > 0).all()


def test_published_market_epoch(shared_data):
    lines = (shared_data / "splits/market1501/list_market_train.txt").read_text()
    person = np.array([int(line[:4]) for line in lines.split("\n") if line])
    plan = PKPlan(person, identities=16, images_per_identity=4, seed=0)
    # The length that BoT's sampler states: images rounded down to chunks of 4.
    counts = Counter(person.tolist()).values()
    images = sum(4 if c < 4 else c - c % 4 for c in counts)
    assert plan.steps_per_epoch == images // 64
    assert (len(person), plan.num_classes) == (12936, 751)


@pytest.mark.parametrize(
    ("p", "k", "seed", "words"),
    [
        (4, 2, 0, ["4", "3", "config.stages.<stage>.identities"]),
        (0, 2, 0, ["identities", "0"]),
        (2, 0, 0, ["images_per_identity", "0"]),
        (2, 2, -1, ["seed", "-1"]),
    ],
)
def test_impossible_plans_are_user_errors(p, k, seed, words):
    with pytest.raises(UserError) as error:
        plan_of([3, 3, 3], p, k, seed)
    for word in words:
        assert word in str(error.value)


def test_no_identity_at_all_is_a_user_error():
    with pytest.raises(UserError, match="identities"):
        PKPlan(np.array([0, -1]), identities=1, images_per_identity=1, seed=0)


def test_more_images_of_an_identity_than_there_are_is_a_user_error():
    with pytest.raises(UserError, match="is 65; the whole training split has 10 im"):
        PKPlan(np.repeat([1, 2], 5), identities=2, images_per_identity=65, seed=0)
