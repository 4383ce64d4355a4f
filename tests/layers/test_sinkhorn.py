import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reid_jax.errors import UserError
from reid_jax.layers.sinkhorn import assign, sinkhorn

plan_of = jax.jit(sinkhorn, static_argnames=("epsilon", "iterations"))


def cosines(shape=(5, 40), seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, shape).astype(np.float32)


def exponential_domain(scores, epsilon, iterations):
    """SwAV's loop in float64: rows (prototypes) to 1/P, then columns to 1/N."""
    plan = np.exp(scores.astype(np.float64) / epsilon)
    plan /= plan.sum()
    parts, patches = plan.shape
    for _ in range(iterations):
        plan /= plan.sum(1, keepdims=True) * parts
        plan /= plan.sum(0, keepdims=True) * patches
    return plan


@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_equals_exponential_domain(iterations):
    scores = cosines()
    plan = plan_of(scores, epsilon=0.05, iterations=iterations)
    expected = exponential_domain(scores, 0.05, iterations)
    np.testing.assert_allclose(plan, expected, rtol=2e-5, atol=1e-9)
    assert plan.dtype == jnp.float32


@pytest.mark.parametrize("iterations", [3, 200])
def test_equals_ott(iterations):
    geometry = pytest.importorskip("ott.geometry.geometry")
    linear_problem = pytest.importorskip("ott.problems.linear.linear_problem")
    solver = pytest.importorskip("ott.solvers.linear.sinkhorn")
    scores = cosines((3, 30), seed=1)
    # ott updates the columns' potential first: it gets the transposed problem.
    problem = linear_problem.LinearProblem(
        geometry.Geometry(cost_matrix=-jnp.asarray(scores.T), epsilon=0.05)
    )
    solve = solver.Sinkhorn(
        min_iterations=iterations, max_iterations=iterations, inner_iterations=1
    )
    expected = jax.jit(lambda problem: solve(problem).matrix)(problem).T
    plan = plan_of(scores, epsilon=0.05, iterations=iterations)
    np.testing.assert_allclose(plan, expected, atol=1e-6)


def test_columns_are_exact_and_rows_converge():
    scores = cosines((2, 4, 5, 40))
    few = plan_of(scores, epsilon=0.05, iterations=3)
    many = plan_of(scores, epsilon=0.05, iterations=300)
    np.testing.assert_allclose(few.sum(-2), 1 / 40, rtol=1e-5)
    np.testing.assert_allclose(many.sum(-1), 1 / 5, rtol=1e-3)
    assert 0.01 < np.abs(few.sum(-1) - 1 / 5).max() < 0.2


@pytest.mark.parametrize("size", [1e4, 1e30, 3e38])
def test_huge_scores_stay_finite(size):
    plan = np.asarray(plan_of(np.float32(size) * cosines(), epsilon=0.05, iterations=3))
    assert np.isfinite(plan).all()
    np.testing.assert_allclose(plan.sum(0), 1 / 40, rtol=1e-5)


def test_equal_scores_spread_evenly():
    plan = plan_of(np.zeros((4, 6), np.float32), epsilon=0.05, iterations=3)
    np.testing.assert_allclose(plan, 1 / 24, rtol=1e-6)


def test_permutation_equivariance():
    scores = cosines()
    rng = np.random.default_rng(2)
    rows, columns = rng.permutation(5), rng.permutation(40)
    solve = functools.partial(plan_of, epsilon=0.05, iterations=3)
    permuted = solve(scores[rows][:, columns])
    np.testing.assert_allclose(permuted, solve(scores)[rows][:, columns], rtol=1e-5)


def test_balance_where_the_nearest_neighbour_collapses():
    scores = cosines()
    scores[0] += 3  # every patch is nearest to the first part
    assert assign(scores)[0].all()
    counts = assign(plan_of(scores, epsilon=0.05, iterations=3)).sum(1)
    assert counts.min() >= 4


@pytest.mark.parametrize("mistake", [{"epsilon": 0.0}, {"iterations": 0}])
def test_settings_without_meaning(mistake):
    with pytest.raises(UserError, match="Sinkhorn iterations"):
        sinkhorn(cosines(), **mistake)


def test_no_gradient():
    gradient = jax.grad(lambda s: sinkhorn(s).max())(cosines())
    assert not np.asarray(gradient).any()


def test_assignment_is_one_hot_and_the_first_of_equals_wins():
    scores = np.array([[1, 0, 2], [1, 3, 2], [0, 3, 1]], np.float32)
    expected = [[1, 0, 1], [0, 1, 0], [0, 0, 0]]
    np.testing.assert_array_equal(assign(scores), np.array(expected, bool))
