import functools

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from reid_jax.errors import UserError
from reid_jax.layers import memory_bank
from reid_jax.losses.part_triplet import part_average_triplet
from tests.losses.test_part_triplet import MARGIN, average_by_loops, numeric_gradient

ROWS, PARTS, WIDTH, STEPS = 8, 2, 3, 7


def batches(seed=0):
    """Embeddings and labels of some steps; identities come back in later ones."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(STEPS, ROWS, PARTS, WIDTH)).astype(np.float32)
    labels = np.stack([rng.permutation(6)[:4].repeat(2) for _ in range(STEPS)])
    return features, labels.astype(np.int32)


def empty(size):
    return memory_bank.empty(batches=size, batch_size=ROWS, parts=PARTS, width=WIDTH)


@functools.cache
def step(anchors="all"):
    def loss(features, bank, labels):
        rows, bank = memory_bank.remember(bank, features, labels)
        chosen = rows.newest if anchors == "batch" else None
        value = part_average_triplet(
            rows.features, rows.labels, margin=MARGIN, anchors=chosen
        )
        return value, bank

    return jax.jit(
        jax.value_and_grad(loss, argnums=(0, 1), has_aux=True, allow_int=True)
    )


@pytest.mark.parametrize("anchors", ["all", "batch"])
@pytest.mark.parametrize("size", [1, 3])
def test_every_step_equals_loops_over_the_last_batches(size, anchors):
    """From the empty bank on, until it has been overwritten more than once."""
    features, labels = batches()
    features[2] = features[1]  # ties, and identical images
    features[:, :, 1] *= 0  # a part that is never there
    bank = empty(size)
    for now in range(STEPS):
        (value, bank), (gradient, into_bank) = step(anchors)(
            features[now], bank, labels[now]
        )
        known = range(now, max(now - size, -1), -1)  # the current batch first

        def loops(current, known=known, now=now):
            rows = [current if t == now else features[t] for t in known]
            names = np.concatenate([labels[t] for t in known])
            chosen = range(ROWS) if anchors == "batch" else None
            return average_by_loops(np.concatenate(rows), names, chosen)

        np.testing.assert_allclose(value, loops(features[now]), rtol=1e-5)
        assert np.isfinite(gradient).all()
        if now not in (2, 3):  # where equal images are, the slope is not defined
            expected = numeric_gradient(loops, features[now])
            expected[:, 1] = gradient[:, 1]  # nor is it between absent parts
            np.testing.assert_allclose(gradient, expected, atol=1e-5)
        # What lay in the bank learns nothing.
        assert (np.asarray(into_bank["embeddings"]) == 0).all()


def test_first_in_first_out():
    features, labels = batches()
    bank = empty(3)
    assert (np.asarray(bank["labels"]) == memory_bank.EMPTY).all()
    for now in range(5):
        _, bank = memory_bank.remember(bank, features[now], labels[now])
    np.testing.assert_array_equal(bank["embeddings"], features[[3, 4, 2]])
    np.testing.assert_array_equal(bank["labels"], labels[[3, 4, 2]])
    assert bank["pointer"] == 2


def test_one_and_eight_devices_hold_the_same():
    features, labels = batches()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    lay = functools.partial(NamedSharding, mesh)
    split = PartitionSpec(None, "data")
    places = {"embeddings": split, "labels": split, "pointer": PartitionSpec()}
    one = empty(3)
    eight = jax.device_put(empty(3), jax.tree.map(lay, places))
    for now in range(STEPS):
        (value, one), (gradient, _) = step()(features[now], one, labels[now])
        batch = jax.device_put((features[now], labels[now]), lay(PartitionSpec("data")))
        (other, eight), (spread, _) = step()(batch[0], eight, batch[1])
        np.testing.assert_allclose(other, value, rtol=1e-5)
        np.testing.assert_allclose(spread, gradient, rtol=1e-4, atol=1e-7)
    jax.tree.map(np.testing.assert_array_equal, one, eight)


def test_a_batch_of_another_size():
    features, labels = batches()
    with pytest.raises(UserError, match=r"batches of 8 images.*this batch is of 4"):
        memory_bank.remember(empty(2), features[0, :4], labels[0, :4])
