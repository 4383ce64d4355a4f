"""Weights and images that the golden vectors were made with, without storing them.

Every tensor is drawn from NumPy's frozen legacy generator, seeded by its PyTorch name,
so that the script with PyTorch and the tests without it see the same network.
"""

import zlib

import numpy as np


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor of this name in a PyTorch state dict, in PyTorch's layout."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "running_var":
        values = 1 + 0.3 * np.abs(values)
    elif leaf == "weight" and len(shape) == 1:
        values = 1 + 0.2 * values
    elif leaf == "weight":
        # Keeps a signal's size through a layer and the ReLU after it.
        values *= (2 / np.prod(shape[1:])) ** 0.5
    else:
        values *= 0.2
    return values.astype(np.float32)


def images(height: int, width: int, batch: int = 2) -> np.ndarray:
    """Standardised images [B, H, W, 3]."""
    shape = (batch, height, width, 3)
    return np.random.RandomState(0).standard_normal(shape).astype(np.float32)
