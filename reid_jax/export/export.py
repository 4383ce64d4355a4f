"""`--mode=export`: Orbax parameters, self-contained artifacts and a model card.

The artifacts need only JAX to run, on CPU, CUDA and TPU, with any batch size. They
are checked in a fresh process that cannot import this library: they equal the model,
or there is no export.
"""

from __future__ import annotations

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from reid_jax import experiment, staging, storage
from reid_jax.evaluation import finite
from reid_jax.export import artifacts, card, onnx
from reid_jax.models.method import Embedding, Method, Variables
from reid_jax.runtime import checkpoint, digests, sharding
from reid_jax.runtime import workdir as workdirs
from reid_jax.runtime.progress import said


def export_checkpoint(
    config: Any, path: str, *, directory: epath.Path, form: str = "jax"
) -> epath.Path:
    """Exports a checkpoint and checks the result.

    Writes `params/` (Orbax, {"params", collections...}), `embed.jaxexport` (uint8 RGB
    images [b, H, W, 3] to an Embedding), `distance.jaxexport` (two Embeddings to
    distances [q, g]), for pair models `pair_maps.jaxexport` and
    `score_pairs.jaxexport`, `export.json` and `README.md`, the model card. As ONNX,
    `embed.onnx` and so on, without `params/`.

    Args:
      config: of the run.
      path: a run's folder, or one step's.
      directory: where to write; an earlier export there is replaced at the end, in a
        bucket file by file.
      form: "jax" or "onnx".

    Raises:
      UserError: no checkpoint, another model's checkpoint, parameters that are not
        finite, something that has no counterpart in ONNX, or an artifact that does not
        equal the model; nothing is written then.
    """
    if form == "onnx":
        onnx.check_installed()
    source = checkpoint.find(path)
    meta = checkpoint.read_meta(source)
    storage.check_writable(directory.parent)
    mesh = sharding.make_mesh(jax.local_devices()[:1])
    with said(f"reading {source}"):
        method, variables = experiment.restore(config, source, mesh)
    finite.check_variables(variables)
    image_size = experiment.image_size(config)
    with _replacing(directory) as folder:
        made = _write_onnx if form == "onnx" else _write_jax
        embedding, written = made(
            folder, method, variables, stage=meta["stage"], image_size=image_size
        )
        about = card.describe(
            method,
            variables,
            meta,
            changed=experiment.changed_fields(config, meta["config"]),
            image_size=image_size,
            embedding=embedding,
            written=written,
        )
        workdirs.write_json(folder / "export.json", about)
        text = card.text(about, image_size=image_size)
        workdirs.write_text(folder / "README.md", text)
        digests.write(folder, without=("README.md",))  # a card may be added to
    return directory


def _write_jax(
    folder: pathlib.Path, method: Method, variables: Variables, **given: Any
) -> tuple[Embedding, dict[str, Any]]:
    """Artifacts for JAX, checked in a fresh process, and the parameters."""
    recorder = artifacts.Recorder(folder)
    embedding = artifacts.write(recorder, method, variables, **given)
    recorder.close()
    with said("checking the artifacts in a fresh process"):
        artifacts.check(folder)
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as writer:
        writer.save(storage.absolute(folder) / "params", dict(variables))
    digests.write(folder / "params")
    return embedding, {"format": "jax", "platforms": list(artifacts.PLATFORMS)}


def _write_onnx(
    folder: pathlib.Path, method: Method, variables: Variables, **given: Any
) -> tuple[Embedding, dict[str, Any]]:
    """Artifacts as ONNX, checked in onnxruntime."""
    recorder = onnx.Recorder(folder)
    embedding = artifacts.write(recorder, method, variables, **given)
    return embedding, {
        "format": "onnx",
        "artifacts": recorder.signatures,
        "largest_differences": recorder.differences,
    }


@contextlib.contextmanager
def _replacing(directory: epath.Path) -> Iterator[pathlib.Path]:
    """An empty folder that takes the place of `directory` once the body is done."""
    if storage.in_bucket(directory):
        with tempfile.TemporaryDirectory() as folder:
            yield pathlib.Path(folder)
            directory.rmtree(missing_ok=True)
            storage.copy_below(folder, directory)
        return
    with staging.built(pathlib.Path(directory), doing="exporting") as folder:
        yield folder
