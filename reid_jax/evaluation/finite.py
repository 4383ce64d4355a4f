"""What is ranked or exported has to be finite.

A comparison with NaN is false, so that a part which is NaN counts as hidden, and a ReLU
may turn NaN into 0: a broken network can look like a poor one.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from data_pipelines.records import Records
from reid_jax.errors import UserError
from reid_jax.models.method import Embedding, Variables

_SHOWN = 5


def check_variables(variables: Variables) -> None:
    """Raises UserError if an array of the network is not finite; names it."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    wrong = [
        f"{jax.tree_util.keystr(path, simple=True, separator='/')} ({bad} of {x.size})"
        for path, x in leaves
        if (bad := _not_finite(x))
    ]
    if wrong:
        raise UserError(
            f"the network has values that are not finite: {_listed(wrong)}. Take an "
            "earlier checkpoint (--checkpoint), or train again with a lower learning "
            "rate"
        )


def check_embedding(embedding: Embedding, records: Records, what: str) -> None:
    """Raises UserError if embeddings [N, ...] of a split are not finite.

    Args:
      embedding: on the host.
      records: the split; its images are named.
      what: it is called.
    """
    for name, x in embedding.items():
        rows = np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(axis=1))
        if len(rows):
            images = _listed([records.filename(row) for row in rows])
            raise UserError(
                f"`{name}` of {len(rows)} of {len(records)} {what} images is not "
                f"finite: {images}. Check these images and the checkpoint"
            )


def check_distances(finite: np.ndarray, rows: np.ndarray, query: Records) -> None:
    """Raises UserError for queries whose distances are not finite.

    Args:
      finite: bool [q].
      rows: int [q], the queries in `query`.
      query: the split; its images are named.
    """
    wrong = rows[~finite]
    if len(wrong):
        images = _listed([query.filename(row) for row in wrong])
        raise UserError(
            f"the distances of {len(wrong)} queries are not finite: {images}. Their "
            "embeddings, or some of the gallery's, are out of all proportion: check "
            "the checkpoint"
        )


def _not_finite(x: jax.Array) -> int:
    return int((~np.isfinite(np.asarray(x))).sum())


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
