"""Graph convolutions against explicit dense Laplacians in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.layers import graph
from reid_jax.layers.graph import Edges

N, M, D = 5, 4, 3


def pair(seed=0):
    """Edges with symmetric blocks, and features of both images."""
    rng = np.random.default_rng(seed)
    own_u, own_v = rng.random((N, N)), rng.random((M, M))
    cross = np.maximum(rng.normal(size=(N, M)), 0)
    edges = Edges(own_u + own_u.T, cross, own_v + own_v.T)
    features = rng.normal(size=(N, D)), rng.normal(size=(M, D))
    return jax.tree.map(np.float32, (edges, *features))


def by_laplacian(edges, u, v, sign, detach=False):
    """I + sign D^-1/2 A D^-1/2 as one dense matrix, times all nodes, in float64.

    With `detach` it is D^-1/2 (D + sign A) D^-1/2, as the authors' code has it.
    """
    adjacency = np.block([[edges.u, edges.cross], [edges.cross.T, edges.v]])
    adjacency = adjacency.astype(np.float64)
    np.testing.assert_allclose(adjacency, adjacency.T, rtol=1e-12)
    degrees = adjacency.sum(1)
    scale = np.diag(np.where(degrees > 1e-3, degrees, 1) ** -0.5)
    own = scale @ np.diag(degrees) @ scale if detach else np.eye(len(adjacency))
    dense = own + sign * scale @ adjacency @ scale
    result = dense @ np.concatenate([u, v]).astype(np.float64)
    return result[: len(u)], result[len(u) :]


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("detach", [True, False])
def test_convolution_is_that_of_the_dense_laplacian(sign, detach):
    edges, u, v = pair()
    edges.u[1] = edges.u[:, 1] = edges.cross[1] = 0  # a place that nothing joins
    expected = by_laplacian(edges, u, v, sign, detach)
    form = {"sign": sign, "detach": detach}
    whole = jax.jit(functools.partial(graph.convolve, **form))(edges, u, v)
    folded = jax.jit(functools.partial(graph.convolve_mean, **form))(edges, u, v)
    for rows, mean, wanted in zip(whole, folded, expected, strict=True):
        np.testing.assert_allclose(rows, wanted, atol=1e-5)
        np.testing.assert_allclose(mean, wanted.mean(0), atol=1e-5)


@pytest.mark.parametrize("function", [graph.convolve, graph.convolve_mean])
def test_exchanging_the_images_exchanges_the_results(function):
    edges, u, v = pair()
    of_u, of_v = function(edges, u, v, sign=-1.0)
    turned = Edges(edges.v, edges.cross.T, edges.u)
    turned_v, turned_u = function(turned, v, u, sign=-1.0)
    np.testing.assert_allclose(turned_u, of_u, atol=1e-6)
    np.testing.assert_allclose(turned_v, of_v, atol=1e-6)


def test_equal_nodes_of_a_regular_graph_have_no_discrepancy():
    # D^1/2 1 is the Laplacian's kernel: constant where all degrees are the same.
    ring = np.float32(np.roll(np.eye(N), 1, 0) + np.roll(np.eye(N), -1, 0))
    edges = Edges(ring, np.eye(N, dtype=np.float32), ring)
    same = np.tile(np.float32([1, -2, 3]), (N, 1))
    for rows in graph.convolve(edges, same, same, sign=-1.0):
        np.testing.assert_allclose(rows, 0, atol=1e-6)
    for rows in graph.convolve(edges, same, same, sign=1.0):
        np.testing.assert_allclose(rows, 2 * same, rtol=1e-6)


def test_places_without_neighbours_stay_as_they_are():
    edges, u, v = pair()
    edges.u[0] = edges.u[:, 0] = edges.cross[0] = 0
    edges.u[0, 0] = 1e-4  # as good as none
    rows, _ = graph.convolve(edges, u, v, sign=-1.0)
    np.testing.assert_allclose(rows[0], u[0], rtol=1e-3)
    expected, _ = by_laplacian(edges, u, v, -1.0)
    np.testing.assert_allclose(rows, expected, atol=1e-5)
    rows, _ = graph.convolve(edges, u, v, sign=-1.0, detach=True)
    np.testing.assert_allclose(rows[0], 0, atol=1e-3)  # the authors' Laplacian
    empty = jax.tree.map(np.zeros_like, edges)
    gradient = jax.jit(
        jax.grad(
            lambda edges, u, v: graph.convolve_mean(edges, u, v, sign=-1.0)[0].sum(),
            argnums=(0, 1, 2),
        )
    )(empty, u, v)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def numerical_gradient(function, values, step=1e-3):
    gradient = np.zeros(values.shape)
    for index in np.ndindex(*values.shape):
        shift = np.zeros(values.shape)
        shift[index] = step
        gradient[index] = (function(values + shift) - function(values - shift)) / (
            2 * step
        )
    return gradient


def test_gradients_are_those_of_finite_differences():
    edges, u, v = pair(1)
    weights = np.random.default_rng(2).normal(size=D)

    def loss(cross, u):
        of_u, of_v = graph.convolve_mean(
            Edges(edges.u, cross, edges.v), u, v, sign=-1.0
        )
        return jnp.sin(of_u) @ weights + of_v @ weights**2

    def reference(cross, u):
        of_u, of_v = by_laplacian(Edges(edges.u, cross, edges.v), u, v, -1.0)
        return np.sin(of_u.mean(0)) @ weights + of_v.mean(0) @ weights**2

    cross = edges.cross + np.float32(0.1)
    found = jax.jit(jax.grad(loss, argnums=(0, 1)))(cross, u)
    wanted = numerical_gradient(lambda x: reference(x, u), np.float64(cross))
    np.testing.assert_allclose(found[0], wanted, atol=1e-4)
    wanted = numerical_gradient(lambda x: reference(cross, x), np.float64(u))
    np.testing.assert_allclose(found[1], wanted, atol=1e-4)


def test_detached_roots_have_no_gradient():
    edges, u, v = pair()

    def mean(scale, detach):
        scaled = jax.tree.map(lambda block: block * scale, edges)
        return graph.convolve_mean(scaled, u, v, sign=-1.0, detach=detach)[0].sum()

    # A common factor of all edges cancels, unless the roots are held fixed.
    free = jax.grad(mean)(1.0, False)
    fixed = jax.grad(mean)(1.0, True)
    np.testing.assert_allclose(free, 0, atol=1e-5)
    expected = by_laplacian(edges, u, v, -1.0, detach=True)[0].mean(0).sum()
    np.testing.assert_allclose(fixed, expected, rtol=1e-4)


def test_similarity_is_the_weighted_cosine():
    _, u, v = pair()
    u[1] = 0  # no direction
    diagonal = np.float32([0.5, -1, 2])
    norms = graph.inverse_norms(u), graph.inverse_norms(v)
    found = graph.similarity(u, v, weights=diagonal, scale_u=norms[0], scale_v=norms[1])
    for i in range(N):
        for j in range(M):
            length = np.linalg.norm(u[i]) * np.linalg.norm(v[j])
            wanted = sum(u[i] * diagonal * v[j]) / length if length else 0
            np.testing.assert_allclose(found[i, j], wanted, atol=1e-6)
    # Accelerators drop digits of float32 factors unless they are told not to.
    assert "HIGHEST" in jax.jit(graph.similarity).lower(u, v).as_text()
    gradient = jax.grad(lambda u: graph.inverse_norms(u).sum())(u)
    assert np.isfinite(gradient).all()
    assert (np.asarray(gradient)[1] == 0).all()


def test_nearest_joins_a_place_with_its_most_similar_from_either_side():
    similarities = np.random.default_rng(0).normal(size=(N, M)).astype(np.float32)
    similarities[2] = similarities[2, 0]  # of equal ones the first
    expected = np.zeros((N, M))
    for i in range(N):
        expected[i, max(range(M), key=lambda j: similarities[i, j])] = 1
    for j in range(M):
        expected[max(range(N), key=lambda i: similarities[i, j]), j] = 1
    np.testing.assert_array_equal(graph.nearest(similarities), expected)


def test_shared_parts_and_matched_mean():
    u = np.array([[1, 1, 0], [0, 1, 0]], np.float32)  # two parts, three places
    v = np.array([[0, 1], [0, 1]], np.float32)
    edges = graph.shared(u, v)
    np.testing.assert_array_equal(edges, [[0, 1], [0, 1], [0, 0]])
    similarities = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert graph.matched_mean(edges, similarities) == 2  # of 1 and 3
    assert graph.matched_mean(0 * edges, similarities) == 0
    gradient = jax.grad(graph.matched_mean)(0 * edges, similarities)
    assert np.isfinite(gradient).all()
