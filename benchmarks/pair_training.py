"""Time and memory of training on all pairs of a batch (CACE-Net).

    python -m benchmarks.pair_training --batches=16,32,64

Random maps of the paper's size go through what follows the backbone: graphs of all
pairs, conditional features, losses, and the gradient of all of it. Measured are the
blocks that training uses, for some block sizes, and the naive form, which holds the
conditional maps of all pairs at once, where its memory fits. Memory is what the
compiled program needs beside its arguments, by XLA's own count; it is known of
programs that do not fit, too. Where both ran, losses and gradients must agree. Prints
one line of JSON per case.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.models import cacenet

IDENTITIES_OF = 4
"""Images per identity."""

MODES: dict[str, dict[str, Any]] = {
    "paper": {},
    "code": {"adjacency": "embedded", "update": "residual", "pool": "avg_max"},
}


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    options = _parse(arguments)
    rows, columns = map(int, options.grid.split("x"))
    reports = []
    for size in map(int, options.batches.split(",")):
        shape = (size, rows, columns, 32 * options.width)
        found: list[Any] = []
        cases: list[int | None] = [*map(int, options.blocks.split(",")), None]
        for block in cases:
            method = _method(options, block or 1)
            case = {
                "mode": options.mode,
                "batch": size,
                "pairs": size * size,
                "form": f"blocks of {block * size} pairs" if block else "naive",
            }
            report = case | _measure(method, shape, not block, options, found)
            print(json.dumps(report), flush=True)
            reports.append(report)
        for loss, gradients in found[1:]:
            np.testing.assert_allclose(loss, found[0][0], rtol=1e-4)
            jax.tree.map(_check_close, gradients, found[0][1])
    return reports


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batches", default="16,32,64", help="images, multiples of 4")
    parser.add_argument("--blocks", default="1,4", help="images that each is compared")
    parser.add_argument("--grid", default="24x8", help="rows and columns of the maps")
    parser.add_argument("--width", type=int, default=64, help="channels / 32")
    parser.add_argument("--mode", choices=MODES, default="paper")
    parser.add_argument("--repeats", type=int, default=1, help="of each measurement")
    parser.add_argument(
        "--limit_gib", type=float, default=6.0, help="what needs more is not run"
    )
    return parser.parse_args(arguments)


def _method(options: argparse.Namespace, block: int) -> cacenet.Method:
    fields = MODES[options.mode] | {"width": options.width, "pair_block": block}
    return cacenet.Method(751, **fields)


def _measure(
    method: cacenet.Method,
    shape: tuple[int, ...],
    naive: bool,
    options: argparse.Namespace,
    found: list[Any],
) -> dict[str, Any]:
    """One case's figures; its loss and gradients are added to `found` if it ran."""
    rng = np.random.default_rng(0)
    maps = np.maximum(rng.standard_normal(shape, np.float32), 0)
    step = jax.jit(jax.value_and_grad(partial(_loss, method, naive), argnums=(0, 1)))
    params = _params(method, maps)
    compiled = step.lower(params, maps).compile()
    memory = compiled.memory_analysis()
    needed = (memory.temp_size_in_bytes + memory.output_size_in_bytes) / 2**30
    report: dict[str, Any] = {"memory_gib": round(needed, 2)}
    if needed > options.limit_gib:
        return report | {"seconds": None, "note": "not run: more than --limit_gib"}
    given = jax.device_put((params, maps))
    found.append(jax.tree.map(np.asarray, compiled(*given)))
    seconds = _seconds(lambda: compiled(*given), options.repeats)
    return report | {
        "seconds": round(seconds, 3),
        "pairs_per_second": round(shape[0] ** 2 / seconds, 1),
        "device": jax.devices()[0].device_kind,
    }


def _loss(
    method: cacenet.Method, naive: bool, params: Any, maps: jax.Array
) -> jax.Array:
    """The losses of pairs of a batch of maps [B, h, w, D]."""
    labels = jnp.arange(len(maps)) // IDENTITIES_OF

    def forward(network: cacenet.Network) -> tuple[jax.Array, jax.Array]:
        nodes = network.nodes(maps, None)
        if naive:
            reduced = network.pair_encoder.reduced(_all_at_once(network, nodes))
        else:
            reduced = network.all_reduced(nodes)
        paired = network.pair_encoder.normalised(reduced, train=True)
        return paired, network.pair_classifier(paired, train=False)

    (paired, logits), _ = method.module.apply(
        {"params": params}, method=forward, mutable=["batch_stats"]
    )
    outputs = {"pair_feature": paired, "pair_logits": logits}
    return sum(method.pair_losses(outputs, labels).values())


def _all_at_once(network: cacenet.Network, nodes: Any) -> jax.Array:
    """Pooled conditional maps of all pairs [B, B, D], all maps in memory."""

    def of_first(u: Any, v: Any) -> jax.Array:
        places, _ = network.pairs.conditional_maps(network.weights, u, v)
        if network.pairs.pool == "avg":
            return places.mean(0)
        return jnp.concatenate([places.mean(0), places.max(0)])

    return jax.vmap(jax.vmap(of_first, (None, 0)), (0, None))(nodes, nodes)


def _params(method: cacenet.Method, maps: np.ndarray) -> Any:
    """Random parameters of what follows the backbone."""

    def touch(network: cacenet.Network) -> None:
        nodes = network.nodes(jnp.asarray(maps[:1]), None)
        paired = network.pair_encoder.normalised(
            network.all_reduced(nodes), train=False
        )
        network.pair_classifier(paired, train=False)

    shapes = jax.eval_shape(
        lambda key: method.module.init(key, method=touch), jax.random.key(0)
    )
    rng = np.random.default_rng(1)

    def fill(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if len(leaf.shape) == 1:  # diagonals and scales; biases do no harm
            return np.ones(leaf.shape, leaf.dtype)
        return 0.03 * rng.standard_normal(leaf.shape, np.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes["params"])


def _seconds(run: Callable[[], Any], repeats: int) -> float:
    """The fastest of some runs."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - started)
    return min(times)


def _check_close(found: np.ndarray, expected: np.ndarray) -> None:
    # Rounding may choose another of two equal maxima, or another hardest pair.
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=1e-2 * scale)


if __name__ == "__main__":
    main()
