r"""Plans every system at full size and the paper's batch, for docs/plans.md.

    python -m benchmarks.full_size_plans
    python -m benchmarks.full_size_plans --systems=ViT,DROP --topologies=v5e:2x2
    python -m benchmarks.full_size_plans --systems= --topologies=

The plans lie in `benchmarks/results/plans`, one folder a system. Started again, this
goes on where it was stopped: a program that is there is traced, but not compiled again.
The last form compiles nothing and writes the page of what is there.
"""

from __future__ import annotations

import argparse
import importlib
import pathlib
from collections.abc import Sequence

import jax

from benchmarks.plans_page import page
from reid_jax import errors
from reid_jax.benchmark.lines import Line, read_lines
from reid_jax.errors import UserError
from reid_jax.plan.plan import Request, plan
from reid_jax.runtime import workdir as workdirs
from reid_jax.storage import absolute

PLANS = pathlib.Path(__file__).parent / "results" / "plans"
PAGE = pathlib.Path(__file__).parents[1] / "docs" / "plans.md"

SYSTEMS = {
    "ViT": "baseline:backbone=vit",
    "AAformer": "aaformer",
    "CpaCol": "cpacol",
    "ResNet-50": "baseline:backbone=resnet50",
    "CACE-Net": "cacenet",
    "SANet": "sanet",
    "HRNet-W32": "baseline:backbone=hrnet_w32",
    "DROP": "drop:dataset=occluded_duke",
    "ViT-S": "baseline:backbone=vit_small",
    "ViT-L": "baseline:backbone=vit_large",
    "ViT-stripes": "baseline:backbone=transreid",
    "PCB": "baseline:backbone=pcb",
    "ResNet-50-IBN-a": "baseline:backbone=resnet50_ibn_a",
}

TOPOLOGIES = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2", "h200:1", "h200:8")


def main(argv: Sequence[str] | None = None) -> None:
    """Plans what is missing, and writes the page of all there is."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--topologies", default=",".join(TOPOLOGIES))
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--measures", default="train")
    parser.add_argument("--batch_per_device", type=int)
    options = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")
    for name in filter(None, options.systems.split(",")):
        _plan(name, options)
    workdirs.write_text(PAGE, page(plans()))
    print(f"{PAGE.name} is written")


def _plan(name: str, options: argparse.Namespace) -> None:
    if name not in SYSTEMS:
        raise UserError(f"--systems={name}: known are {', '.join(SYSTEMS)}")
    module, _, argument = SYSTEMS[name].partition(":")
    config = importlib.import_module(f"configs.{module}").get_config(argument or None)
    per_device = options.batch_per_device
    request = Request(
        topologies=options.topologies.split(","),
        measures=options.measures.split(","),
        batches=[per_device] if per_device else (),
        per_device=bool(per_device),
        sweeps=[f"model.dtype={options.dtypes}"],
    )
    plan(config, str(PLANS / name), request)


def plans() -> dict[str, list[Line]]:
    """The lines of each system, in the order of `SYSTEMS`."""
    return {name: read_lines(absolute(PLANS / name / "plan.jsonl")) for name in SYSTEMS}


if __name__ == "__main__":
    with errors.answered():
        main()
