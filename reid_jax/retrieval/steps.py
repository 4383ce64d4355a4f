"""The steps of re-ranking, by name, and the options of each."""

from __future__ import annotations

from reid_jax.retrieval.expansion import Expansion
from reid_jax.retrieval.k_reciprocal import KReciprocal

STEPS: dict[str, type | None] = {
    "flip": None,
    "database_augmentation": Expansion,
    "query_expansion": Expansion,
    "k_reciprocal": KReciprocal,
}
"""Dataclasses of options; None for a step that has none."""
