"""Balanced assignment by entropic optimal transport, in the log domain.

Source: Cuturi, "Sinkhorn Distances", 2013; in the order of steps of SwAV (Caron et
al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments",
2020), which AAformer builds on.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from reid_jax.errors import UserError

_FLOOR = -1e30
"""Least logarithm of a weight: keeps huge scores finite, exp(_FLOOR) is 0."""


def sinkhorn(
    scores: jax.Array, *, epsilon: float = 0.05, iterations: int = 3
) -> jax.Array:
    """The transport plan between P parts and N patches of equal weight.

    Maximises <plan, scores> + epsilon * entropy(plan) over the plans whose rows sum
    to 1/P and whose columns sum to 1/N (AAformer, Eqs 3-5). Each iteration scales
    the rows and then the columns, so that after any number of iterations the columns
    are exact and the rows approximate. Finite for scores of any finite size.

    Args:
      scores: [..., P, N] similarities.
      epsilon: weight of the entropy; smaller is sharper.
      iterations: number of row-and-column scalings.

    Returns:
      float32 [..., P, N]. No gradient flows through it.
    """
    if epsilon <= 0 or iterations < 1:
        raise UserError(
            f"epsilon={epsilon} and {iterations} Sinkhorn iterations: the first must "
            "be above 0, the second at least 1"
        )
    scores = jax.lax.stop_gradient(scores.astype(jnp.float32))
    # The first scaling of the rows takes a constant per row out again. (One per column
    # would survive a finite number of iterations.)
    logits = (scores - scores.max(-1, keepdims=True)) / epsilon

    def scale(log_plan: jax.Array, _: None) -> tuple[jax.Array, None]:
        log_plan = jax.nn.log_softmax(log_plan, axis=-1)
        return jax.nn.log_softmax(log_plan, axis=-2), None

    start = jnp.maximum(logits, _FLOOR)
    log_plan, _ = jax.lax.scan(scale, start, length=iterations)
    # Rows and columns were scaled to 1, not to 1/P and 1/N: what that leaves out is
    # a constant, which the next scaling takes out again, up to the last.
    return jnp.exp(log_plan) / scores.shape[-1]


def assign(scores: jax.Array) -> jax.Array:
    """Gives each patch to the one part that scores highest for it.

    Args:
      scores: [..., P, N], a plan or plain similarities.

    Returns:
      bool [..., P, N] with one True per column; of equal scores the first wins.
    """
    best = jnp.argmax(scores, axis=-2, keepdims=True)
    parts = jnp.arange(scores.shape[-2])[:, None]
    return best == parts
