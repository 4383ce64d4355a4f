"""Losses within groups of rows, as runs on several GPUs compute them."""

from __future__ import annotations

import jax

from reid_jax.errors import UserError


def in_groups(rows: jax.Array, groups: int) -> jax.Array:
    """Cuts a batch's rows into consecutive groups: [B, ...] to [groups, B/groups, ...].

    Batches are identity-major, so that identities are not torn apart where the groups
    divide their number; that none lacks pairs in its group, the training sees to.

    Raises:
      UserError: if the groups would not be equal.
    """
    if len(rows) % groups:
        raise UserError(
            f"mining_groups={groups} does not divide the batch of {len(rows)} images: "
            "choose a batch size that is a multiple of it, or mining_groups=1"
        )
    return rows.reshape(groups, -1, *rows.shape[1:])
