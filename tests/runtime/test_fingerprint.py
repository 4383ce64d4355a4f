"""What makes two networks one, and what does not."""

import numpy as np
import pytest

from reid_jax.runtime.fingerprint import fingerprint
from reid_jax.runtime.workdir import FREE_FIELDS

CONFIG = {"model.width": 8, "data.height": 64, "data.data_dir": "data", "seed": 0}


def variables(value=1.0, dtype=np.float32, name="kernel"):
    return {"params": {name: np.array([[0, value], [2, 3]], dtype)}}


def test_the_same_network_has_the_same():
    one = fingerprint("method", CONFIG, variables())
    assert len(one) == 16
    assert int(one, 16) >= 0
    elsewhere = CONFIG | {"data.data_dir": "other", "seed": 1, "stages.epochs": 3}
    turned = {"params": {"kernel": variables()["params"]["kernel"].T.copy().T}}
    assert fingerprint("method", elsewhere, turned) == one
    usual = CONFIG | {"data.resize": "bilinear"}  # which older runs do not have
    assert fingerprint("method", usual, variables()) == one
    free = next(name for name in FREE_FIELDS if name.startswith("model."))
    assert fingerprint("method", CONFIG | {free: "other"}, variables()) == one


@pytest.mark.parametrize(
    "changed",
    [
        ("other", CONFIG, variables()),
        ("method", CONFIG | {"model.width": 9}, variables()),
        ("method", CONFIG | {"data.height": 32}, variables()),
        ("method", CONFIG | {"data.resize": "pil-bicubic"}, variables()),
        ("method", CONFIG, variables(np.nextafter(np.float32(1), np.float32(2)))),
        ("method", CONFIG, variables(dtype=np.int32)),
        ("method", CONFIG, variables(name="bias")),
        (
            "method",
            CONFIG,
            variables() | {"batch_stats": {}, "more": {"x": np.ones(1)}},
        ),
    ],
)
def test_another_network_has_another(changed):
    assert fingerprint(*changed) != fingerprint("method", CONFIG, variables())
