"""A network from what `--mode=export` wrote, run by JAX alone."""

from __future__ import annotations

import hashlib
import json
import pathlib
import re
from typing import Any

import jax
import jax.export  # not loaded by `import jax`

from data_pipelines.images import BILINEAR
from reid_jax.errors import UserError, first_line
from reid_jax.extractor.network import Arrays, Network

_SIZE = re.compile(r"\[b, (\d+), (\d+), 3\]")
_SQUARES = "reid_jax.models.cpacol"
_AGAIN = "export it again, with --mode=export"


def holds(folder: pathlib.Path) -> bool:
    """Whether a folder is an export."""
    return (folder / "export.json").is_file()


def read(folder: pathlib.Path) -> Network:
    """The network of an export's artifacts.

    Raises:
      UserError: something is missing, damaged, or of a version of JAX that this one
        cannot read.
    """
    about = _about(folder)
    artifacts = {
        name: _artifact(folder, f"{name}.jaxexport") for name in ("embed", "distance")
    }

    def embed(variables: Any, images: jax.Array, *inputs: jax.Array) -> Arrays:
        del variables  # they are within the artifact
        return artifacts["embed"].call(images, *inputs)

    return Network(
        method=about["method"],
        fingerprint=about["fingerprint"],
        image_size=about["image_size"],
        resize=about["resize"],
        parts=about["parts"],
        inputs=about["inputs"],
        embed=embed,
        # Re-ranking maps it over pairs of images, an artifact only over its own axes.
        distance=jax.custom_batching.sequential_vmap(artifacts["distance"].call),
        squared_distances=about["squared_distances"],
        variables={},
    )


def _about(folder: pathlib.Path) -> dict[str, Any]:
    """What the export says of itself, as `Network` has it."""
    try:
        about = json.loads(_whole(folder, "export.json"))
        images, *inputs = about["input"].items()
        height, width = map(int, _SIZE.search(images[1]).groups())
        return {
            "method": about["method"],
            "fingerprint": about["fingerprint"],
            "image_size": (height, width),
            "resize": about["config"].get("data.resize", BILINEAR),
            "parts": tuple(about["parts"]),
            # Of our methods, and in exports that do not say it, CpaCol's are.
            "squared_distances": about.get(
                "squared_distances", about["method"] == _SQUARES
            ),
            "inputs": tuple(name for name, _ in inputs),
        }
    except KeyError as error:
        raise UserError(
            f"{folder}/export.json lacks {error}: an older version wrote it; {_AGAIN}"
        ) from error
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{folder}/export.json is damaged; {_AGAIN}") from error


def _artifact(folder: pathlib.Path, name: str) -> jax.export.Exported:
    data = _whole(folder, name)
    try:
        return jax.export.deserialize(bytearray(data))
    except Exception as error:  # flatbuffers and MLIR raise many kinds
        raise UserError(
            f"{folder}/{name} cannot be read by jax {jax.__version__} "
            f"({type(error).__name__}: {first_line(error)}); {_AGAIN}"
        ) from error


def _whole(folder: pathlib.Path, name: str) -> bytes:
    """The content of a file that is as it was exported.

    The digests are those of `runtime.digests`, which needs more than JAX.
    """
    try:
        data = (folder / name).read_bytes()
        lines = (folder / "SHA256SUMS").read_text().splitlines()
    except OSError as error:
        raise UserError(f"{folder} is no whole export ({error}); {_AGAIN}") from error
    sums = dict(line.split("  ", 1)[::-1] for line in lines)
    if sums.get(name) != hashlib.sha256(data).hexdigest():
        raise UserError(f"{folder}/{name} has changed since it was exported; {_AGAIN}")
    return data
