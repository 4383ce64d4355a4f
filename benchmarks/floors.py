"""What a trained network has to beat: colour histograms, and itself before training.

    python -m benchmarks.floors --config=configs/aaformer.py:demo

Evaluates them on the protocol of the config's data set, with the evaluator of a run,
and prints one line of JSON each. Histograms of the middle half of the columns leave
out most of the background, which is the camera's rather than the person's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, logging
from ml_collections import config_flags

from reid_jax import errors, experiment
from reid_jax.evaluation import evaluate
from reid_jax.models.method import Embedding, Method
from reid_jax.retrieval.distances import euclidean
from reid_jax.runtime import sharding

CONFIG = config_flags.DEFINE_config_file("config", None, lock_config=True)
STRIPES, BINS = 6, 8


class ColourHistogram(Method):
    """RGB histograms of horizontal stripes, compared by Hellinger distance.

    Args:
      share: of the columns that count, around the middle.
    """

    def __init__(self, share: float):
        self.share = share

    def embed(
        self,
        variables: Mapping[str, Any],
        images: jax.Array,
        camera: jax.Array | None = None,
        parts: jax.Array | None = None,
    ) -> Embedding:
        """`vector` [B, STRIPES * BINS^3] of unit norm."""
        del variables, camera, parts
        margin = round(images.shape[2] * (1 - self.share) / 2)
        images = images[:, :, margin : images.shape[2] - margin]
        bins = (images // (256 // BINS)).astype(jnp.int32)
        code = (bins[..., 0] * BINS + bins[..., 1]) * BINS + bins[..., 2]
        height = images.shape[1]
        stripe = jnp.arange(height) * STRIPES // height
        code = code + (stripe * BINS**3)[:, None]

        def count(codes: jax.Array) -> jax.Array:
            return jnp.bincount(codes.ravel(), length=STRIPES * BINS**3)

        counts = jax.vmap(count)(code)
        return {"vector": jnp.sqrt(counts / counts.sum(1, keepdims=True))}

    def distance(self, query: Embedding, gallery: Embedding) -> jax.Array:
        """Euclidean between square roots."""
        return euclidean(query["vector"], gallery["vector"])


def main(argv: Sequence[str]) -> None:
    """Prints the floors of `--config`."""
    del argv
    logging.set_verbosity(logging.WARNING)
    config = CONFIG.value
    mesh = sharding.make_mesh()
    (protocol, *_) = experiment.build_protocols(config)
    network = experiment.build_method(config, num_classes=2)
    shapes = experiment.example_batch(config, 2)
    batch = {name: jnp.zeros(x.shape, x.dtype) for name, x in shapes.items()}
    variables = jax.jit(network.init)(jax.random.key(config.seed), batch)
    for name, method, given in (
        ("colour histogram", ColourHistogram(1.0), {}),
        ("colour histogram, middle half", ColourHistogram(0.5), {}),
        ("untrained network", network, variables),
    ):
        evaluator = evaluate.Evaluator(
            method, mesh, experiment.build_evaluation(config)
        )
        replicated = jax.device_put(given, sharding.replicated(mesh))
        entry = evaluator.evaluate(
            replicated, protocol, stage=network.stages[0], step=0
        )
        row = {"floor": name, "protocol": protocol.name, **entry["metrics"]}
        print(json.dumps(row))


if __name__ == "__main__":
    with errors.answered():
        app.run(main)
