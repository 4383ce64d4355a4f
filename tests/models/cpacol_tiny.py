"""CpaCol small enough to compile in a moment, for its tests."""

import dataclasses
import functools

import jax
import numpy as np

from reid_jax.layers.pixels import standardise
from reid_jax.models import cpacol
from tests.models.steps import training_step
from tests.variables import random_variables

SIZE, GRID, CLASSES = (24, 16), (6, 4), 4
TINY = {"patch_size": 4, "stride": (4, 4), "width": 12, "depth": 3, "heads": 3}
TINY |= {"mlp_ratio": 2, "attention_layers": (1, 2), "residual_weights": (0.5, 0.25)}
TINY |= {"ramp_epochs": 4.0, "stripes": 4, "parts": 3, "drop_path": 0.0}
BLOCKS = ((3, 2, 4), (3, 1, 8))
TINY |= {"correlation_channels": 8, "correlation_blocks": BLOCKS, "pair_block": 8}
EXTRACTOR = {"correlation": False}
SHALLOW = {"depth": 2, "attention_layers": (1,), "residual_weights": (0.5,)}


def make(**fields):
    return cpacol.Method(CLASSES, SIZE, **TINY | fields)


def batch(rows=8, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (rows, *SIZE, 3), dtype=np.uint8),
        "label": np.repeat(np.arange(CLASSES), rows // CLASSES).astype(np.int32),
        "camera": np.arange(rows, dtype=np.int32) % 3,
    }


def variables_of(method, seed=0):
    return random_variables(method.init, batch(), seed=seed)


@functools.cache
def _compiled(options, stage):
    method = cpacol.Method(CLASSES, SIZE, **dataclasses.asdict(options))
    return training_step(method, stage)


def step(method, stage):
    """Loss, metrics, collections and gradients of a batch; compiled once for all."""
    run = _compiled(method.options, stage)

    def at(variables, batch, rng, epoch=30.0):
        return run(variables, batch, rng, epoch)

    return at


def extract(method, variables, images, *, train=False, **further):
    images = standardise(images, (0.5,) * 3, (0.5,) * 3)
    apply = functools.partial(method.module.apply, method="extract", train=train)
    return jax.jit(functools.partial(apply, **further))(variables, images)
