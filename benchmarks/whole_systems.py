"""Speed of a whole system's training step on a CPU, beside its backbone in PyTorch.

    taskset -c 1 python -m benchmarks.whole_systems --system=drop --repetitions=5

No other code has these systems, so beside each stands what it is built on: its
backbone alone in PyTorch, for images of the same size. Ours is the step of a run of
`configs/SYSTEM.py` in every stage: augmentation, all branches, all losses, the
optimizer; PyTorch's is that of `benchmarks.backbones`. What the system costs on top of
its backbone is therefore in the ratio, which is our images per second over PyTorch's.

Needs what `benchmarks.backbones` needs, and prints one line of JSON per stage with
the same figures. Repetitions alternate, in float32.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import jax

from benchmarks import backbones
from reid_jax import errors
from reid_jax.benchmark import sweep, workloads
from tests.goldens import filling

BACKBONES = {
    "aaformer": "vit_base",
    "cpacol": "vit_base",
    "cacenet": "resnet50",
    "drop": "hrnet_w32",
    "sanet": "resnet50",
}
"""What each paper's config stands on, by its name in `benchmarks.backbones`."""


def measure(
    system: str, *, batch: int, repetitions: int, scripts: ModuleType
) -> Iterator[dict[str, Any]]:
    """The lines of one system, one a stage.

    Raises:
      UserError: for a batch that is not of whole identities.
    """
    config = importlib.import_module(f"configs.{system}").get_config()
    point = next(sweep.points(config, sweeps=["model.dtype=float32"], batches=[batch]))
    for stage in workloads.build(point, trained=True)[1]:
        sweep.check_training(point, stage)
    size = config.data.height, config.data.width
    stride = config.model.get("stride", (16, 16))[0]
    name = BACKBONES[system]
    model = backbones.original(name, scripts, size, stride)
    theirs = backbones.Original(model, filling.images(*size, batch), scripts.torch)
    for work in workloads.workloads(point, ["train"]):
        runs = (lambda work=work: jax.block_until_ready(work.call())), theirs.train
        for _ in range(backbones.WARM_UP):
            for run in runs:
                run()
        seconds = [
            tuple(backbones.seconds_of(run) for run in runs) for _ in range(repetitions)
        ]
        yield {
            "system": system,
            "backbone": name,
            "image": f"{size[0]} x {size[1]}",
            "step": work.what,
            "batch": batch,
            **backbones.summary(seconds, batch),
            "compile_seconds": round(work.compile_seconds, 2),
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the lines of the systems that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--system", choices=[*BACKBONES, "all"], default="all")
    parser.add_argument("--batch", type=int, default=8, help="images, by fours")
    parser.add_argument("--repetitions", type=backbones.positive, default=5)
    options = parser.parse_args(arguments)
    jax.config.update("jax_platforms", "cpu")
    # What another run has compiled would make `compile_seconds` that of reading it.
    jax.config.update("jax_enable_compilation_cache", False)
    scripts = backbones.golden_scripts()
    scripts.torch.set_num_threads(len(os.sched_getaffinity(0)))
    chosen = BACKBONES if options.system == "all" else [options.system]
    for system in chosen:
        for line in measure(
            system,
            batch=options.batch,
            repetitions=options.repetitions,
            scripts=scripts,
        ):
            print(json.dumps(line | backbones.machine()), flush=True)


if __name__ == "__main__":
    with errors.answered():
        main()
