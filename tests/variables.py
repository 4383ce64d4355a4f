"""Variables for tests, without compiling a random initialisation."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


def random_variables(
    init: Callable[..., Any], *args: Any, seed: int = 0, scale: float = 0.2
) -> Mapping[str, Any]:
    """Fills what `init(key, *args)` would return: normal numbers, variances near 1."""
    rng = np.random.default_rng(seed)

    def fill(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path[-1].key
        values = rng.normal(0, scale, leaf.shape)
        if name == "var":
            values = 1 + np.abs(values)
        elif name == "scale":
            values = 1 + values
        return values.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(
        fill, jax.eval_shape(init, jax.random.key(0), *args)
    )


def as_a_run_begins(variables: Mapping[str, Any]) -> dict[str, Any]:
    """With running means of 0. Batch statistics are sums of distances from them: random
    ones, far from the batch of a tiny network, cost digits that comparisons are about.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, x: 0 * x if getattr(path[-1], "key", "") == "mean" else x,
        dict(variables),
    )
