"""Maps of gallery images in fewer bytes than they are computed in.

What two images are compared by is stored for every candidate (`rescoring.MapStore`);
half precision halves the disk, and the time it takes to read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp

DTYPES = ("float32", "float16", "bfloat16")
"""What maps may be stored in."""


def packed(maps: Any, dtype: str) -> Any:
    """A pytree of float arrays in the `dtype` they are stored in, one of `DTYPES`."""
    return jax.tree.map(lambda x: x.astype(jnp.dtype(dtype)), maps)


def unpacked(
    maps: Mapping[str, jax.Array], dtype: str, *, wide: Collection[str] = ()
) -> dict[str, jax.Array]:
    """Stored arrays by name in the dtype that a network computes in.

    Args:
      maps: from `packed`.
      dtype: of the network.
      wide: names of those that are float32 whatever the network's dtype.
    """
    return {
        name: jnp.asarray(x).astype(jnp.float32 if name in wide else jnp.dtype(dtype))
        for name, x in maps.items()
    }
