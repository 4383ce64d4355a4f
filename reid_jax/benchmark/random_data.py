"""Random images, labels and embeddings for a benchmark, on the devices."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.part_labels.kinds import CLASS_NAMES
from reid_jax import experiment
from reid_jax.experiment import Stage
from reid_jax.models.method import Method
from reid_jax.runtime import sharding

CAMERAS = 6
"""As many as Market-1501 has."""


def training_rows(config: Any, method: Method, stage: Stage) -> dict[str, np.ndarray]:
    """A training batch of a stage: `rows` with `identities`."""
    found = rows(config, method, stage.batch_size, method.train_inputs)
    return found | identities(stage)


def rows(
    config: Any, method: Method, count: int, inputs: Iterable[str]
) -> dict[str, np.ndarray]:
    """Random images [count, H, W, 3], cameras, and part labels if they are read."""
    rng = np.random.default_rng(0)
    size = experiment.image_size(config)
    rows = {
        "image": rng.integers(0, 256, (count, *size, 3), np.uint8),
        "camera": rng.integers(0, CAMERAS, count, np.int32),
    }
    if "parts" in inputs:
        classes = len(CLASS_NAMES[method.part_kind])
        rows["parts"] = rng.integers(0, classes, (count, *size), np.uint8)
    return rows


def identities(stage: Stage) -> dict[str, np.ndarray]:
    """Labels of a training batch, P identities x K images."""
    label = np.arange(stage.identities, dtype=np.int32)
    label = label.repeat(stage.images_per_identity)
    index = np.arange(stage.batch_size, dtype=np.int32)
    return {"label": label, "person": label + 1, "index": index}


def put(rows: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """Global rows, of which each process brings its own, on the mesh."""
    index, count = jax.process_index(), jax.process_count()
    return sharding.put_batch(
        {name: np.split(x, count)[index] for name, x in rows.items()}, mesh
    )


def like(
    rng: np.random.Generator, shape: tuple[int, ...], known: jax.ShapeDtypeStruct
) -> np.ndarray:
    """Numbers in [0, 1), true or false, or zeros, by the dtype of `known`."""
    if jnp.issubdtype(known.dtype, jnp.floating):
        return rng.random(shape, np.float32).astype(known.dtype)
    if known.dtype == bool:
        return rng.random(shape) < 0.5
    return np.zeros(shape, known.dtype)
