"""The steps of re-ranking, by name, and the options of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from reid_jax.retrieval.expansion import Expansion
from reid_jax.retrieval.k_reciprocal import KReciprocal

STEPS: dict[str, type | None] = {
    "flip": None,
    "database_augmentation": Expansion,
    "query_expansion": Expansion,
    "k_reciprocal": KReciprocal,
}
"""Dataclasses of options; None for a step that has none."""


def fields_of(rerank: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Steps of a re-ranking with their options, as entries of results have them."""
    return {
        step: dataclasses.asdict(options) if options else {}
        for step, options in rerank.items()
    }
