"""What a collection in Milvus is made of: its fields and its indexes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from reid_jax.search import layout
from reid_jax.search.layout import About

if TYPE_CHECKING:
    from pymilvus import MilvusClient

INDEXES: dict[str, dict[str, Any]] = {
    "FLAT": {},
    "HNSW": {"M": 32, "efConstruction": 200},
    "IVF_FLAT": {"nlist": 128},
}
"""Kinds of index and how they are built. FLAT compares with every vector: exact."""

NPROBE = 16
"""Lists that IVF looks through."""

_A_LIST = 39
"""Entries that FAISS wants for each list of IVF at least."""

LONGEST, LONGEST_PATH = 1024, 8192
"""Bytes that a text may have, and a path."""


def ef(count: int) -> int:
    """Entries that HNSW keeps in sight for so many to be found."""
    return max(128, 2 * count)


def add_index(params: Any, field: str, index: str, *, rows: int | None = None) -> None:
    """Adds an index to `params`, of a collection with so many `rows`, if known."""
    options = dict(INDEXES[index])
    if rows is not None and "nlist" in options:
        options["nlist"] = max(1, min(options["nlist"], rows // _A_LIST))
    # Milvus Lite looks for them under the very name, which the client takes away once.
    nested = {"params": options} if options else {}
    params.add_index(field, index_type=index, metric_type="COSINE", params=nested)


def schema(client: MilvusClient, about: About) -> Any:
    """The fields of a gallery of `about`."""
    from pymilvus import DataType

    fields = client.create_schema(auto_id=False, enable_dynamic_field=False)
    text = {"datatype": DataType.VARCHAR, "max_length": LONGEST}
    fields.add_field("id", **text, is_primary=True)
    fields.add_field("path", DataType.VARCHAR, max_length=LONGEST_PATH)
    for name in ("content", "added"):
        fields.add_field(name, **text)
    for name in ("person", "camera", "time"):
        fields.add_field(name, **text, nullable=True)
    kinds = {
        "text": text,
        "whole": {"datatype": DataType.INT64},
        "number": {"datatype": DataType.DOUBLE},
        "truth": {"datatype": DataType.BOOL},
    }
    for name, kind in about.columns.items():
        fields.add_field(name, **kinds[kind], nullable=True)
    for name, (_, shape) in about.arrays.items():
        numbers = int(np.prod(shape, dtype=int))
        if name == about.anchor or layout.is_vector(shape):
            fields.add_field(layout.field(name), DataType.FLOAT_VECTOR, dim=numbers)
        else:
            fields.add_field(
                layout.field(name),
                DataType.ARRAY,
                element_type=DataType.FLOAT,
                max_capacity=numbers,
            )
    return fields
