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


def peers_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """`tensor` for trained networks: their necks have no bias, and pooling a power.

    Non-local blocks multiply what they read, and so add little of it here.
    """
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith("pool_layer.p"):
        return np.full(shape, 2.5, np.float32)
    if "bottleneck" in name and name.endswith("bias"):
        return np.zeros(shape, np.float32)
    if "NL_" in name and name.endswith("weight"):
        return np.float32(0.2) * tensor(name, shape)
    return tensor(name, shape)


def pictures(count: int = 8) -> np.ndarray:
    """Images of Market-1501's size, uint8 [B, 128, 64, 3], smooth with noise on top."""
    random = np.random.RandomState(3)
    corners = random.uniform(30, 225, (2, 2, count, 1, 1, 3))
    row = np.linspace(0, 1, 128).reshape(1, 128, 1, 1)
    column = np.linspace(0, 1, 64).reshape(1, 1, 64, 1)
    upper = corners[0, 0] * (1 - column) + corners[0, 1] * column
    lower = corners[1, 0] * (1 - column) + corners[1, 1] * column
    smooth = upper * (1 - row) + lower * row
    return np.clip(smooth + random.normal(0, 25, smooth.shape), 0, 255).astype(np.uint8)


def images(height: int, width: int, batch: int = 2) -> np.ndarray:
    """Standardised images [B, H, W, 3]."""
    shape = (batch, height, width, 3)
    return np.random.RandomState(0).standard_normal(shape).astype(np.float32)
