"""Reads the arrays of a weight file, whatever wrote it; told by content, not by name.

Every reader returns arrays under the names that the file uses.
"""

from __future__ import annotations

import dataclasses
import pathlib
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import safetensors
import safetensors.numpy
from etils import epath

from reid_jax import storage
from reid_jax.errors import UserError
from reid_jax.runtime import checkpoint
from reid_jax.weights import pytorch

PYTORCH, GOOGLE, OURS = "pytorch", "google", "ours"
"""Conventions of names and layouts; see `mapping`."""

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
    """

    path: pathlib.Path
    convention: str
    arrays: dict[str, np.ndarray]


def read(path: str | pathlib.Path) -> WeightFile:
    """Reads a weight file or an Orbax folder.

    Known are PyTorch's `.pth` in both formats, `.safetensors`, `.npz` of Google's
    ViT, and of this library a converted folder, an export or a run.

    Raises:
      UserError: no such file, or none that can be read; the message says what it
        seems to be.
    """
    if storage.in_bucket(path):
        path = epath.Path(path)
        if not path.is_dir():
            raise UserError(f"{path}: only folders are read from a bucket; copy it")
    else:
        path = pathlib.Path(path).expanduser()
    if path.is_dir():
        return WeightFile(path, OURS, _read_orbax(path))
    try:
        with path.open("rb") as stream:
            head = stream.read(512)
    except OSError as error:
        raise UserError(f"cannot read weights: {error}") from error
    if head.startswith(b"PK"):
        return _read_archive(path)
    if head[:1] == b"\x80" and head[2:].startswith(pytorch.LEGACY_MAGIC):
        return WeightFile(path, PYTORCH, pytorch.read_legacy(path))
    header = int.from_bytes(head[:8], "little")
    fits = head[8:9] == b"{" and header < path.stat().st_size
    if path.suffix == ".safetensors" or fits:
        return WeightFile(path, PYTORCH, _read_safetensors(path, head))
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
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise UserError(
            f"{path} is cut off or damaged ({error}); get the file again"
        ) from error
    if any(name.endswith("data.pkl") for name in names):
        return WeightFile(path, PYTORCH, pytorch.read_zip(path))
    if names and all(name.endswith(".npy") for name in names):
        arrays = _read_npz(path)
        google = any("Transformer/encoder" in name for name in arrays)
        return WeightFile(path, GOOGLE if google else PYTORCH, arrays)
    raise UserError(
        f"{path} is a zip archive of {', '.join(names[:4]) or 'nothing'}, not of "
        "weights; if they are in it, unpack it"
    )


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except pytorch.DAMAGE as error:
        raise UserError(
            f"{path} is damaged, or holds other things than arrays ({error})"
        ) from error


def _read_safetensors(path: pathlib.Path, head: bytes) -> dict[str, np.ndarray]:
    try:
        # Parsed by the library, which checks lengths and bounds; its NumPy reader
        # does not know bfloat16.
        entries = safetensors.deserialize(path.read_bytes())
    except safetensors.SafetensorError as error:
        if head[8:9] != b"{":
            raise UserError(f"{path} is {_describe(head)}, not safetensors") from error
        raise UserError(
            f"{path} is cut off or damaged ({error}); get the file again"
        ) from error
    arrays = {}
    for name, entry in entries:
        if entry["dtype"] not in _SAFETENSORS_DTYPES:
            raise UserError(
                f"{path}: {name} is of type {entry['dtype']}, which is not supported; "
                f"supported: {', '.join(_SAFETENSORS_DTYPES)}"
            )
        dtype = np.dtype(_SAFETENSORS_DTYPES[entry["dtype"]])
        arrays[name] = np.frombuffer(entry["data"], dtype).reshape(entry["shape"])
    return arrays


def write_safetensors(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays by name."""
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    safetensors.numpy.save_file(contiguous, path)


def _read_orbax(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Variables by path, such as `params/backbone/norm/scale`."""
    folder = _find_orbax(path)
    handler = ocp.PyTreeCheckpointHandler()
    try:
        stored = handler.metadata(folder).tree
        wanted = {
            k: stored[k]
            for k in ("params", "batch_stats", "collections")
            if k in stored
        }
        with ocp.Checkpointer(handler) as reader:
            tree = reader.restore(
                folder,
                args=ocp.args.PyTreeRestore(
                    item=wanted,
                    restore_args=jax.tree.map(
                        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted
                    ),
                    partial_restore=True,
                ),
            )
    except (ValueError, KeyError, OSError) as error:
        raise UserError(
            f"{folder} is damaged, or no checkpoint of this library ({error})"
        ) from error
    tree = {"params": tree.get("params", {}), **tree.get("collections", tree)}
    return flatten(tree)


def _find_orbax(path: pathlib.Path) -> pathlib.Path:
    """The folder with the arrays: a conversion, an export, or a run's checkpoint."""
    for folder in (path, path / "params"):
        if (folder / "_METADATA").is_file():
            return storage.absolute(folder)
    return checkpoint.find(str(path)) / "state"


def write_orbax(folder: pathlib.Path, tree: dict[str, Any]) -> None:
    """Writes variables as an Orbax folder."""
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as writer:
        writer.save(folder.resolve(), tree)


def flatten(tree: Any) -> dict[str, Any]:
    """Leaves of nested dictionaries by path, joined with slashes."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in leaves
    }
