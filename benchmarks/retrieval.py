"""Time and memory of an evaluation at the size of the real data sets.

    python -m benchmarks.retrieval --size=market --dim=3840

Random features with realistic labels go through the same distance and ranking as an
evaluation, block by block. Prints one line of JSON: seconds, peak memory, and how many
times faster the ranking is than an argsort of every row, measured in the same run on
some of the queries; their metrics must agree.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import time

import jax
import numpy as np

from benchmarks import memory
from reid_jax.retrieval.distances import euclidean
from reid_jax.retrieval.labels import Labels
from reid_jax.retrieval.ranking import Ranker

SAMPLE = 256
"""Queries that the reference ranks."""


@dataclasses.dataclass(frozen=True)
class Size:
    """Counts of a data set: images, test identities, cameras, distractor images."""

    query: int
    gallery: int
    persons: int
    cameras: int
    distractors: int


SIZES = {
    "tiny": Size(query=40, gallery=300, persons=20, cameras=3, distractors=30),
    "cuhk03np": Size(query=1_400, gallery=5_328, persons=700, cameras=2, distractors=0),
    "market": Size(
        query=3_368, gallery=15_913, persons=750, cameras=6, distractors=2_798
    ),
    "msmt17": Size(
        query=11_659, gallery=82_161, persons=3_060, cameras=15, distractors=0
    ),
}


def main(arguments: list[str] | None = None) -> dict[str, object]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="market")
    parser.add_argument("--dim", type=int, default=3840, help="of the features")
    parser.add_argument("--block", type=int, default=512, help="queries per block")
    options = parser.parse_args(arguments)
    report = measure(SIZES[options.size], dim=options.dim, block=options.block)
    report = {"size": options.size, "dim": options.dim, "block": options.block} | report
    print(json.dumps(report))
    return report


def measure(size: Size, *, dim: int, block: int) -> dict[str, object]:
    rng = np.random.default_rng(0)
    query, gallery = labels(size, rng)
    query_features = features(query, dim, rng)
    gallery_features = jax.device_put(features(gallery, dim, rng))
    distance = jax.jit(euclidean)
    first = np.resize(query_features[:block], (block, dim))
    jax.block_until_ready(distance(first, gallery_features))  # compile
    seconds = {"distance": 0.0, "ranking": 0.0}
    sample = None
    started = time.perf_counter()
    ranker = Ranker(query, gallery, camera_filter=True)
    for start in range(0, size.query, block):
        rows = np.arange(start, min(start + block, size.query))
        padded = np.resize(rows, block)
        before = time.perf_counter()
        keys = jax.block_until_ready(distance(query_features[padded], gallery_features))
        between = time.perf_counter()
        ranker.update(rows, keys)
        seconds["distance"] += between - before
        seconds["ranking"] += time.perf_counter() - between
        if sample is None:
            sample = np.array(keys[:SAMPLE])
    result = ranker.result()
    seconds["total"] = time.perf_counter() - started
    peak = memory.peak_gib()  # before the reference, which needs more
    return {
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "peak_memory_gib": round(peak, 2),
        "times_faster_than_argsort": round(_ratio(sample, query, gallery), 1),
        "metrics": result.metrics((1, 5, 10)),
        "device": jax.devices()[0].device_kind,
        "machine": platform.machine(),
        "jax": jax.__version__,
    }


def _ratio(keys: np.ndarray, query: Labels, gallery: Labels) -> float:
    """Seconds of the reference over those of `Ranker` for the first queries."""
    query = Labels(query.person[: len(keys)], query.camera[: len(keys)])
    ranker = Ranker(query, gallery, camera_filter=True)
    rows, times = np.arange(len(keys)), [time.perf_counter()]
    # As in the evaluation, the block lies on the device when the ranking begins.
    device_keys = jax.block_until_ready(jax.device_put(keys))
    ranker.update(rows, device_keys)  # compiles, where there is something to compile
    times.append(time.perf_counter())
    ranker.update(rows, device_keys)
    times.append(time.perf_counter())
    expected = _argsort_reference(keys, query, gallery)
    times.append(time.perf_counter())
    np.testing.assert_allclose(ranker.result().mAP, expected, rtol=1e-9)
    return (times[3] - times[2]) / (times[2] - times[1])


def _argsort_reference(keys: np.ndarray, query: Labels, gallery: Labels) -> float:
    """mAP as it is usually computed: order every row, then look for the matches."""
    precisions = []
    for row, person, camera in zip(keys, query.person, query.camera, strict=True):
        order = np.argsort(row, kind="stable")
        same = gallery.person[order] == person
        kept = ~(same & (gallery.camera[order] == camera))
        hits = same[kept]
        if hits.any():
            precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
            precisions.append(precision[hits].mean())
    return float(np.mean(precisions))


def labels(size: Size, rng: np.random.Generator) -> tuple[Labels, Labels]:
    """Every identity is in both sets; the rest of the images fall at random."""

    def one(images: int, distractors: int) -> Labels:
        labelled = images - distractors
        person = np.concatenate(
            [
                np.arange(1, size.persons + 1)[:labelled],
                rng.integers(1, size.persons + 1, max(labelled - size.persons, 0)),
                np.zeros(distractors, int),
            ]
        )
        return Labels(rng.permutation(person), rng.integers(0, size.cameras, images))

    return one(size.query, 0), one(size.gallery, size.distractors)


def features(
    labels: Labels, dim: int, rng: np.random.Generator, *, alike: float = 0.15
) -> np.ndarray:
    """Unit vectors float32 [N, dim], those of a person a little `alike`."""
    features = rng.standard_normal((len(labels), dim), dtype=np.float32)
    shift = alike * np.random.default_rng(1).standard_normal(
        (labels.person.max() + 1, dim), dtype=np.float32
    )
    for start in range(0, len(features), 4096):  # no second array of this size
        part = slice(start, start + 4096)
        features[part] += shift[labels.person[part]]
        features[part] /= np.linalg.norm(features[part], axis=1, keepdims=True)
    return features


if __name__ == "__main__":
    main()
