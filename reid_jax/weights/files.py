"""Reads the arrays of a weight file, whatever wrote it; told by content, not by name.

Every reader returns arrays under the names that the file uses.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from reid_jax import storage
from reid_jax.errors import UserError
from reid_jax.weights import damage, folders, grids, huggingface, onnx, pytorch, zips
from reid_jax.weights.folders import GRID

PYTORCH, GOOGLE, OURS = "pytorch", "google", "ours"
"""Conventions of names and layouts; see `mapping`."""

LONGEST_NAME = 500
"""Of an array; longer ones are no names."""

_SAFETENSORS_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """The arrays of a file.

    Attributes:
      path: where they are from.
      convention: of names and layouts, one of `PYTORCH`, `GOOGLE`, `OURS`.
      arrays: by the file's own names.
      grid: rows and columns of the position embedding, where what wrote the file says
        them.
    """

    path: pathlib.Path
    convention: str
    arrays: dict[str, np.ndarray]
    grid: grids.Grid | None = None


def read(path: str | pathlib.Path) -> WeightFile:
    """Reads a weight file or a folder.

    Known are PyTorch's `.pth` in both formats, `.safetensors`, `.npz` of Google's
    ViT, the initialisers of `.onnx`, folders of Hugging Face's, and of this library a
    converted folder, an export, its `params`, or a run.

    Raises:
      UserError: no such file, or none that can be read; the message says what it
        seems to be.
    """
    if storage.in_bucket(path):
        path = epath.Path(path)
        if not path.is_dir():
            raise UserError(f"{path}: only folders are read from a bucket; copy it")
        file = _read_ours(path)
    else:
        path = pathlib.Path(path).expanduser()
        file = _read_folder(path) if path.is_dir() else _read_file(path)
    for name in file.arrays:
        if not name.isprintable() or len(name) > LONGEST_NAME:
            raise UserError(
                f"{path} is damaged: it holds an array by the name of "
                f"{damage.shown(name)}"
            )
    return file


def _read_ours(path: pathlib.Path) -> WeightFile:
    tree, grid = folders.read(path)
    return WeightFile(path, OURS, flatten(tree), grid)


def _read_folder(path: pathlib.Path) -> WeightFile:
    shards = huggingface.shards(path)
    if shards is None:
        return _read_ours(path)
    arrays: dict[str, np.ndarray] = {}
    for shard, names in shards.items():
        found = _read_file(shard).arrays
        for name in found if names is None else names:
            if name not in found:
                raise UserError(
                    f"{shard} does not hold {damage.shown(name)}, as the index beside "
                    "it says; get the whole folder again"
                )
            arrays[name] = found[name]
    grid = grids.of_image(huggingface.image_size(path), arrays)
    return WeightFile(path, PYTORCH, arrays, grid)


def _read_file(path: pathlib.Path) -> WeightFile:
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is neither a file nor a folder")
        with path.open("rb") as stream:
            head = stream.read(512)
    except OSError as error:
        raise UserError(f"cannot read weights: {error}") from error
    if head.startswith(b"PK"):
        return _read_archive(path)
    if head[:1] == b"\x80" and pytorch.LEGACY_MAGIC in head[:32]:
        return WeightFile(path, PYTORCH, pytorch.read_legacy(path))
    if path.suffix == ".onnx" and head.startswith(onnx.STARTS):
        return WeightFile(path, PYTORCH, onnx.read(path))
    header = int.from_bytes(head[:8], "little")
    fits = head[8:9] == b"{" and header < path.stat().st_size
    if path.suffix == ".safetensors" or fits:
        return _read_safetensors(path, head)
    raise UserError(f"{path} is {_describe(head)}, not a weight file that can be read")


def _describe(head: bytes) -> str:
    """What a file that is no weight file seems to be."""
    start = head.lstrip()[:64].lower()
    if not head:
        return "empty"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page (the address led to a page about the file, or to an error)"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer (fetch the file itself with git lfs pull)"
    if head[:1] == b"\x80":
        return "a pickle that torch.save did not write (it was not opened)"
    try:
        head[:-4].decode()  # the last character may be cut
    except UnicodeDecodeError:
        return "of an unknown format"
    return "a text file"


def _read_archive(path: pathlib.Path) -> WeightFile:
    """A zip archive: PyTorch's, or NumPy's."""
    with zips.opened(path) as archive:
        names = archive.namelist()
    if any(name.endswith("data.pkl") for name in names):
        return WeightFile(path, PYTORCH, pytorch.read_zip(path))
    if names and all(name.endswith(".npy") for name in names):
        arrays = zips.read_npz(path)
        google = any("Transformer/encoder" in name for name in arrays)
        return WeightFile(path, GOOGLE if google else PYTORCH, arrays)
    raise UserError(
        f"{path} is a zip archive of {damage.shown(', '.join(names[:4])) or 'nothing'},"
        " not of weights; if they are in it, unpack it"
    )


def _read_safetensors(path: pathlib.Path, head: bytes) -> WeightFile:
    if head[8:9] != b"{":
        raise UserError(f"{path} is {_describe(head)}, not safetensors")
    with damage.explained(path):
        content = path.read_bytes()
        try:
            # Parsed by the library, which checks lengths and bounds; its NumPy reader
            # does not know bfloat16.
            entries = safetensors.deserialize(content)
        except safetensors.SafetensorError as error:
            raise ValueError(str(error)) from error
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        stated = header.get("__metadata__", {}).get(GRID)
        grid = grids.parse(stated and json.loads(stated), f"{path}: {GRID}")
        arrays = {name: _safetensor(path, name, entry) for name, entry in entries}
    own = all(name.startswith(("params/", "batch_stats/")) for name in arrays)
    return WeightFile(path, OURS if arrays and own else PYTORCH, arrays, grid)


def _safetensor(path: pathlib.Path, name: str, entry: Mapping[str, Any]) -> np.ndarray:
    if entry["dtype"] not in _SAFETENSORS_DTYPES:
        raise UserError(
            f"{path}: {damage.shown(name)} is of type {entry['dtype']}, which is not "
            f"supported; supported: {', '.join(_SAFETENSORS_DTYPES)}"
        )
    dtype = np.dtype(_SAFETENSORS_DTYPES[entry["dtype"]])
    return np.frombuffer(entry["data"], dtype).reshape(entry["shape"])


def write_safetensors(
    path: pathlib.Path, arrays: dict[str, np.ndarray], grid: grids.Grid | None = None
) -> None:
    """Writes arrays by name, and the grid of their position embedding."""
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    metadata = {GRID: json.dumps(grid)} if grid else None
    # Not `save_file`, whose files nobody but their owner may read.
    storage.write_bytes(path, safetensors.numpy.save(contiguous, metadata))


def flatten(tree: Any) -> dict[str, Any]:
    """Leaves of nested dictionaries by path, joined with slashes."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in leaves
    }
