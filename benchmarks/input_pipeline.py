r"""Images per second that the training input pipeline decodes and augments.

    python -m benchmarks.input_pipeline --dataset=synthetic/holistic_demo \
        --data_dir=data

Prints one JSON line per setting: one core without workers, two worker processes, and
batches from the device's memory (`config.data.resident_bytes`), with the ratio to one
core that decodes, and that of the host's own work per image. Nothing but the pipeline
runs meanwhile, so the figure is what it can deliver; on a CPU the "device" is the same
core.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence

import jax

from data_pipelines import loader, prepared, records, sampling, transforms
from reid_jax import errors
from reid_jax.runtime import sharding
from reid_jax.training import resident

STEPS = ("flip", "pad_crop", "random_erasing")


def measure(
    stored: records.Records,
    *,
    image_size: tuple[int, int],
    num_workers: int,
    batches: int,
    with_parts: bool,
) -> dict[str, float]:
    """Times `batches` batches of 16 x 4 images after the first ones."""
    plan = sampling.PKPlan(stored.person, identities=16, images_per_identity=4, seed=0)
    begin = time.perf_counter()
    batches_of = loader.train_loader(
        stored,
        plan,
        augment=transforms.build(STEPS),
        image_size=image_size,
        seed=0,
        num_workers=num_workers,
        with_parts=with_parts,
    )
    next(batches_of)
    first = time.perf_counter() - begin
    # What was read ahead while the pipeline started would count as free.
    for _ in range(10):
        next(batches_of)
    begin, cpu = time.perf_counter(), time.process_time()
    for _ in range(batches):
        next(batches_of)
    elapsed, cpu = time.perf_counter() - begin, time.process_time() - cpu
    batches_of.close()
    images = batches * plan.batch_size
    result = {
        "images_per_second": round(images / elapsed, 1),
        "first_batch_seconds": round(first, 3),
    }
    if not num_workers:
        # What one core could do if no other process used it.
        result["images_per_cpu_second"] = round(images / cpu, 1)
    return result


def measure_resident(
    stored: records.Records,
    *,
    image_size: tuple[int, int],
    batches: int,
    with_parts: bool,
) -> dict[str, float]:
    """Times `batches` batches of 16 x 4 images that are gathered on the device."""
    plan = sampling.PKPlan(stored.person, identities=16, images_per_identity=4, seed=0)
    begin = time.perf_counter()
    decoded = resident.ResidentSet(
        stored, sharding.make_mesh(), image_size=image_size, with_parts=with_parts
    )
    batches_of = resident.ResidentLoader(
        decoded, stored, plan, augment=transforms.build(STEPS), seed=0
    )
    jax.block_until_ready(next(batches_of))
    first = time.perf_counter() - begin
    begin = time.perf_counter()
    for _ in range(batches):
        jax.block_until_ready(next(batches_of))
    elapsed, cpu = time.perf_counter() - begin, time.process_time()
    for _ in range(batches):
        batches_of.host_part()
    cpu = time.process_time() - cpu
    images = batches * plan.batch_size
    return {
        "images_per_second": round(images / elapsed, 1),
        "first_batch_seconds": round(first, 3),
        # What is left to the host where the rest is done by an accelerator.
        "host_images_per_cpu_second": round(images / cpu, 1),
    }


def settings() -> list[tuple[int, set[int]]]:
    """(worker processes, cores that may be used) of each measurement."""
    cores = os.sched_getaffinity(0)
    return [(0, {min(cores)}), (2, cores)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", required=True, help="a prepared data set")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--batches", type=int, default=150)
    parser.add_argument("--with_parts", action="store_true")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    stored = prepared.open_records(args.dataset, "train", args.data_dir)
    every_core = os.sched_getaffinity(0)
    about = {
        "dataset": args.dataset,
        "image_size": [args.height, args.width],
        "steps": STEPS,
        "with_parts": args.with_parts,
    }
    decoding = None
    for num_workers, cores in settings():
        # Threads and processes that start from here on inherit it.
        os.sched_setaffinity(0, cores)
        result = measure(
            stored,
            image_size=(args.height, args.width),
            num_workers=num_workers,
            batches=args.batches,
            with_parts=args.with_parts,
        )
        used = min(len(cores), max(1, num_workers))
        line = {
            **about,
            "num_workers": num_workers,
            "cores": used,
            **result,
            "images_per_second_per_core": round(result["images_per_second"] / used, 1),
        }
        decoding = decoding or result
        print(json.dumps(line), flush=True)
    os.sched_setaffinity(0, {min(every_core)})
    result = measure_resident(
        stored,
        image_size=(args.height, args.width),
        batches=args.batches,
        with_parts=args.with_parts,
    )
    line = {
        **about,
        "resident": True,
        "device": jax.devices()[0].device_kind,
        **result,
        "ratio_to_one_core": round(
            result["images_per_second"] / decoding["images_per_second"], 2
        ),
        "ratio_of_host_work": round(
            result["host_images_per_cpu_second"] / decoding["images_per_cpu_second"], 2
        ),
    }
    print(json.dumps(line), flush=True)
    os.sched_setaffinity(0, every_core)


if __name__ == "__main__":
    with errors.answered():
        main()
