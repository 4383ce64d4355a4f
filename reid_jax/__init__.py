"""Person re-identification in JAX: the Python API.

    import reid_jax

    extractor = reid_jax.load("runs/aaformer-demo")
    print(extractor.rank("someone.jpg", "photos", k=10))

Importing this is instant; JAX and the rest are loaded on use. More is in
`docs/python.md`.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from reid_jax import errors
from reid_jax.errors import UserError

if TYPE_CHECKING:
    import jax

    from reid_jax.extractor.extractor import Embedding, Extractor
    from reid_jax.extractor.ranking import Ranking

__all__ = ["Embedding", "Extractor", "Ranking", "UserError", "__version__", "load"]

__version__ = "0.1.0"

_TYPES = {
    "Embedding": "reid_jax.extractor.extractor",
    "Extractor": "reid_jax.extractor.extractor",
    "Ranking": "reid_jax.extractor.ranking",
}
"""What `load` gives, and its module, which imports JAX."""


def __getattr__(name: str) -> Any:
    if name not in _TYPES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_TYPES[name]), name)


def load(
    place: str | os.PathLike[str], *, devices: Sequence[jax.Device] | None = None
) -> Extractor:
    """A trained network, ready to embed, compare and rank images.

    Args:
      place: a run's folder (its best checkpoint), one step of it, or an export, on a
        disk or in a bucket (`gs://BUCKET/FOLDER`), or `shipped/NAME` of weights that
        come with the library. An export needs only JAX, and what reads image files:
        opencv-python-headless, pillow and tqdm.
      devices: to run on; all of this process unless given.

    Raises:
      UserError: if there is no network, or it is damaged; the message says what to do.
    """
    errors.check_own("data_pipelines")
    from reid_jax.extractor import load as loading

    return loading.load(place, devices=devices)
