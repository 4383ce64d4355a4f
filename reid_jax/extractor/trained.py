"""A network from a checkpoint, as its run trained it."""

from __future__ import annotations

from typing import Any

import jax

from configs import run
from reid_jax import experiment
from reid_jax.evaluation import finite
from reid_jax.extractor.network import Arrays, Network
from reid_jax.models.method import Method, Variables
from reid_jax.runtime import checkpoint, sharding, workdir
from reid_jax.runtime.fingerprint import fingerprint
from reid_jax.runtime.progress import said
from reid_jax.weights import runs, shipping


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
    return _network(config, method, meta["config"], variables)


def read_shipped(name: str, mesh: jax.sharding.Mesh) -> Network:
    """A network that comes with the library; see `reid_jax.weights.included`.

    Raises:
      UserError: there is none of that name, or it is damaged.
    """
    card, arrays = shipping.read(name)
    config = run.restored(card["config"])
    variables, _ = runs.complete(arrays, config, origin=name)
    variables = jax.device_put(variables, sharding.replicated(mesh))
    method = experiment.build_method(config, num_classes=1)
    return _network(config, method, workdir.flatten(card["config"]), variables)


def _network(
    config: Any, method: Method, trained: dict[str, Any], variables: Variables
) -> Network:
    """The method's network; `trained` is its config by dotted names, for its print."""

    def embed(variables: Any, images: jax.Array, *inputs: jax.Array) -> Arrays:
        named = dict(zip(method.embed_inputs, inputs, strict=True))
        return method.embed(variables, images, **named)

    return Network(
        method=config.method,
        fingerprint=fingerprint(config.method, trained, variables),
        image_size=experiment.image_size(config),
        resize=config.data.resize,
        parts=method.visibility_titles,
        inputs=tuple(method.embed_inputs),
        embed=embed,
        distance=method.distance,
        squared_distances=method.squared_distances,
        variables=variables,
    )
