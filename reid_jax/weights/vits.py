"""Names of the ViT in other libraries than timm: Google's, Hugging Face's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

_QKV = ("query", "key", "value")

_GOOGLE = tuple(
    (re.compile(theirs), own)
    for theirs, own in (
        (r"(opt/target/|params/)", ""),
        (r"Transformer/encoderblock_(\d+)/", r"blocks_\1/"),
        (r"Transformer/posembed_input/pos_embedding", "pos_embed"),
        (r"Transformer/encoder_norm/", "norm/"),
        (r"embedding/", "patch_embed/proj/"),
        (r"cls$", "cls_token"),
        (r"(blocks_\d+)/LayerNorm_0/", r"\1/norm1/"),
        (r"(blocks_\d+)/LayerNorm_[12]/", r"\1/norm2/"),
        (r"(blocks_\d+)/MlpBlock_\d/Dense_0/", r"\1/mlp/fc1/"),
        (r"(blocks_\d+)/MlpBlock_\d/Dense_1/", r"\1/mlp/fc2/"),
        (r"(blocks_\d+)/MultiHeadDotProductAttention_\d/out/", r"\1/attn/proj/"),
        (r"(blocks_\d+)/MultiHeadDotProductAttention_\d/query/", r"\1/attn/qkv/"),
    )
)
"""Starts of names to replace, one after another."""

_BLOCK = r"(blocks\.\d+)\."

_TRANSFORMERS = tuple(
    (re.compile(theirs), own)
    for theirs, own in (
        (r"embeddings\.cls_token$", "cls_token"),
        (r"embeddings\.position_embeddings$", "pos_embed"),
        (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"encoder\.layer\.(\d+)\.", r"blocks.\1."),
        (r"layernorm\.", "norm."),
        (_BLOCK + r"layernorm_before\.", r"\1.norm1."),
        (_BLOCK + r"layernorm_after\.", r"\1.norm2."),
        (_BLOCK + r"attention\.attention\.query\.", r"\1.attn.qkv."),
        (_BLOCK + r"attention\.output\.dense\.", r"\1.attn.proj."),
        (_BLOCK + r"intermediate\.dense\.", r"\1.mlp.fc1."),
        (_BLOCK + r"output\.dense\.", r"\1.mlp.fc2."),
    )
)


def from_google(
    arrays: Mapping[str, np.ndarray],
) -> Iterator[tuple[str, str | None, np.ndarray]]:
    """Flax's ViT: our layouts already, but for heads apart, and query, key, value.

    Yields:
      the file's name, our path or None for what is skipped, the array in our layout.
    """
    for name, array in arrays.items():
        path = _rename(name, _GOOGLE)
        parts = [arrays.get(name.replace("/query/", f"/{part}/")) for part in _QKV]
        if path.startswith(("head/", "pre_logits/")):
            yield name, None, array
        elif path.endswith("attn/proj/kernel") and array.ndim == 3:
            heads, size, width = array.shape
            yield name, f"params/backbone/{path}", array.reshape(heads * size, width)
        elif "attn/qkv/" in path:
            joined = _join([_flat(part) for part in parts], axis=-1)
            path = (
                name if joined is None else path
            )  # nothing takes it; the report tells
            array = array if joined is None else joined
            yield name, f"params/backbone/{path}", array
        elif not re.search("Attention_./(key|value)/", path):  # those go with query
            yield name, f"params/backbone/{path}", array


def _flat(array: np.ndarray | None) -> np.ndarray | None:
    """Heads joined: a kernel [D, heads, d] or a bias [heads, d]; None for others."""
    if array is None or array.ndim not in (2, 3):
        return None
    return array.reshape(*array.shape[:-2], array.shape[-2] * array.shape[-1])


def to_timm(
    arrays: Mapping[str, np.ndarray], names: Mapping[str, str]
) -> tuple[Mapping[str, np.ndarray], Mapping[str, str]]:
    """The ViT of Hugging Face's transformers under timm's names; others as they are.

    Args:
      arrays: by the file's names.
      names: in the network, by the file's names.

    Returns:
      the same, but for query, key and value, which are one under the name of the query.
    """
    if "embeddings.position_embeddings" not in names.values():
        return arrays, names
    own: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        before, found, rest = name.partition(".attention.attention.")
        kind, _, leaf = rest.partition(".")
        parts = [arrays.get(f"{before}{found}{part}.{leaf}") for part in _QKV]
        joined = _join(parts, axis=0) if kind in _QKV else None
        if joined is None:
            own[name] = array
        elif kind == "query":
            own[name] = joined
    return own, {name: _rename(short, _TRANSFORMERS) for name, short in names.items()}


def _rename(name: str, table: Iterable[tuple[re.Pattern[str], str]]) -> str:
    for theirs, own in table:
        if found := theirs.match(name):
            name = found.expand(own) + name[found.end() :]
    return name


def _join(parts: Sequence[np.ndarray | None], axis: int) -> np.ndarray | None:
    """Query, key and value in one; None if one is missing or has another shape."""
    shapes = {None if part is None else part.shape for part in parts}
    shape = shapes.pop()
    if shapes or not shape:
        return None
    return np.concatenate(parts, axis=axis)
