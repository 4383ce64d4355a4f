"""How Embeddings lie in a collection, and what a gallery knows of its network."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reid_jax.errors import UserError

Embedding = Mapping[str, np.ndarray]
"""Arrays by name, the images' axis leading; see `reid_jax.models.method`."""

Row = dict[str, Any]
"""An entry of the collection: fields by name."""

FIELDS = ("id", "path", "content", "person", "camera", "time", "added")
"""What every entry has beside its embedding, all as text; `id` and `content` are
digests of the path and of what lies there, `time` and `added` are UTC, such as
2026-11-29T13:04:38Z. Person, camera and time may be missing."""

ANSWERS = ("query", "rank", "distance", "mark")
"""What an answer says of an entry beside its fields; no column has such a name."""

_PREFIX = "embedding_"
_SMALL = 64
"""Arrays of at most so many numbers an image are no vectors for the engine."""


@dataclasses.dataclass(frozen=True)
class About:
    """What a gallery remembers.

    Attributes:
      fingerprint: of the network, see `reid_jax.runtime.fingerprint`.
      method: dotted name of the paper's module.
      model: where the network was, for queries by image; "" if that is not known.
      image_size: height and width that it takes.
      arrays: name -> (dtype, *shape without the images' axis) of its Embeddings.
      columns: further columns and their kinds: text, whole, number or truth.
    """

    fingerprint: str
    method: str
    model: str
    image_size: tuple[int, int]
    arrays: Mapping[str, tuple[str, tuple[int, ...]]]
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def text(self) -> str:
        """As the collection keeps it."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def read(cls, text: str) -> About:
        """What `text` wrote."""
        fields = json.loads(text)
        arrays = {k: (dtype, tuple(s)) for k, (dtype, s) in fields["arrays"].items()}
        size = tuple(fields["image_size"])
        return cls(**fields | {"arrays": arrays, "image_size": size})

    @property
    def anchor(self) -> str:
        """The array by whose cosine candidates are found."""
        return "vector" if "vector" in self.arrays else "parts"

    @property
    def numbers(self) -> int:
        """Numbers of one image's Embedding."""
        return sum(math.prod(shape) for _, shape in self.arrays.values())

    def check(self, embedding: Embedding, what: str) -> None:
        """Raises UserError for an Embedding of another network."""
        found = described(embedding)
        if found != self.arrays:
            raise UserError(
                f"{what} has arrays {_shapes(found)}, the gallery "
                f"{_shapes(self.arrays)}"
            )


def described(embedding: Embedding) -> dict[str, tuple[str, tuple[int, ...]]]:
    """`About.arrays` of an Embedding."""
    return {
        name: (str(array.dtype), tuple(array.shape[1:]))
        for name, array in sorted(embedding.items())
    }


def _shapes(arrays: Mapping[str, tuple[str, tuple[int, ...]]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, (_, shape) in arrays.items())


def field(name: str) -> str:
    """The field of an array."""
    return _PREFIX + name


def kept(value: Any) -> Any:
    """A fact as it is; None for a number that is not finite, as JSON has no such."""
    is_missing = isinstance(value, float) and not math.isfinite(value)
    return None if is_missing else value


def is_vector(shape: Sequence[int]) -> bool:
    """Whether an array of this shape is stored as a vector of the engine's."""
    return math.prod(shape) > _SMALL


def encoded(about: About, embedding: Embedding) -> list[Row]:
    """The fields of each image's Embedding."""
    flat = {
        field(name): _flat(embedding, name).astype(np.float32) for name in about.arrays
    }
    count = len(embedding[about.anchor])
    return [{name: array[i] for name, array in flat.items()} for i in range(count)]


def decoded(about: About, rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """The Embedding of entries."""
    return {
        name: np.asarray([row[field(name)] for row in rows], np.float32)
        .reshape(len(rows), *shape)
        .astype(dtype)
        for name, (dtype, shape) in about.arrays.items()
    }


def anchors(about: About, embedding: Embedding) -> np.ndarray:
    """What candidates are found by, float32 [N, D]."""
    return _flat(embedding, about.anchor).astype(np.float32)


def _flat(embedding: Embedding, name: str) -> np.ndarray:
    """An array as [N, numbers]; parts that are not visible are zeros.

    No distance looks at those, and so the cosine of concatenated parts is that of the
    parts which both images show.
    """
    array = np.asarray(embedding[name])
    if name == "parts" and "visibility" in embedding:
        array = array * (np.asarray(embedding["visibility"]) > 0)[..., None]
    return array.reshape(len(array), math.prod(array.shape[1:]))
