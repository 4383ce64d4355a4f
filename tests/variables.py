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
