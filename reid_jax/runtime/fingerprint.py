"""What tells a network from another: embeddings of two networks cannot be compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from data_pipelines.images import BILINEAR
from reid_jax.runtime.workdir import FREE_FIELDS

_FIELDS = ("model.", "data.height", "data.width")


def fingerprint(method: str, config: Mapping[str, Any], variables: Any) -> str:
    """16 hexadecimal digits of a network and of how it is run.

    A run, its checkpoint and its export have the same.

    Args:
      method: dotted name of its module.
      config: fields by dotted name; those of the network, of the image size and of how
        images are resized count.
      variables: its collections.
    """
    fields = {
        name: value
        for name, value in config.items()
        if name.startswith(_FIELDS) and name not in FREE_FIELDS
    }
    resize = config.get("data.resize", BILINEAR)
    if resize != BILINEAR:  # which has no part in it, as in older versions
        fields["data.resize"] = resize
    digest = hashlib.sha256(json.dumps([method, fields], sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(dict(variables)):
        array = np.asarray(leaf)
        digest.update(
            f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode()
        )
        digest.update(np.ascontiguousarray(array).view(np.uint8))
    return digest.hexdigest()[:16]
