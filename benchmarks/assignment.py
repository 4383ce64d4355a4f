"""What AAformer's assignment costs: Sinkhorn beside nearest neighbour beside none.

    python -m benchmarks.assignment
    python -m benchmarks.assignment --image=384x384 --granularities=5 --batches=1

Three things are timed with random numbers: the assignment of one layer alone, in all
its heads (scores, balance, arg-max); that layer's attention with the assignment; and
the network from images to embeddings. "none" has the same part tokens and attention
with stripes that are fixed in advance. The second command has the 576 patches and five
part tokens of the paper's section III-B, whose 0.46 ms are its time on a GPU.

The candidates take turns, so that all see the same load of the machine; a time is that
of the fastest turn, since what else runs can only add to it. Prints one line of JSON
for each, with its time over that of "none" where there is one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reid_jax.backbones.patches import grid_size
from reid_jax.benchmark.timing import time_calls
from reid_jax.models import aaformer

ASSIGNMENTS = {"sinkhorn": "ot", "nearest neighbour": "nn", "none": "stripes"}

Methods = dict[str, aaformer.Method]

Calls = dict[str, Callable[[], Any]]
"""What is timed, by the name of its assignment."""


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Prints and returns the lines."""
    options = _parse(arguments)
    size = tuple(map(int, options.image.split("x")))
    fields = {name: getattr(options, name) for name in ("width", "heads", "depth")}
    fields["granularities"] = tuple(map(int, options.granularities.split(",")))
    methods = {
        name: aaformer.Method(2, size, assignment=assignment, **fields)
        for name, assignment in ASSIGNMENTS.items()
    }
    device = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    lines = []
    for batch in map(int, options.batches.split(",")):
        for what, calls in _cases(methods, size, batch):
            for line in _measure(calls, options.repeats):
                line = {"what": what, "batch": batch, **line, **device}
                print(json.dumps(line), flush=True)
                lines.append(line)
    return lines


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--image", default="256x128", help="height and width")
    parser.add_argument("--granularities", default="2,3", help="parts of partitions")
    parser.add_argument("--batches", default="1,64", help="images")
    parser.add_argument("--width", type=int, default=768, help="of the Transformer")
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--depth", type=int, default=12, help="layers of the network")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each")
    return parser.parse_args(arguments)


def _cases(
    methods: Methods, size: tuple[int, int], batch: int
) -> Iterator[tuple[str, Calls]]:
    """The calls of each thing that is timed, made when it is its turn."""
    options = methods["none"].options
    rows, columns = grid_size(size, options.patch_size, options.stride)
    parts, patches = sum(options.counts), rows * columns
    rng = np.random.default_rng(0)
    head = options.width // options.heads
    shape = (3, batch, 1 + parts + patches, options.heads, head)
    tokens = jnp.asarray(rng.normal(size=shape), jnp.float32)
    yield f"assignment of {patches} patches to {parts} parts", _alone(methods, tokens)
    yield "attention of one layer", _attention(methods, size, tokens)
    images = jnp.asarray(rng.integers(0, 256, (batch, *size, 3)), jnp.uint8)
    yield f"network of {options.depth} layers", _networks(methods, images)


def _alone(methods: Methods, tokens: jax.Array) -> Calls:
    border = 1 + sum(methods["none"].options.counts)
    queries, keys = tokens[0, :, 1:border], tokens[1, :, border:]
    calls = {}
    for name, method in methods.items():
        if name != "none":
            assign = partial(aaformer.auto_assignment, method.options)
            calls[name] = partial(jax.jit(assign), queries, keys)
    return calls


def _attention(methods: Methods, size: tuple[int, int], tokens: jax.Array) -> Calls:
    calls = {}
    for name, method in methods.items():
        given = method.given_subsets(size)
        attend = aaformer.auto_alignment(method.options, given, train=True)
        calls[name] = partial(jax.jit(attend), *tokens)
    return calls


def _networks(methods: Methods, images: jax.Array) -> Calls:
    variables = jax.jit(methods["none"].init)(jax.random.key(0), {"image": images})
    return {
        name: partial(jax.jit(method.embed), variables, images)
        for name, method in methods.items()
    }


def _measure(calls: Calls, repeats: int) -> Iterator[dict[str, Any]]:
    """The fastest of calls that take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            timed = time_calls(call, jax.devices()[:1], windows=1)
            seconds[name].append(timed.seconds)
    least = {name: min(found) for name, found in seconds.items()}
    for name, time in least.items():
        line = {"assignment": name, "ms": float(f"{1e3 * time:.4g}")}
        if "none" in least:
            line["times none"] = round(time / least["none"], 3)
        yield line


if __name__ == "__main__":
    main()
