"""Speed and memory of re-ranking with conditional features (CACE-Net).

    python -m benchmarks.pair_scoring --pairs=2048 --queries=20

The evaluator's own `PairRescorer` re-ranks some queries against a gallery of
Market-1501's size whose maps, random ones, come from a `MapStore` that holds only a
part of them; pairs per second count fetching and scoring, not the drawing of maps, and
the total for all of Market-1501's queries is an extrapolation and is called so. Then
pairs of maps of the paper's size are scored twice: folded, as the method does, and
from full conditional maps; both must give the same. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import memory
from benchmarks.retrieval import SIZES
from reid_jax.evaluation.pairs import PairNetwork, PairRescorer
from reid_jax.models import cacenet
from reid_jax.retrieval.packing import packed
from reid_jax.retrieval.rescoring import MapStore

SCALE = {"kernel": 0.02, "theta": 0.02, "similar": 0.02, "project": 0.02}
"""Spread of random weights; other arrays are ones."""


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    options = _parse(arguments)
    bench = _Bench(options)
    streaming = bench.streaming()  # first, while the peak of memory is its own
    report = {
        "grid": options.grid,
        "channels": 32 * options.width,
        "stored_as": options.map_dtype,
        "stored_mib_per_image": round(bench.bytes_per_image / 2**20, 3),
        "scoring": bench.scoring(),
        "streaming": streaming,
        "device": jax.devices()[0].device_kind,
    }
    print(json.dumps(report))
    return report


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=2048, help="to score twice")
    parser.add_argument("--queries", type=int, default=20, help="to re-rank")
    parser.add_argument("--top_k", type=int, default=100, help="candidates of each")
    parser.add_argument("--block", type=int, default=32, help="candidates at once")
    parser.add_argument("--grid", default="24x8", help="rows and columns of the maps")
    parser.add_argument("--width", type=int, default=64, help="channels / 32")
    parser.add_argument("--map_dtype", default="float16", help="of stored maps")
    parser.add_argument("--cache_gib", type=float, default=1.0, help="of the store")
    parser.add_argument("--size", choices=SIZES, default="market")
    return parser.parse_args(arguments)


class _Bench:
    """A method without its backbone, and maps that are drawn instead."""

    def __init__(self, options: argparse.Namespace):
        self._options = options
        self._grid = tuple(map(int, options.grid.split("x")))
        self._channels = 32 * options.width
        self._method = cacenet.Method(
            751, width=options.width, top_k=options.top_k, map_dtype=options.map_dtype
        )
        self._scorer = self._method.pair_scorer("train")
        network = self._method.module
        self._nodes = jax.jit(partial(network.apply, method="nodes"))
        self._drawing = 0.0
        self._variables = self._draw_variables()
        one = jax.tree.leaves(self.maps(np.arange(1)))
        self.bytes_per_image = sum(leaf.nbytes for leaf in one)

    def _draw_variables(self) -> Any:
        def touch(network: cacenet.Network) -> None:
            nodes = network.nodes(jnp.zeros((1, *self._grid, self._channels)), None)
            every = jax.tree.map(lambda x: x[None], nodes)
            network.pair_distance(nodes, every)

        shapes = jax.eval_shape(
            lambda key: self._method.module.init(key, method=touch), jax.random.key(0)
        )
        rng = np.random.default_rng(0)

        def fill(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
            name = path[-1].key
            if name not in SCALE:
                return np.ones(leaf.shape, leaf.dtype)
            return SCALE[name] * rng.standard_normal(leaf.shape, np.float32)

        return jax.device_put(jax.tree_util.tree_map_with_path(fill, shapes))

    def maps(self, indices: np.ndarray, base: int = 0) -> dict[str, np.ndarray]:
        """What is stored of some images: random maps instead of a backbone's."""
        started = time.perf_counter()
        shape = (*self._grid, self._channels)
        drawn = [
            np.random.default_rng(base + int(i)).standard_normal(shape, np.float32)
            for i in indices
        ]
        nodes = self._nodes(self._variables, np.maximum(drawn, 0), None)
        stored = packed(
            self._method.module.pairs.stored(nodes), self._options.map_dtype
        )
        stored = jax.tree.map(np.asarray, stored)
        self._drawing += time.perf_counter() - started
        return stored

    def scoring(self) -> dict[str, Any]:
        """Pairs per second of both forms, and how far their scores are apart."""
        block = self._options.block
        query = jax.device_put(self.maps(np.arange(1), base=10**6))
        candidates = jax.device_put(
            jax.tree.map(lambda x: x[None], self.maps(np.arange(block)))
        )
        folded = jax.jit(self._scorer.score_pairs)
        unfolded = jax.jit(partial(_unfolded, self._method))
        calls = -(-self._options.pairs // block)
        report: dict[str, Any] = {"pairs": calls * block}
        scores = []
        for name, score in (("folded", folded), ("unfolded", unfolded)):
            given = (self._variables, query, candidates)
            scores.append(np.asarray(score(*given)))  # compiles
            started = time.perf_counter()
            for _ in range(calls):
                jax.block_until_ready(score(*given))
            seconds = time.perf_counter() - started
            report[f"{name}_pairs_per_second"] = round(calls * block / seconds, 1)
        np.testing.assert_allclose(scores[1], scores[0], atol=1e-3)
        report["largest_difference"] = float(np.abs(scores[1] - scores[0]).max())
        return report

    def streaming(self) -> dict[str, Any]:
        """Re-ranks some queries among a whole gallery, by the evaluator's code."""
        options, size = self._options, SIZES[self._options.size]
        rng = np.random.default_rng(2)
        rows = np.arange(options.queries)
        distances = rng.random((options.queries, size.gallery), np.float32)
        network = PairNetwork(self._scorer)
        before = memory.peak_gib()
        with (
            tempfile.TemporaryDirectory() as folder,
            MapStore(
                self.maps,
                directory=folder,
                max_bytes=int(options.cache_gib * 2**30),
                batch_size=options.block,
            ) as store,
        ):
            rescorer = PairRescorer(
                network,
                self._variables,
                query_maps=partial(self.maps, base=10**6),
                gallery_maps=store,
                pair_block=options.block,
            )
            rescorer.keys(rows[:1], jnp.asarray(distances[:1]))  # compiles
            self._drawing, started = 0.0, time.perf_counter()
            keys = np.asarray(rescorer.keys(rows, jnp.asarray(distances)))
            seconds = time.perf_counter() - started - self._drawing
            on_disk = store.bytes_on_disk
        top_k = min(options.top_k, size.gallery)
        assert ((keys < 0).sum(1) == top_k).all()
        per_second = options.queries * top_k / seconds
        total = size.query * top_k
        return {
            "gallery_images": size.gallery,
            "queries": options.queries,
            "pairs": options.queries * top_k,
            "pairs_per_second": round(per_second, 1),
            "seconds_drawing_random_maps": round(self._drawing, 1),
            "store_gib": round(on_disk / 2**30, 2),
            "whole_gallery_gib": round(size.gallery * self.bytes_per_image / 2**30, 2),
            "peak_memory_gib": round(memory.peak_gib(), 2),
            "peak_memory_gib_before": round(before, 2),
            "extrapolated": {
                "pairs_of_all_queries": total,
                "hours_without_backbone": round(total / per_second / 3600, 2),
            },
        }


def _unfolded(
    method: cacenet.Method, variables: Any, query: Any, candidates: Any
) -> jax.Array:
    """Scores [Q, K] by way of full conditional maps."""
    scorer = method.pair_scorer("train")

    def forward(network: cacenet.Network) -> jax.Array:
        one = partial(network.pairs.conditional_maps, network.weights)
        every = jax.vmap(jax.vmap(one, in_axes=(None, 0)))
        maps = every(scorer.unpacked(query), scorer.unpacked(candidates))
        pooled = jnp.stack([places.mean(-2) for places in maps])
        mine, theirs = network.pair_encoder(pooled, train=False)
        return jnp.linalg.norm(mine - theirs, axis=-1)

    return method.module.apply(variables, method=forward)


if __name__ == "__main__":
    main()
