"""`--mode=export`: Orbax parameters, self-contained artifacts and a model card.

The artifacts need only JAX to run, on CPU, CUDA and TPU, with any batch size. They
are checked in a fresh process that cannot import this library: they equal the model,
or there is no export.
"""

from __future__ import annotations

import pathlib
import tempfile
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from reid_jax import experiment, storage
from reid_jax.export import artifacts, card
from reid_jax.runtime import checkpoint, sharding
from reid_jax.runtime import workdir as workdirs


def export_checkpoint(config: Any, path: str, *, directory: epath.Path) -> epath.Path:
    """Exports a checkpoint and checks the result.

    Writes `params/` (Orbax, {"params", collections...}), `embed.jaxexport` (uint8 RGB
    images [b, H, W, 3] to an Embedding), `distance.jaxexport` (two Embeddings to
    distances [q, g]), for pair models `pair_maps.jaxexport` and
    `score_pairs.jaxexport`, `export.json` and `README.md`, the model card.

    Args:
      config: of the run.
      path: a run's folder, or one step's.
      directory: where to write; an earlier export there is replaced at the end, in a
        bucket file by file.

    Raises:
      UserError: no checkpoint, another model's checkpoint, or an artifact that does
        not equal the model; nothing is written then.
    """
    folder = checkpoint.find(path)
    meta = checkpoint.read_meta(folder)
    storage.check_writable(directory.parent)
    mesh = sharding.make_mesh(jax.local_devices()[:1])
    method, variables = experiment.restore(config, folder, mesh)
    image_size = experiment.image_size(config)
    remote = storage.in_bucket(directory)
    beside = None if remote else directory.parent
    with tempfile.TemporaryDirectory(dir=beside, prefix=".export-") as new:
        staging = pathlib.Path(new) / "export"
        staging.mkdir()
        embedding = artifacts.write(
            staging, method, variables, stage=meta["stage"], image_size=image_size
        )
        artifacts.check(staging)
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as writer:
            writer.save(staging.resolve() / "params", dict(variables))
        about = card.describe(
            *(method, variables, meta), image_size=image_size, embedding=embedding
        )
        workdirs.write_json(staging / "export.json", about)
        text = card.text(about, image_size=image_size)
        workdirs.write_text(staging / "README.md", text)
        if remote:
            directory.rmtree(missing_ok=True)
            storage.copy_below(staging, directory)
        else:
            _put_in_place(staging, directory, old=pathlib.Path(new) / "old")
    return directory


def _put_in_place(new: pathlib.Path, place: epath.Path, *, old: pathlib.Path) -> None:
    if place.exists():
        place.rename(old)
    new.rename(place)
