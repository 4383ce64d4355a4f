"""Time and memory of DROP's training step against the size M of its memory bank.

    python -m benchmarks.memory_bank
    python -m benchmarks.memory_bank --batch=8 --sizes=1,4 --dtype=bfloat16
    python -m benchmarks.memory_bank --alone

The step is the one that training compiles: HRNet-W32 at 256 x 128, batches of 16 x 4,
eight parts, 702 identities, Adam, on all devices. Images are noise; the bank is full. M
counts the current batch, so that M = 1 compares a batch with itself. `part average` is
the same without a bank. `--alone` measures what M changes by itself, on one device: the
bank's update, the triplet loss and its gradient, from embeddings of noise.

Prints a line of JSON per size: the median of the timed steps and the fastest, in
seconds; images per second; bytes of the bank; and per device, as the compiler plans it,
the bytes of arguments and of temporaries. Where the allocator keeps a record, its peak
is that of the process so far, so that the sizes are measured in ascending order.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import drop
from reid_jax import errors, experiment
from reid_jax.layers import memory_bank
from reid_jax.losses.part_triplet import part_average_triplet
from reid_jax.models.method import Method
from reid_jax.runtime import sharding
from reid_jax.training.step import StageProgram

IDENTITIES, IMAGES = 702, 4
STEPS_PER_EPOCH = 100


def main(argv: Sequence[str] | None = None) -> None:
    options = _parse(argv)
    sizes = sorted(int(size) for size in options.sizes.split(","))
    measure = measure_alone if options.alone else measure_step
    for size in sizes:
        print(json.dumps(measure(size, options)), flush=True)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes", default="0,1,4,16", help="M, comma-separated; 0 is part average"
    )
    parser.add_argument("--batch", type=int, default=64, help="images of a batch")
    parser.add_argument("--steps", type=int, default=10, help="timed steps")
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16")
    parser.add_argument(
        "--alone", action="store_true", help="bank and triplet loss, without the rest"
    )
    parser.add_argument(
        "--config", default="dataset=occluded_duke", help="arguments of configs/drop.py"
    )
    return parser.parse_args(argv)


def measure_step(size: int, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one size; 0 is the loss without a bank."""
    config = drop.get_config(options.config)
    config.model.dtype = options.dtype
    config.model.bank_batches = max(size, 1)
    config.model.triplet = "pct" if size else "part_average"
    config.stages.train.identities = options.batch // IMAGES
    method = experiment.build_method(config, num_classes=IDENTITIES)
    mesh = sharding.make_mesh()
    sharding.check_divides(options.batch, mesh, field="--batch")
    state, compiled = _compile(config, method, mesh)
    batch = sharding.put_batch(_batch(config, options.batch), mesh)
    bank = state.collections.get("bank", {})
    figures = _figures(size, options, compiled, bank, devices=mesh.size)
    seconds = []
    for _ in range(1 + options.steps):
        begin = time.perf_counter()
        state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - begin)
    loss = metrics["loss_triplet"]
    return figures | _measured(seconds[1:], options, loss)


def measure_alone(size: int, options: argparse.Namespace) -> dict[str, Any]:
    """The same of the bank and the triplet loss alone, in float32."""
    model = drop.get_config(options.config).model
    parts, width = len(model.part_groups), model.width
    bank = {}
    if size:
        shape = {"batch_size": options.batch, "parts": parts, "width": width}
        bank = _full(memory_bank.empty(batches=size, **shape))

    def loss(rows: jax.Array, bank: memory_bank.Bank) -> tuple[jax.Array, Any]:
        labels = _labels(options.batch)
        if bank:
            known, bank = memory_bank.remember(bank, rows, labels)
            rows, labels = known.features, known.labels
        return part_average_triplet(rows, labels, margin=model.margin), bank

    rows = jax.random.normal(jax.random.key(1), (options.batch, parts, width))
    step = jax.jit(jax.value_and_grad(loss, has_aux=True), donate_argnums=1)
    compiled = step.lower(rows, bank).compile()
    figures = _figures(size, options, compiled, bank, devices=1)
    seconds = []
    for _ in range(1 + options.steps):
        begin = time.perf_counter()
        (value, bank), gradient = compiled(rows, bank)
        jax.block_until_ready((value, gradient))
        seconds.append(time.perf_counter() - begin)
    return figures | _measured(seconds[1:], options, value)


def _figures(
    size: int, options: argparse.Namespace, compiled: Any, bank: Any, *, devices: int
) -> dict[str, Any]:
    """What is known before a step is taken."""
    plan = compiled.memory_analysis()
    return {
        "bank": f"M = {size}" if size else "part average",
        "device": f"{devices} x {jax.devices()[0].device_kind}",
        "batch": options.batch,
        "dtype": "float32" if options.alone else options.dtype,
        "bank_bytes": sum(array.nbytes for array in jax.tree.leaves(bank)),
        "argument_bytes": plan.argument_size_in_bytes,
        "temporary_bytes": plan.temp_size_in_bytes,
    }


def _measured(
    seconds: Sequence[float], options: argparse.Namespace, loss: jax.Array
) -> dict[str, Any]:
    allocator = jax.devices()[0].memory_stats() or {}
    return {
        "seconds": statistics.median(seconds),
        "seconds_fastest": min(seconds),
        "images_per_second": options.batch / statistics.median(seconds),
        "loss_triplet": float(loss),
        "allocator_peak_bytes": allocator.get("peak_bytes_in_use"),
    }


def _full(bank: memory_bank.Bank) -> memory_bank.Bank:
    """A bank of noise in the place of an empty one."""
    batches, rows = bank["labels"].shape
    return {
        "embeddings": jax.random.normal(jax.random.key(0), bank["embeddings"].shape),
        "labels": jnp.tile(_labels(rows), (batches, 1)),
        "pointer": bank["pointer"],
    }


def _labels(rows: int) -> jax.Array:
    return jnp.arange(rows, dtype=jnp.int32) // IMAGES


def _compile(config: Any, method: Method, mesh: jax.sharding.Mesh) -> tuple[Any, Any]:
    """A fresh state on the mesh, and the step as `train.py` compiles it."""
    (stage,) = experiment.build_stages(config, method)
    shapes = experiment.example_batch(config, stage.batch_size)
    program = StageProgram(
        method, stage, mesh, shapes=shapes, steps_per_epoch=STEPS_PER_EPOCH, seed=0
    )
    places = sharding.batch_sharding(mesh)
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=places), shapes
    )
    state = program.fresh()
    if "bank" in state.collections:
        # Where its rows lie is the program's to say; what they are is not.
        full = jax.jit(_full, out_shardings=program.layout.collections["bank"])
        bank = full(state.collections["bank"])
        state = state.replace(collections={**state.collections, "bank": bank})
    return state, program.step.lower(state, batch).compile()


def _batch(config: Any, size: int) -> dict[str, np.ndarray]:
    """Noise with labels: as many images of an identity as in training."""
    rng = np.random.default_rng(0)
    rows = {
        name: np.zeros(x.shape, x.dtype)
        for name, x in experiment.example_batch(config, size).items()
    }
    rows["image"] = rng.integers(0, 256, rows["image"].shape, dtype=np.uint8)
    rows["parts"] = rng.integers(0, 36, rows["parts"].shape, dtype=np.uint8)
    rows["label"] = np.asarray(_labels(size))
    return rows


if __name__ == "__main__":
    with errors.answered():
        main()
