"""Part labels as masks of groups of part classes, at the size of a feature map."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.errors import UserError


def label_tables(groups: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """What a part class says about K groups, and about their union.

    Args:
      groups: part classes of each group; the first that names a class has it.

    Returns:
      bool [256, K + 1]: whether a class belongs to each group, and to any; and bool
      [256]: whether that is known. A class that no group names is not: it may be
      unlabelled (255), or neither a part nor background (0).

    Raises:
      UserError: for no groups, an empty one, or classes out of range.
    """
    if not groups or any(not g or min(g) < 1 or max(g) > 254 for g in groups):
        raise UserError(
            f"part_groups={tuple(map(tuple, groups))} must name at least one part, and "
            "each at least one part class from 1 to 254"
        )
    table, known = np.zeros((256, len(groups) + 1), bool), np.zeros(256, bool)
    for group, classes in enumerate(groups):
        free = [c for c in classes if not known[c]]
        table[free, group] = table[free, -1] = known[free] = True
    known[0] = True
    return table, known


def nearest_labels(labels: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Labels [B, H, W] at the places nearest to the centres of a map of `size`."""
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new)
        for new, old in zip(size, labels.shape[1:], strict=True)
    )
    return labels[:, rows[:, None], columns]


def group_masks(
    labels: jax.Array, tables: tuple[np.ndarray, np.ndarray], size: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
    """Masks of K groups and of their union at the places of a map.

    Args:
      labels: uint8 [B, H, W], part classes.
      tables: of `label_tables`.
      size: height and width of the map.

    Returns:
      bool [B, K + 1, h, w]; and bool [B, h, w], where the label is known.
    """
    nearest = nearest_labels(labels, size)
    groups, known = map(jnp.asarray, tables)
    return jnp.moveaxis(groups[nearest], -1, 1), known[nearest]
