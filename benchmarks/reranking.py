"""Time and memory of k-reciprocal re-ranking at the size of the real data sets.

    python -m benchmarks.reranking --size=market --reference
    python -m benchmarks.reranking --size=msmt17

Random features with realistic labels are re-ranked as in an evaluation. With
`--reference` the usual form in NumPy, with its full matrices, does the same in a
process of its own: its seconds, its peak memory, and how far its distances are from
ours. Prints one line of JSON. Seconds are of the clock, and of the processor over all
its cores; compilations are among ours, and are given by themselves where they can be.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import time
from typing import Any

import jax
import numpy as np

from benchmarks import memory
from benchmarks.retrieval import SIZES, features, labels
from reid_jax.retrieval import search
from reid_jax.retrieval.distances import euclidean
from reid_jax.retrieval.k_reciprocal import Encoding, KReciprocal, searched
from reid_jax.retrieval.ranking import Ranker


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="market")
    parser.add_argument("--dim", type=int, default=2048, help="of the features")
    parser.add_argument("--block", type=int, default=512, help="queries per block")
    parser.add_argument("--reference", action="store_true", help="NumPy beside it")
    options = parser.parse_args(arguments)
    report = {"size": options.size, "dim": options.dim, "block": options.block}
    ours = _alone(_ours, options.size, options.dim, options.block)
    report["seconds"], report["peak_memory_gib"] = ours["seconds"], ours["peak"]
    report["metrics"] = ours["metrics"]
    if options.reference:
        theirs = _alone(_theirs, options.size, options.dim)
        report["reference"] = {
            "seconds": theirs["seconds"],
            "peak_memory_gib": theirs["peak"],
            "times_slower": _ratio(theirs["seconds"], ours["seconds"], "total"),
            "times_the_processor": _ratio(
                theirs["seconds"], ours["seconds"], "processor"
            ),
            "times_the_memory": _ratio(theirs, ours, "peak"),
            "largest_difference": float(
                np.abs(theirs["sample"] - ours["sample"]).max()
            ),
        }
    report |= {"machine": platform.machine(), "jax": jax.__version__}
    print(json.dumps(report))
    return report


def _ratio(theirs: dict[str, Any], ours: dict[str, Any], name: str) -> float:
    return round(theirs[name] / ours[name], 1)


def _alone(function: Any, *arguments: Any) -> dict[str, Any]:
    """A function's result, and the peak memory of a process that does nothing else."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(function, arguments)


def _data(size: str, dim: int) -> tuple[Any, ...]:
    rng = np.random.default_rng(0)
    sides = labels(SIZES[size], rng)
    return *sides, *(features(side, dim, rng, alike=0.35) for side in sides)


def _ours(size: str, dim: int, block: int) -> dict[str, Any]:
    """As `reid_jax.evaluation` does it."""
    query_labels, gallery_labels, query, gallery = _data(size, dim)
    started, spent = time.perf_counter(), time.process_time()
    comparison = search.Comparison(lambda q, g: euclidean(q["vector"], g["vector"]))
    everyone = {"vector": np.concatenate([query, gallery])}
    placed, k = search.Gallery(comparison, everyone), searched(KReciprocal())
    some = {"vector": np.resize(everyone["vector"], (block, dim))}
    placed.nearest(some, k, block=block)
    between = [time.perf_counter()]  # compiled
    nearest = placed.nearest(everyone, k, block=block)
    between.append(time.perf_counter())
    del placed
    encoding = Encoding(
        KReciprocal(),
        nearest,
        lambda *pair: search.pair_distances(comparison, everyone, *pair),
        queries=len(query),
    )
    between.append(time.perf_counter())
    ranker = Ranker(query_labels, gallery_labels, camera_filter=True)
    placed, sample, jaccard = search.Gallery(comparison, {"vector": gallery}), None, 0.0
    for rows, part in search.blocks({"vector": query}, block):
        distances = np.asarray(placed.distances(part)[0])[: len(rows)]
        before = time.perf_counter()
        keys = encoding.keys(rows, distances)
        jaccard += time.perf_counter() - before
        ranker.update(rows, keys)
        sample = keys[:64].copy() if sample is None else sample
    between.append(time.perf_counter())
    seconds = np.diff([started, *between])
    named = dict(zip(("compile", "neighbours", "sets", "final"), seconds, strict=True))
    named["jaccard"] = jaccard
    named["total"] = sum(seconds)
    named["processor"] = time.process_time() - spent
    return {
        "seconds": {name: round(float(value), 2) for name, value in named.items()},
        "peak": round(memory.peak_gib(), 2),
        "metrics": ranker.result().metrics((1,)),
        "sample": sample,
    }


def _theirs(size: str, dim: int) -> dict[str, Any]:
    """The usual form: matrices of all images with all, and a loop over them."""
    _, _, query, gallery = _data(size, dim)
    everyone = np.concatenate([query, gallery])
    started, spent = time.perf_counter(), time.process_time()
    apart = everyone @ everyone.T
    norms = np.square(everyone).sum(1)
    apart = norms[:, None] + norms - 2 * apart  # squared
    between = time.perf_counter()
    keys = _full_matrices(apart, len(query))
    finished = time.perf_counter()
    seconds = {
        "distances": between - started,
        "rest": finished - between,
        "total": finished - started,
        "processor": time.process_time() - spent,
    }
    return {
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "peak": round(memory.peak_gib(), 2),
        "sample": keys[:64].copy(),
    }


def _full_matrices(apart: np.ndarray, queries: int) -> np.ndarray:
    """Final distances [Q, G] of squared ones [N, N]; k1 20, k2 6, lambda 0.3."""
    apart = apart / apart.max(1, keepdims=True)
    ranks = np.argsort(apart, axis=1).astype(np.int32)
    weights = np.zeros_like(apart)
    for image in range(len(apart)):
        own = _reciprocal(ranks, image, 20)
        members = own
        for other in own:
            theirs = _reciprocal(ranks, other, 10)
            if len(np.intersect1d(theirs, own)) > 2 / 3 * len(theirs):
                members = np.append(members, theirs)
        members = np.unique(members)
        row = np.exp(-apart[image, members])
        weights[image, members] = row / row.sum()
    averaged = np.zeros_like(weights)
    for image in range(len(apart)):
        averaged[image] = weights[ranks[image, :6]].mean(0)
    holders = [np.flatnonzero(column) for column in averaged.T]
    jaccard = np.zeros_like(apart[:queries])
    for image in range(queries):
        common = np.zeros(len(apart), np.float32)
        for member in np.flatnonzero(averaged[image]):
            rows = holders[member]
            common[rows] += np.minimum(averaged[image, member], averaged[rows, member])
        jaccard[image] = 1 - common / (2 - common)
    return (0.7 * jaccard + 0.3 * apart[:queries])[:, queries:]


def _reciprocal(ranks: np.ndarray, image: int, k: int) -> np.ndarray:
    near = ranks[image, : k + 1]
    return near[(ranks[near, : k + 1] == image).any(1)]


if __name__ == "__main__":
    main()
