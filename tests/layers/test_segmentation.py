import functools

import numpy as np
import pytest

from reid_jax.layers.segmentation import MaskHead
from tests.variables import random_variables


@pytest.mark.parametrize("train", [False, True])
def test_mask_head_equals_loops(train):
    maps = np.random.default_rng(0).normal(size=(2, 4, 3, 5)).astype(np.float32)
    head = MaskHead(6)
    variables = random_variables(functools.partial(head.init, train=False), maps)
    found, _ = head.apply(variables, maps, train=train, mutable=["batch_stats"])
    params, stats = variables["params"], variables["batch_stats"]["bn"]
    padded = np.pad(maps.astype(np.float64), [(0, 0), (1, 1), (1, 1), (0, 0)])
    hidden = np.zeros((2, 4, 3, 6))
    for row, column in np.ndindex(4, 3):
        window = padded[:, row : row + 3, column : column + 3]
        kernel = params["conv1"]["kernel"]
        hidden[:, row, column] = np.einsum("bijc,ijcd->bd", window, kernel)
    mean, var = stats["mean"], stats["var"]
    if train:
        mean, var = hidden.mean((0, 1, 2)), hidden.var((0, 1, 2))
    hidden = (hidden - mean) / np.sqrt(var + 1e-5) * params["bn"]["scale"]
    hidden = np.maximum(hidden + params["bn"]["bias"], 0)
    last = params["conv2"]
    expected = hidden @ last["kernel"][0, 0, :, 0] + last["bias"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
