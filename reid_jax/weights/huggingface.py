"""Folders as Hugging Face's libraries write them: a weight file, or several by index.

What the arrays are called is another matter; see `mapping`.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

from reid_jax.errors import UserError
from reid_jax.weights import damage

_FILES = ("model.safetensors", "pytorch_model.bin")


def shards(folder: pathlib.Path) -> dict[pathlib.Path, list[str] | None] | None:
    """The weight files of a folder with the arrays to take of each; None for all.

    Returns:
      None if the folder is none of Hugging Face's.

    Raises:
      UserError: if the index is damaged, or a file that it names is not there.
    """
    for name in _FILES:
        if (folder / name).is_file():
            return {folder / name: None}
        if (index := folder / f"{name}.index.json").is_file():
            return _indexed(index)
    return None


def _indexed(index: pathlib.Path) -> dict[pathlib.Path, list[str]]:
    files: dict[pathlib.Path, list[str]] = {}
    with damage.explained(index):
        for array, file in _json(index)["weight_map"].items():
            if pathlib.PurePath(file).name != file:
                raise ValueError(f"{file!r} is no name of a file beside it")
            files.setdefault(index.parent / file, []).append(array)
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise UserError(
            f"{index} names files that are not there: "
            f"{damage.shown(', '.join(missing))}; get the whole folder"
        )
    return files


def image_size(folder: pathlib.Path) -> Any:
    """What `config.json` says of the images: a number or a list; None if nothing.

    Raises:
      UserError: if it is damaged.
    """
    path = folder / "config.json"
    if not path.is_file():
        return None
    with damage.explained(path):
        config = _json(path)
        timm = config.get("pretrained_cfg", {})
        return config.get("image_size", timm.get("input_size"))


def _json(path: pathlib.Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
