"""`mode=code` against the definitions of the authors' published code, in float64.

The transcriptions lay out all B x B pairs one after the other, as the code does: pair
p = i B + j shows image j at the left and image i at the right. Gradients are finite
differences of the transcription, in which D^-1/2 is held fixed, as it has none.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import configs.cacenet
from reid_jax.layers.pair_graph import PairGraph
from reid_jax.models import cacenet
from tests.models.test_cacenet import CODE, Patches, batch, make, variables_of

B, CLASSES, WIDTH = 4, 3, 5
LABELS = np.array([0, 0, 2, 2], np.int32)
PAIRS = np.arange(B * B)
LEFT, RIGHT = PAIRS % B, PAIRS // B


@functools.cache
def authors():
    """The method of `mode=code`, with a small network."""
    fields = configs.cacenet.get_config("mode=code").model.to_dict()
    return cacenet.Method(CLASSES, **fields | {"width": 1, "blocks": (1, 1, 1, 1)})


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def differences(function, values, step=1e-6):
    """The gradient of a scalar function, by central differences."""
    gradient = np.zeros_like(values)
    for index in np.ndindex(*values.shape):
        shift = np.zeros_like(values)
        shift[index] = step
        gap = function(values + shift) - function(values - shift)
        gradient[index] = gap / (2 * step)
    return gradient


def agree(found, expected, gradient, values, reference):
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    wanted = differences(reference, values)
    assert np.abs(wanted).max() > 1e-3
    np.testing.assert_allclose(gradient, wanted, atol=1e-5)


# Losses.


def cross_entropy(logits, labels):
    log = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return -np.mean([row[label] for row, label in zip(log, labels, strict=True)])


def unit(features):
    return features / (np.linalg.norm(features, axis=-1, keepdims=True) + 1e-12)


def mixup_of_both_images(of_given):
    """Two mix-up losses: of the left images given the right ones, and the reverse."""
    left, right = of_given[LEFT, RIGHT], of_given[RIGHT, LEFT]
    first, second = LABELS[LEFT], LABELS[RIGHT]
    return (
        0.9 * cross_entropy(left, first)
        + 0.1 * cross_entropy(left, second)
        + 0.9 * cross_entropy(right, second)
        + 0.1 * cross_entropy(right, first)
    )


def triplet_of_pairs(of_given):
    """Batch-hard with margin 0.5 over |left - right|, the image itself included."""
    gaps = unit(of_given[LEFT, RIGHT]) - unit(of_given[RIGHT, LEFT])
    distances = np.sqrt((gaps**2).sum(1) + 1e-12).reshape(B, B)
    same = LABELS[:, None] == LABELS
    hinges = [
        max(0, max(row[near]) - min(row[~near]) + 0.5)
        for row, near in zip(distances, same, strict=True)
    ]
    return np.mean(hinges)


def test_mixup_counts_both_images_of_a_pair():
    logits = draw(B, B, CLASSES)

    def loss(logits):
        return authors().pair_losses(
            {"pair_logits": logits, "pair_feature": jnp.ones((B, B, 2))}, LABELS
        )["loss_pair_id"]

    found, gradient = jax.jit(jax.value_and_grad(loss))(np.float32(logits))
    expected = mixup_of_both_images(logits)
    agree(found, expected, gradient, logits, mixup_of_both_images)


def test_triplet_of_unit_conditional_features():
    features = draw(B, B, WIDTH, seed=1)

    def loss(features):
        return authors().pair_losses(
            {"pair_logits": jnp.zeros((B, B, CLASSES)), "pair_feature": features},
            LABELS,
        )["loss_pair_triplet"]

    found, gradient = jax.jit(jax.value_and_grad(loss))(np.float32(features))
    expected = triplet_of_pairs(features)
    agree(found, expected, gradient, features, triplet_of_pairs)


# The graph of a pair.

CHANNELS, EMBED, PLACES = 6, 4, 4
NAMES = ("maps", "similar", "project", "expand")
ALONE = 2
"""A place of the first image that is like no other."""


def arrays():
    """Maps [2, 2, 2, D] and the three projections."""
    rng = np.random.default_rng(2)
    maps = rng.random((2, PLACES, CHANNELS))
    maps[0, ALONE] = 0
    similar = rng.normal(size=(CHANNELS, EMBED)) + 0.7
    # A channel of its own, which the embedding turns away from all others.
    maps[:, :, 0], maps[0, ALONE, 0], similar[0] = 0, 1, -1
    return (
        maps.reshape(2, 2, 2, CHANNELS),
        similar,
        rng.normal(size=(CHANNELS, EMBED)),
        rng.normal(size=(EMBED, CHANNELS)),
    )


def inverse_roots(maps, similar):
    adjacency = edges(maps, similar)
    degree = np.diag(adjacency.sum(1))
    kept = np.where(degree > 1e-3, degree, 1)
    return kept**-0.5 * np.eye(len(degree))


def edges(maps, similar):
    places = unit(maps.reshape(2 * PLACES, CHANNELS) @ similar)
    return np.maximum(places @ places.T, 0) * (1 - np.eye(2 * PLACES))


def pair_graph(maps, similar, project, expand, norm):
    """x + o(g(x) f), f = D^-1/2 (D - A) D^-1/2, over the places of both images."""
    x = maps.reshape(2 * PLACES, CHANNELS)
    adjacency = edges(maps, similar)
    f = norm @ (np.diag(adjacency.sum(1)) - adjacency) @ norm
    return x + f.T @ (x @ project) @ expand


def test_pair_graph():
    given, weigh = arrays(), draw(2 * PLACES, CHANNELS, seed=3)
    norm = inverse_roots(*given[:2])
    degrees = edges(*given[:2]).sum(1)
    assert degrees[ALONE] == 0
    assert np.delete(degrees, ALONE).min() > 0.5
    graph = PairGraph.of(authors().options)

    def conditional(maps, similar, project, expand):
        weights = {"similar": similar, "project": project, "expand": expand}
        u, v = (graph.nodes(weights, x, None) for x in maps)
        return jnp.concatenate(graph.conditional_maps(weights, u, v))

    def loss(*inputs):
        return (weigh * conditional(*inputs)).sum()

    given32 = [np.float32(x) for x in given]
    expected = pair_graph(*given, norm)
    found = jax.jit(conditional)(*given32)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # What nothing joins is not changed: its row of D - A is zero.
    np.testing.assert_allclose(found[ALONE], given[0].reshape(-1, CHANNELS)[ALONE])
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(*given32)
    for place, gradient in enumerate(gradients):

        def reference(value, place=place):
            inputs = [*given[:place], value, *given[place + 1 :]]
            return (weigh * pair_graph(*inputs, norm)).sum()

        wanted = differences(reference, given[place])
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(
            gradient / scale, wanted / scale, atol=1e-5, err_msg=NAMES[place]
        )


# The one encoder.


def test_running_averages_see_the_pairs_twice():
    code, data = make(Patches(), **CODE), batch()
    variables = variables_of(code)
    apply = functools.partial(code.module.apply, variables)
    images = code.standardise(data["image"])
    maps = apply(images, train=False, method="maps")
    nodes = apply(maps, None, method="nodes")
    paired = np.asarray(apply(nodes, method="all_reduced")).reshape(-1, 6)
    places = np.asarray(maps).reshape(len(maps), -1, maps.shape[-1])
    pooled = np.concatenate([places.mean(1), places.max(1)], axis=1)
    alone = pooled @ variables["params"]["encoder"]["reduce"]["kernel"]
    _, new = apply(images, None, train=True, mutable=["batch_stats"])
    running = variables["batch_stats"]["encoder"]["bn"]
    mean, var = running["mean"], running["var"]
    for rows in (alone, paired, paired):
        mean = 0.9 * mean + 0.1 * rows.mean(0)
        var = 0.9 * var + 0.1 * rows.var(0, ddof=1)
    found = new["batch_stats"]["encoder"]["bn"]
    np.testing.assert_allclose(found["mean"], mean, atol=1e-5)
    np.testing.assert_allclose(found["var"], var, rtol=1e-4)
