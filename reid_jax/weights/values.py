"""Whether numbers can be a trained network's."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from reid_jax.errors import UserError

MOST = 1e6
"""Of a parameter or a mean, in magnitude; its square is the most of a variance.

A trained network's parameters are below a hundred, and batch norm behind images of 0 to
255 has variances up to some 1e6. One wrong bit of a float32's exponent multiplies by
2**64, 2**32, ... 2: most of those are found.
"""

SHOWN = 6


def check(
    path: os.PathLike[str], arrays: Mapping[str, np.ndarray], names: Mapping[str, str]
) -> None:
    """Does nothing for numbers that are finite and in proportion.

    Args:
      path: the file, for the message.
      arrays: by our path.
      names: what the file calls them, by our path.

    Raises:
      UserError: names the arrays and what is wrong with them.
    """
    wrong = [
        f"  {names[own]}: {fault}"
        for own, array in arrays.items()
        if (fault := _fault(array, variance=_is_variance(own)))
    ]
    if not wrong:
        return
    more = [f"  and {len(wrong) - SHOWN} more arrays"] if len(wrong) > SHOWN else []
    raise UserError(
        "\n".join(
            [
                f"{path} holds numbers that no trained network has:",
                *wrong[:SHOWN],
                *more,
                "It is damaged, or was saved when its training had diverged: get it "
                "again, or take an earlier one.",
            ]
        )
    )


def _is_variance(path: str) -> bool:
    return path.startswith("batch_stats/") and path.endswith("/var")


def _fault(array: np.ndarray, *, variance: bool) -> str | None:
    """What is wrong with an array; None if nothing is."""
    if not array.size:
        return None
    if array.dtype.itemsize < 4:  # half precision, to compute in
        array = array.astype(np.float32)
    low, high = float(array.min()), float(array.max())
    most = MOST**2 if variance else MOST
    if not np.isfinite([low, high]).all():
        count = array.size - int(np.isfinite(array).sum())
        return f"{count:,} of {array.size:,} numbers are infinite or NaN"
    if max(-low, high) > most:
        return f"a number of {low if -low > high else high:g}; {most:g} is the limit"
    if variance and low < 0:
        return f"a variance of {low:g}"
    return None
