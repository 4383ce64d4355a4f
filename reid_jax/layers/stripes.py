"""Horizontal stripes of a map."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.errors import UserError


def stripe_borders(rows: int, stripes: int) -> list[int]:
    """The rows between which stripes lie, from 0 to all; equal where possible.

    Borders are rounded towards the top: 16 rows in 6 stripes are 2, 3, 3, 2, 3 and 3.

    Raises:
      UserError: if there are fewer rows than stripes.
    """
    _check(rows, stripes)
    return [rows * i // stripes for i in range(stripes + 1)]


def _check(rows: int, stripes: int) -> None:
    if not 0 < stripes <= rows:
        raise UserError(
            f"a map of {rows} rows cannot be cut into {stripes} stripes: choose fewer "
            "stripes, a larger image_size or a smaller stride"
        )


def stripe_of_rows(rows: int, stripes: int) -> np.ndarray:
    """The stripe of each row, int [rows]; every row is in one.

    Borders between rows are rounded away from the middle: 22 rows in 4 stripes are
    5, 6, 6 and 5 rows, as in CpaCol's code. They are symmetric but for a middle row
    that two stripes would share, which the lower one has.

    Raises:
      UserError: if there are fewer rows than stripes.
    """
    _check(rows, stripes)
    inner = np.arange(1, stripes)
    borders = inner * rows / stripes
    upper = 2 * inner <= stripes
    borders = np.where(upper, np.floor(borders), np.ceil(borders))
    return np.searchsorted(borders, np.arange(rows), side="right")


def stripe_means(maps: jax.Array, stripes: int) -> jax.Array:
    """Means over the places of each stripe, [B, H, W, D] to [B, stripes, D]."""
    member = np.eye(stripes)[stripe_of_rows(maps.shape[1], stripes)]
    weights = jnp.asarray(member / member.sum(0), maps.dtype)
    precise = jax.lax.Precision.HIGHEST
    return jnp.einsum("bhd,hk->bkd", maps.mean(2), weights, precision=precise)


def stripe_positions(grid: tuple[int, int], stripes: int) -> np.ndarray:
    """How far apart the stripes of two places are, as a weight of their similarity.

    Source: CpaCol, section III-C: 1 within a stripe, 0.8 in adjacent ones, 0.6 and 0.4
    farther apart; further stripes go on in steps of 0.2, down to 0.

    Args:
      grid: rows and columns of both images.
      stripes: of each.

    Returns:
      float32 [H, W, H, W].
    """
    stripe = stripe_of_rows(grid[0], stripes)
    weights = 1 - 0.2 * np.abs(stripe[:, None] - stripe[None, :])
    weights = np.maximum(weights, 0).astype(np.float32)
    return np.broadcast_to(weights[:, None, :, None], (*grid, *grid))
