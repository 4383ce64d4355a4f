"""SANet's routes: what skipping untaken cells gains, and how routes depend on scale.

    python -m benchmarks.routing --config=configs/sanet.py
    python -m benchmarks.routing --config=configs/sanet.py:demo --run=runs/sanet-demo

The first measures, with random parameters, how long the enhancement and the whole
network take for one image with every cell computed, and with those of its route only
(`lax.cond`); and per image of a batch, which computes every cell. Random gates are no
trained ones, so routes are also forced to stay at the finest scale, which is the
dearest, and to go down to the coarsest, the cheapest.

The second runs queries and gallery of a run's protocol and prints how coarse their
routes are (0: all cells at the finest scale; 2: all at the coarsest): by how many of
the parts the labels show, with Spearman's correlation over all images and its p-value;
likewise by how much of the picture is person; and for the same images enlarged, which
leaves the share of each side in the middle that `--keep` names, with the mean change
and the p-value of a paired t-test. As that scale is known, the bits of it that the
routes hold are printed, too; and rank-1 and mAP with the most probable routes, with the
sum of all paths by their probabilities, and with routes drawn at random. It needs part
labels in the test data, as the synthetic pedestrians have.

Lines of JSON.
"""

from __future__ import annotations

import copy
import itertools
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags
from scipy import stats

from data_pipelines import loader
from reid_jax import errors, experiment
from reid_jax.errors import UserError
from reid_jax.evaluation import evaluate
from reid_jax.layers.routing import choice
from reid_jax.models.method import Variables
from reid_jax.models.sanet import SCALES, Cell, Method
from reid_jax.runtime import checkpoint, sharding

CONFIG = config_flags.DEFINE_config_file("config", None, lock_config=True)
RUN = flags.DEFINE_string("run", "", "a run's folder: prints its routes, not times")
REPETITIONS = flags.DEFINE_integer("repetitions", 20, "times each is measured")
BATCH = flags.DEFINE_integer("batch", 8, "images of the batch that is compared with")
KEEP = flags.DEFINE_multi_float("keep", (0.8, 0.6, 0.4), "shares that enlarging keeps")

ROUTES = {"random": 0.0, "finest": -1e3, "coarsest": 1e3}
"""What is added to the bias of the gates' exits per scale that they go down."""


def speed(config: Any) -> Iterator[dict[str, Any]]:
    """Milliseconds of a forward pass in test mode."""
    method = experiment.build_method(config, num_classes=2)
    batch = experiment.example_batch(config, BATCH.value)
    example = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), batch)
    fresh = jax.jit(method.init)(jax.random.key(0), example)
    pixels = np.random.default_rng(0).integers(0, 256, batch["image"].shape, np.uint8)
    images = jax.jit(method.standardise)(pixels)
    sparse, dense = method.module, _dense(method.module)
    maps = jax.jit(partial(sparse.apply, train=False))(fresh, images)["third"]
    for part, modules, given in (
        ("enhancement", (sparse.enhancement, dense.enhancement), maps),
        ("network", (sparse, dense), images),
    ):
        skipping, all_cells = (jax.jit(partial(m.apply, train=False)) for m in modules)
        for route, slope in ROUTES.items():
            variables = _biased(fresh, slope, method)
            if part != "network":
                variables = {name: tree[part] for name, tree in variables.items()}
            runs = {
                "skipping": partial(skipping, variables, given[:1]),
                "computing all": partial(all_cells, variables, given[:1]),
                "in a batch": partial(skipping, variables, given),
            }
            times = _times(runs)
            times["in a batch"] /= len(images)
            yield {
                "part": part,
                "route": route,
                **{f"{name}, ms": round(1e3 * t, 3) for name, t in times.items()},
                "gain": round(times["computing all"] / times["skipping"], 2),
            }


def _dense(network: Any) -> Any:
    return network.clone(enhancement=network.enhancement.clone(skip=False))


def _biased(variables: Variables, slope: float, method: Method) -> Variables:
    """Variables with gates that prefer going up (negative slope) or down."""
    grid = method.options.grid
    changed = jax.tree.map(lambda x: x, variables)
    for layer in range(grid.layers - 1):
        for scale in grid.cells(layer):
            gate = changed["params"]["enhancement"][f"cell{layer + 1}_{scale + 1}"][
                "gate"
            ]
            gate["bias"] += slope * jnp.asarray(grid.exits(layer, scale), jnp.float32)
    return changed


def _times(runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Medians in seconds; the candidates take turns, so that all see the same load."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(1 + REPETITIONS.value):
        for name, run in runs.items():
            begin = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - begin)
    # The first may have compiled.
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def routes(config: Any, run: str) -> Iterator[dict[str, Any]]:
    """How coarse the routes of a protocol's images are, by what the images show."""
    folder = checkpoint.find(run)
    mesh = sharding.make_mesh(jax.local_devices()[:1])
    method, variables = experiment.restore(config, folder, mesh)
    (protocol, *_) = experiment.build_protocols(config)
    yield from _scores(config, method, variables, protocol)
    chosen, seen, share = _measured(config, method, variables, protocol)
    coarse = chosen.mean(2)
    yield {"images": "all", **_described(chosen[:, 0])}
    for count in np.unique(seen):
        name = f"{count} of {len(method.options.part_groups)} parts"
        yield {"images": name, **_described(chosen[seen == count, 0])}
    for name, values in {"parts that show": seen, "share of person": share}.items():
        with warnings.catch_warnings(action="ignore"):  # of constants: there is none
            correlation, p = stats.spearmanr(values, coarse[:, 0])
        yield {
            "coarseness by": name,
            "correlation": _short(correlation),
            "p": _short(p),
        }
    for index, keep in enumerate(KEEP.value, start=1):
        change = coarse[:, index] - coarse[:, 0]
        yield {
            "images": f"all, middle {keep:g} of each side",
            **_described(chosen[:, index]),
            "change": _short(change.mean()),
            "p": _short(stats.ttest_1samp(change, 0).pvalue),
        }
    levels = np.broadcast_to(np.arange(chosen.shape[1]), chosen.shape[:2])
    known = bits(chosen.reshape(-1, chosen.shape[2]), levels.ravel())
    yield {
        "bits of enlargement": _short(known),
        "of": _short(np.log2(levels.max() + 1)),
    }


def bits(routes: np.ndarray, scales: np.ndarray) -> float:
    """Mutual information of N routes [N, ...] and scales [N], both discrete."""
    rows = routes.reshape(len(routes), -1)
    _, names = np.unique(rows, axis=0, return_inverse=True)
    joint = np.zeros((names.max() + 1, scales.max() + 1))
    np.add.at(joint, (names.ravel(), scales), 1 / len(scales))
    apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    there = joint > 0
    # No less than nothing: rounding alone would make it so.
    return max(0.0, (joint[there] * np.log2(joint[there] / apart[there])).sum())


def at_random(seed: int) -> Callable[[jax.Array], jax.Array]:
    """Scores of one exit each, whatever the logits; every cell draws its own."""
    key, cells = jax.random.key(seed), itertools.count()

    def decide(logits: jax.Array) -> jax.Array:
        own = jax.random.fold_in(key, next(cells))
        return choice(jax.random.gumbel(own, logits.shape))

    return decide


def rerouted(method: Method, decide: Callable[[jax.Array], jax.Array]) -> Method:
    """The method with another decision of its gates in test mode."""
    changed, network = copy.copy(method), method.module
    afe = network.enhancement.clone(cell=partial(Cell, decide=decide))
    changed.module = network.clone(enhancement=afe)
    return changed


def _scores(
    config: Any, method: Method, variables: Variables, protocol: Any
) -> Iterator[dict[str, Any]]:
    """What a protocol's ranking loses by other routes."""
    mesh = sharding.make_mesh(jax.local_devices()[:1])
    soft = partial(_softmax, temperature=method.options.temperature)
    spec = experiment.build_evaluation(config)
    decisions = {"most probable": choice, "all, weighted": soft, "random": at_random(0)}
    for name, decide in decisions.items():
        evaluator = evaluate.Evaluator(rerouted(method, decide), mesh, spec)
        entry = evaluator.evaluate(variables, protocol, stage="train", step=0)
        scores = {key: _short(entry["metrics"][key]) for key in ("rank1", "mAP")}
        yield {"routes": name, **scores}


def _softmax(logits: jax.Array, temperature: float) -> jax.Array:
    return jax.nn.softmax(logits / temperature)


def _described(chosen: np.ndarray) -> dict[str, Any]:
    """Figures of the scales [N, L] of the cells that N images pass."""
    coarse, layers = chosen.sum(1), chosen.shape[1]  # integers: no rounding
    shares = [np.mean(chosen == scale) for scale in range(len(SCALES))]
    return {
        "count": len(chosen),
        "different routes": len(np.unique(chosen, axis=0)),
        "coarseness": _short(coarse.mean() / layers),
        "standard error": _short(coarse.std() / layers / len(coarse) ** 0.5),
        "cells at scale": dict(zip(SCALES, map(_short, shares), strict=True)),
    }


def _short(value: float) -> float | None:
    """Three digits; nothing for what is undefined, as a test of constants is."""
    return float(f"{value:.3g}") if np.isfinite(value) else None


def _measured(
    config: Any, method: Method, variables: Variables, protocol: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scales [N, 1 + K, L] of the cells that N images pass, as they are and enlarged K
    times; how many parts show; the person's share of the picture."""
    forward = jax.jit(
        lambda variables, images: method.module.apply(
            variables, method.standardise(images), train=False
        )["routes"]["activity"]
    )
    block = config.evaluation.batch_size
    found: list[tuple[np.ndarray, ...]] = []
    for split in (protocol.query_split, protocol.gallery_split):
        records = experiment.open_split(protocol.dataset, split, config.data.data_dir)
        experiment.check_parts(method, records, ("parts",))
        for start in range(0, len(records), block):
            rows = np.arange(start, min(start + block, len(records)))
            batch = loader.image_batch(
                records,
                np.resize(rows, block),
                image_size=experiment.image_size(config),
                with_parts=True,
            )
            masks = [
                np.isin(batch["parts"], group) for group in method.options.part_groups
            ]
            shown = np.stack([mask.any((1, 2)) for mask in masks], 1).sum(1)
            share = np.any(masks, axis=0).mean((1, 2))
            scales = [
                np.nan_to_num(forward(variables, _enlarged(batch["image"], keep)))
                for keep in (1.0, *KEEP.value)
            ]
            chosen = np.stack(scales, 1).argmax(3)
            found.append(tuple(x[: len(rows)] for x in (chosen, shown, share)))
    return tuple(map(np.concatenate, zip(*found, strict=True)))


def _enlarged(images: np.ndarray, keep: float) -> np.ndarray:
    """The middle of images [B, H, W, 3], a share of each side, at their size."""
    size = images.shape[1:3]
    window = []
    for length in size:
        kept = round(keep * length)
        first = (length - kept) // 2
        window.append(slice(first, first + kept))
    crops = images[:, window[0], window[1]]
    return np.stack([cv2.resize(crop, size[::-1]) for crop in crops])


def main(argv: Sequence[str]) -> None:
    """Prints times, or the routes of `--run`."""
    del argv
    logging.set_verbosity(logging.WARNING)
    config = CONFIG.value
    if config.model.get("enhancement") != "adaptive":
        raise UserError("only SANet with enhancement='adaptive' has routes to choose")
    machine = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    for line in routes(config, RUN.value) if RUN.value else speed(config):
        print(json.dumps(line | machine), flush=True)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    with errors.answered():
        app.run(main)
