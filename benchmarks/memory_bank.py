"""Time and memory of DROP's training step against the size M of its memory bank.

    python -m benchmarks.memory_bank
    python -m benchmarks.memory_bank --batch=8 --sizes=1,4 --dtype=bfloat16

The step is the one that training compiles: HRNet-W32 at 256 x 128, batches of 16 x 4,
eight parts, 702 identities, Adam, on all devices. Images are noise; the bank is full. M
counts the current batch, so that M = 1 compares a batch with itself. `part average` is
the same without a bank.

Prints a line of JSON per size: the median of the timed steps and the fastest, in
seconds; images per second; bytes of the bank; and per device, as the compiler plans it,
the bytes of arguments and of temporaries. Where the allocator keeps a record, its peak
is that of the process so far, so that the sizes are measured in ascending order.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from configs import drop
from reid_jax import experiment
from reid_jax.errors import UserError
from reid_jax.models.method import Method
from reid_jax.runtime import sharding
from reid_jax.step import StageProgram

IDENTITIES, IMAGES = 702, 4
STEPS_PER_EPOCH = 100


def main(argv: Sequence[str] | None = None) -> int:
    options = _parse(argv)
    try:
        sizes = sorted(int(size) for size in options.sizes.split(","))
        for size in (0, *sizes):
            print(json.dumps(measure(size, options)), flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="1,4,16", help="M, comma-separated")
    parser.add_argument("--batch", type=int, default=64, help="images of a batch")
    parser.add_argument("--steps", type=int, default=10, help="timed steps")
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16")
    parser.add_argument(
        "--config", default="dataset=occluded_duke", help="arguments of configs/drop.py"
    )
    return parser.parse_args(argv)


def measure(size: int, options: argparse.Namespace) -> dict[str, Any]:
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
    seconds = []
    for number in range(max(size, 2) + options.steps):  # fills the bank first
        begin = time.perf_counter()
        state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)
        if number >= max(size, 2):
            seconds.append(time.perf_counter() - begin)
    plan = compiled.memory_analysis()
    allocator = jax.devices()[0].memory_stats() or {}
    bank = jax.tree.leaves(state.collections.get("bank", {}))
    return {
        "bank": f"M = {size}" if size else "part average",
        "device": f"{mesh.size} x {jax.devices()[0].device_kind}",
        "batch": options.batch,
        "dtype": options.dtype,
        "seconds": statistics.median(seconds),
        "seconds_fastest": min(seconds),
        "images_per_second": options.batch / statistics.median(seconds),
        "loss_triplet": float(metrics["loss_triplet"]),
        "bank_bytes": sum(array.nbytes for array in bank),
        "argument_bytes": plan.argument_size_in_bytes,
        "temporary_bytes": plan.temp_size_in_bytes,
        "allocator_peak_bytes": allocator.get("peak_bytes_in_use"),
    }


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
    rows["label"] = np.arange(size, dtype=np.int32) // IMAGES
    return rows


if __name__ == "__main__":
    sys.exit(main())
