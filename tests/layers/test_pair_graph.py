"""What the graph of a pair promises, whatever the network around it."""

import functools

import jax
import numpy as np
import pytest

from reid_jax.layers.pair_graph import PairGraph

GRID, CHANNELS, WIDTH, PARTS = (3, 2), 8, 4, 3
PLACES = GRID[0] * GRID[1]
PAPER = {
    "graph": "discrepancy",
    "align": "correspondence",
    "start": "ones",
    "centred": False,
    "threshold": 0.0,
    "adjacency": "diagonal",
    "update": "linear",
    "pool": "avg",
}


def graph_of(**fields):
    return PairGraph(**PAPER | fields)


VARIANTS = {
    "paper": graph_of(),
    "normal": graph_of(graph="normal"),
    "individual": graph_of(graph="individual"),
    "part": graph_of(align="part"),
    "similarity": graph_of(align="similarity"),
    "full": graph_of(align="full"),
    "semantic": graph_of(align="semantic"),
    "centred": graph_of(centred=True, threshold=0.1),
    "residual": graph_of(adjacency="embedded", update="residual"),
}


def weights_of(graph, seed=0):
    rng = np.random.default_rng(seed)
    weights = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, (_, shape) in graph.shapes(CHANNELS, WIDTH).items()
    }
    for name in {"intra", "inter"} & weights.keys():
        weights[name] = 1 + 0.1 * weights[name]
    return weights


def images(count=2, seed=1):
    """Maps like those of a network, not negative, and places of parts."""
    rng = np.random.default_rng(seed)
    maps = np.maximum(rng.normal(size=(count, *GRID, CHANNELS)), 0)
    return maps.astype(np.float32), rng.random((count, PARTS, PLACES)) < 0.3


def nodes_of(graph, weights, maps, parts):
    nodes = functools.partial(graph.nodes, weights)
    return jax.jit(jax.vmap(nodes))(maps, parts)


@functools.cache
def results(variant):
    """Pooled vectors, folded and from full maps, of (u, v), (v, u) and (u, u)."""
    graph = VARIANTS[variant]
    weights = weights_of(graph)

    @jax.jit
    def run(maps, parts):
        nodes = nodes_of(graph, weights, maps, parts)
        u, v = (jax.tree.map(lambda x, i=i: x[i], nodes) for i in (0, 1))
        return [
            (graph.pooled(weights, *pair), graph.conditional_maps(weights, *pair))
            for pair in ((u, v), (v, u), (u, u))
        ]

    return jax.tree.map(np.asarray, run(*images()))


@pytest.mark.parametrize("variant", VARIANTS)
def test_folding_and_symmetry(variant):
    for vectors, maps in results(variant):
        for vector, places in zip(vectors, maps, strict=True):
            np.testing.assert_allclose(places.mean(0), vector, atol=1e-5)
    assert np.abs(results(variant)[0][1]).max() > 0.1
    (of_u, of_v), _ = results(variant)[0]
    (turned_v, turned_u), _ = results(variant)[1]
    np.testing.assert_allclose(turned_u, of_u, atol=1e-5)
    np.testing.assert_allclose(turned_v, of_v, atol=1e-5)
    (self_u, self_v), _ = results(variant)[2]
    np.testing.assert_allclose(self_u, self_v, atol=1e-5)


POSITIVE = images()[0] + np.float32(0.05)
"""Maps that all channels see everywhere."""

ATTENTIONS = {
    "ones": {},
    "normal": {"start": "normal"},
    "threshold": {"threshold": 0.4},
    "centred": {"centred": True},
    "all three": {"start": "normal", "centred": True, "threshold": 0.02},
}


@functools.cache
def attention(name):
    """W and W' at their start, and the edges of a pair."""
    graph = graph_of(**ATTENTIONS[name])
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = graph.shapes(CHANNELS, WIDTH).items()
    weights = {
        n: start(k, size) for k, (n, (start, size)) in zip(keys, shapes, strict=True)
    }

    @jax.jit
    def run(maps):
        nodes = nodes_of(graph, weights, maps, None)
        u, v = (jax.tree.map(lambda x, i=i: x[i], nodes) for i in (0, 1))
        return graph.edges(weights, u, v)

    return weights, run(POSITIVE)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_correspondence_attention_by_loops(name):
    weights, edges = attention(name)
    fields = PAPER | ATTENTIONS[name]
    u, v = POSITIVE.reshape(2, PLACES, CHANNELS).astype(np.float64)
    if fields["centred"]:
        u, v = u - u.mean(0), v - v.mean(0)
    for block, one, other, diagonal in (
        (edges.u, u, u, weights["intra"]),  # Eq. 2
        (edges.cross, u, v, weights["inter"]),  # Eq. 3
        (edges.v, v, v, weights["intra"]),
    ):
        for i in range(PLACES):
            for j in range(PLACES):
                length = np.linalg.norm(one[i]) * np.linalg.norm(other[j])
                importance = sum(one[i] * diagonal * other[j]) / length
                wanted = max(importance - fields["threshold"], 0)  # Eq. 4
                np.testing.assert_allclose(block[i, j], wanted, atol=1e-5)


def test_without_negative_products_nothing_is_cut():
    cut = {name: float((attention(name)[1].cross == 0).mean()) for name in ATTENTIONS}
    assert cut["ones"] == 0
    assert all(cut[name] > 0 for name in ATTENTIONS if name != "ones")
    assert max(cut["threshold"], cut["centred"], cut["all three"]) < 1
    signs = {name: {*np.sign(attention(name)[0]["inter"])} for name in ATTENTIONS}
    assert signs["centred"] == {1}
    assert signs["normal"] == {-1, 1}


def test_a_pair_with_itself_has_no_discrepancy_at_equal_places():
    for variant in ("part", "similarity"):  # a place is most like itself
        vectors, maps = results(variant)[2]
        assert np.abs(vectors).max() < 1e-6
        assert np.abs(maps).max() < 1e-6
    vectors, maps = results("full")[2]  # each place differs from the mean, not all
    assert np.abs(vectors).max() < 1e-5
    assert np.abs(maps).max() > 0.1


def test_part_and_full_leave_the_difference_of_means():
    maps, _ = images()
    means = maps.reshape(2, PLACES, -1).mean(1)
    for variant, share in (("part", 1.0), ("full", 0.5)):
        theta = weights_of(VARIANTS[variant])["theta"]
        (of_u, of_v), _ = results(variant)[0]
        wanted = share * (means[0] - means[1]) @ theta
        np.testing.assert_allclose(of_u, wanted, atol=1e-5)
        np.testing.assert_allclose(of_v, -wanted, atol=1e-5)


def test_a_uniform_image_has_no_discrepancy_with_itself():
    graph = VARIANTS["paper"]
    weights = weights_of(graph)
    uniform = np.broadcast_to(images()[0][:1, :1, :1], (1, *GRID, CHANNELS))
    nodes = nodes_of(graph, weights, uniform, None)
    u = jax.tree.map(lambda x: x[0], nodes)
    for places in graph.conditional_maps(weights, u, u):
        np.testing.assert_allclose(places, 0, atol=1e-5)


def test_a_common_factor_of_all_edges_matters_to_the_authors_gradient_only():
    maps, _ = images()

    def total(factor, variant):
        graph = VARIANTS[variant]
        weights = weights_of(graph)
        nodes = dict(nodes_of(graph, weights, maps, None))
        nodes["own"] *= factor
        if variant == "residual":
            nodes["similar"] *= factor**0.5
        else:
            weights["inter"] = weights["inter"] * factor
        u, v = (jax.tree.map(lambda x, i=i: x[i], nodes) for i in (0, 1))
        return graph.pooled(weights, u, v)[0].sum()

    for variant in ("paper", "residual"):
        run = jax.jit(jax.value_and_grad(functools.partial(total, variant=variant)))
        value, slope = run(1.0)
        np.testing.assert_allclose(run(2.0)[0], value, rtol=1e-4)
        assert (abs(slope) > 0.1) == (variant == "residual")


def test_an_expansion_of_zeros_leaves_the_map_as_it_was():
    graph = VARIANTS["residual"]
    weights = weights_of(graph) | {"expand": np.zeros((WIDTH, CHANNELS), np.float32)}
    maps, _ = images()
    nodes = nodes_of(graph, weights, maps, None)
    u, v = (jax.tree.map(lambda x, i=i: x[i], nodes) for i in (0, 1))
    for places, wanted in zip(graph.conditional_maps(weights, u, v), maps, strict=True):
        np.testing.assert_allclose(places, wanted.reshape(PLACES, -1), atol=1e-6)


def test_an_image_without_features_is_finite():
    maps, _ = images()
    maps[1, 0] = 0  # places that no channel sees
    for variant in ("paper", "centred", "residual", "similarity"):
        graph = VARIANTS[variant]

        def total(maps, weights, graph=graph):
            nodes = nodes_of(graph, weights, maps, None)
            u, v = (jax.tree.map(lambda x, i=i: x[i], nodes) for i in (0, 1))
            return sum(x.sum() for x in graph.pooled(weights, u, v))

        gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(maps, weights_of(graph))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_alignment_is_the_weighted_mean_cosine():
    graph = graph_of(graph="none")
    weights, (maps, _) = weights_of(graph), images()
    nodes = nodes_of(graph, weights, maps, None)
    u, v = (jax.tree.map(lambda x, i=i: x[i], nodes) for i in (0, 1))
    total = weight = 0.0
    for x in maps[0].reshape(PLACES, -1).astype(np.float64):
        for y in maps[1].reshape(PLACES, -1).astype(np.float64):
            length = np.linalg.norm(x) * np.linalg.norm(y)
            edge = max((x * weights["inter"]) @ y / length, 0)
            total, weight = total + edge * (x @ y) / length, weight + edge
    for gap in graph.alignment(weights, u, v):
        np.testing.assert_allclose(gap, 1 - total / weight, rtol=1e-5)
