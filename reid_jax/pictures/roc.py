"""A receiver operating characteristic as PNG."""

from __future__ import annotations

import io
import os

import numpy as np

from reid_jax import storage

_LEAST = 1e-6
"""False positive rate at the left border."""


def draw_roc(
    path: str | os.PathLike[str], fpr: np.ndarray, tpr: np.ndarray, *, title: str
) -> None:
    """Draws true over false positive rates, these on a logarithmic axis.

    Args:
      path: of the PNG.
      fpr, tpr: float [n], ascending, from the strictest threshold to the loosest.
      title: above it.
    """
    from matplotlib.figure import Figure  # slow to import, and only needed here

    figure = Figure((6, 4.5), layout="constrained")
    axes = figure.subplots()
    # Between two thresholds a rate of false positives has what the stricter one gives.
    axes.step(np.maximum(fpr, _LEAST), tpr, where="post")
    axes.set(
        xscale="log",
        xlim=(_LEAST, 1),
        ylim=(0, 1.01),
        xlabel="false positive rate (pairs of different persons accepted)",
        ylabel="true positive rate (pairs of one person accepted)",
        title=title,
    )
    axes.grid(alpha=0.4)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    storage.write_bytes(path, file.getvalue())
