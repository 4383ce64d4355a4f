"""Pairs of images per second and memory of the 4D correlation, block by block.

    python -m benchmarks.correlation --pairs=64 --blocks 1 8 32 64

Compares pairs of maps as CpaCol does (3 levels of 256 channels at 22 x 11 places:
similarity, center-pivot stack, one number per pair), a block of pairs at a time, for
every size of block: "score" only scores, "train" also takes the gradient of all
parameters. "difference" is that of the results to those of the smallest block; more
than rounding is an error. Then the same stack with dense 4-D kernels, zero where
center-pivot has no taps, scores a few of the same pairs. XLA has no 4-D convolutions
on accelerators, so there the dense stack is left out.

Memory is what XLA sets aside for arguments, results and temporaries; "process" is the
greatest memory of the process so far, compilation included.
"""

from __future__ import annotations

import argparse
import functools
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import memory
from reid_jax.layers.correlation4d import CorrelationStack, similarity
from reid_jax.layers.pair_blocks import in_blocks

IMAGES = 16
LEVELS = 3
DENSE_PAIRS = 2
ROW = "{:>6} {:>6} {:>10} {:>12} {:>13} {:>11}"


def scores(
    variables: Any, pairs: jax.Array, *, stack: CorrelationStack, block: int
) -> jax.Array:
    """One number for each of `pairs` [N, 2], indices into the images' maps."""

    def compare(pairs: jax.Array) -> jax.Array:
        vectors = stack.apply(variables["network"], _correlation(variables, pairs))
        return vectors["vector"].mean(-1)

    return in_blocks(compare, pairs, block=block)


def gradient(
    variables: Any, pairs: jax.Array, *, stack: CorrelationStack, block: int
) -> Any:
    def loss(network: Any) -> jax.Array:
        some = {**variables, "network": network}
        return scores(some, pairs, stack=stack, block=block).sum()

    return jax.grad(loss)(variables["network"])


def _correlation(variables: Any, pairs: jax.Array) -> jax.Array:
    maps = variables["maps"]
    return similarity(maps[pairs[:, 0]], maps[pairs[:, 1]])


MODES = {"score": scores, "train": gradient}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--modes", choices=MODES, nargs="+", default=[*MODES])
    parser.add_argument("--places", type=int, nargs=2, default=[22, 11])
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args(arguments)
    stack = CorrelationStack(dtype=jnp.dtype(options.dtype))
    variables = _variables(stack, options.places, options.channels)
    pairs = np.random.default_rng(1).integers(0, IMAGES, (options.pairs, 2))
    print(f"{options.pairs} pairs of {options.dtype} maps on {_device()}")
    print(
        ROW.format(
            "mode", "block", "pairs/s", "memory MiB", "process MiB", "difference"
        )
    )
    lines = []
    for mode in options.modes:
        expected = None
        for block in sorted(options.blocks):
            run = functools.partial(MODES[mode], stack=stack, block=block)
            result, line = _measure(run, variables, pairs, options.repetitions)
            expected = result if expected is None else expected
            difference = f"{_difference(result, expected, options.dtype):.1e}"
            lines.append(
                {"mode": mode, "block": block, **line, "difference": difference}
            )
            print(ROW.format(*lines[-1].values()), flush=True)
    ratio = _dense_ratio(stack, variables, pairs[:DENSE_PAIRS], options)
    return {"lines": lines, "times_faster_than_dense": ratio}


def _variables(
    stack: CorrelationStack, places: Sequence[int], channels: int
) -> dict[str, Any]:
    """Random maps [IMAGES, LEVELS, H, W, C] and the parameters of the stack."""
    shape = (IMAGES, LEVELS, *places, channels)
    maps = np.random.default_rng(0).normal(size=shape)
    correlation = jnp.zeros((1, *places, *places, LEVELS))
    return {
        "maps": jnp.asarray(maps, stack.dtype),
        "network": jax.jit(stack.init)(jax.random.key(0), correlation),
    }


def _measure(
    function: Callable[..., Any], variables: Any, pairs: np.ndarray, repetitions: int
) -> tuple[Any, dict[str, float]]:
    compiled = jax.jit(function).lower(variables, pairs).compile()
    seconds, result = _seconds(compiled, variables, pairs, repetitions)
    plan = compiled.memory_analysis()
    planned = (
        plan.temp_size_in_bytes
        + plan.argument_size_in_bytes
        + plan.output_size_in_bytes
    )
    return result, {
        "pairs_per_second": round(len(pairs) / seconds, 1),
        "memory_mib": round(planned / 2**20, 1),
        "process_mib": round(1024 * memory.peak_gib()),
    }


def _seconds(
    run: Callable[..., Any], variables: Any, pairs: np.ndarray, repetitions: int
) -> tuple[float, Any]:
    """Median seconds of a compiled function, and its result."""
    result = jax.block_until_ready(run(variables, pairs))
    seconds = []
    for _ in range(repetitions):
        started = time.perf_counter()
        jax.block_until_ready(run(variables, pairs))
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), result


def _difference(result: Any, expected: Any, dtype: str) -> float:
    """Length of the difference over that of `expected`, all arrays as one vector.

    Raises:
      AssertionError: if it is more than rounding explains. A few of the millions of
        ReLUs lie so near to their kink that they pass a gradient or not as the sums
        before them are rounded, which is why the bounds are not tighter.
    """
    some, other = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
        for tree in (result, expected)
    )
    difference = float(np.linalg.norm(some - other) / np.linalg.norm(other))
    assert difference < (1e-2 if dtype == "float32" else 0.3), difference
    return difference


def _dense_ratio(
    stack: CorrelationStack,
    variables: Any,
    pairs: np.ndarray,
    options: argparse.Namespace,
) -> float | None:
    """Seconds of the dense stack over ours, on the same pairs; None if impossible."""
    if jax.default_backend() != "cpu":
        print("dense 4-D convolutions: not available on this device")
        return None
    dense = jax.jit(functools.partial(_dense_scores, stack=stack))
    ours = jax.jit(functools.partial(scores, stack=stack, block=len(pairs)))
    slow, expected = _seconds(dense, variables, pairs, 1)
    fast, result = _seconds(ours, variables, pairs, options.repetitions)
    difference = _difference(result, expected, options.dtype)
    print(
        f"dense 4-D convolutions: {len(pairs) / slow:.2f} pairs/s on {len(pairs)} "
        f"pairs; center-pivot {slow / fast:.0f} times faster, "
        f"difference {difference:.1e}"
    )
    return slow / fast


def _dense_scores(
    variables: Any, pairs: jax.Array, *, stack: CorrelationStack
) -> jax.Array:
    """`scores` with 4-D kernels that are zero off the two planes."""
    values = _correlation(variables, pairs).astype(stack.dtype)
    params = variables["network"]["params"]
    for i, (k, stride, channels) in enumerate(stack.blocks):
        conv, norm = params[f"conv_{i}"], params[f"norm_{i}"]
        centre = k // 2
        kernel = jnp.zeros((k, k, k, k, values.shape[-1], channels))
        kernel = kernel.at[:, :, centre, centre].add(conv["query"]["kernel"])
        kernel = kernel.at[centre, centre].add(conv["gallery"]["kernel"])
        values = jax.lax.conv_general_dilated(
            values,
            kernel.astype(stack.dtype),
            window_strides=(stride,) * 4,
            padding=[(centre, (k - 1) // 2)] * 4,
            dimension_numbers=("NHWYXC", "HWYXIO", "NHWYXC"),
        ).astype(jnp.float32)
        values += conv["query"]["bias"] + conv["gallery"]["bias"]
        groups = values.reshape(len(values), -1, 4, channels // 4)
        mean, var = (f(groups, (1, 3), keepdims=True) for f in (jnp.mean, jnp.var))
        groups = (groups - mean) / jnp.sqrt(var + 1e-5)
        values = groups.reshape(values.shape) * norm["scale"] + norm["bias"]
        values = jax.nn.relu(values).astype(stack.dtype)
    return values.astype(jnp.float32).mean((1, 2, 3, 4)).mean(-1)


def _device() -> str:
    return (
        f"{jax.devices()[0].device_kind} ({platform.machine()}), JAX {jax.__version__}"
    )


if __name__ == "__main__":
    main()
