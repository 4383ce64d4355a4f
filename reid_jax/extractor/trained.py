"""A network from a checkpoint, as its run trained it."""

from __future__ import annotations

from typing import Any

import jax

from configs import run
from reid_jax import experiment
from reid_jax.evaluation import finite
from reid_jax.extractor.network import Arrays, Network
from reid_jax.runtime import checkpoint
from reid_jax.runtime.fingerprint import fingerprint
from reid_jax.runtime.progress import said


def read(place: str, mesh: jax.sharding.Mesh) -> Network:
    """The network of a run's best checkpoint, or of one step.

    Args:
      place: a run's folder, or one step's.
      mesh: on which the variables are laid.

    Raises:
      UserError: no checkpoint, a damaged one, or parameters that are not finite.
    """
    config = run.get_config(place)
    folder = checkpoint.find(place)
    meta = checkpoint.read_meta(folder)
    with said(f"reading {folder}"):
        method, variables = experiment.restore(config, folder, mesh)
    finite.check_variables(variables)

    def embed(variables: Any, images: jax.Array, *inputs: jax.Array) -> Arrays:
        named = dict(zip(method.embed_inputs, inputs, strict=True))
        return method.embed(variables, images, **named)

    return Network(
        method=meta["method"],
        fingerprint=fingerprint(meta["method"], meta["config"], variables),
        image_size=experiment.image_size(config),
        resize=config.data.resize,
        parts=method.visibility_titles,
        inputs=tuple(method.embed_inputs),
        embed=embed,
        distance=method.distance,
        variables=variables,
    )
