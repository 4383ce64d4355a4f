r"""Plans every system at full size and the paper's batch, for docs/accelerators.md.

    python -m benchmarks.full_size_plans
    python -m benchmarks.full_size_plans --systems=ViT,DROP --topologies=v5e:2x2
    python -m benchmarks.full_size_plans --systems= --topologies=

The plans lie in `benchmarks/results/plans`, one folder a system. Started again, this
goes on where it was stopped: a program that is there is traced, but not compiled again.
The last form compiles nothing and prints the table of what is there.
"""

from __future__ import annotations

import argparse
import importlib
import pathlib
import sys
from collections.abc import Sequence

import jax

from reid_jax.benchmark.lines import Line, aligned, optional, read_lines, short
from reid_jax.errors import UserError
from reid_jax.plan.plan import Request, plan
from reid_jax.storage import absolute

PLANS = pathlib.Path(__file__).parent / "results" / "plans"

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

_COLUMNS = (
    *("system", "step", "dtype", "chips", "GiB per chip", "fits", "bound by"),
    *("images/s at most", "TFLOPs", "HBM GB", "links MB", "all-reduces", "others"),
    "compile, s",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Plans what is missing, and prints the table of all there is."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--topologies", default=",".join(TOPOLOGIES))
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--measures", default="train")
    parser.add_argument("--batch_per_device", type=int)
    options = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")
    try:
        for name in filter(None, options.systems.split(",")):
            _plan(name, options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table())
    return 0


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


def table() -> str:
    """All plans that are there, in the order of `SYSTEMS`."""
    rows = [
        _row(name, line)
        for name in SYSTEMS
        for line in read_lines(absolute(PLANS / name / "plan.jsonl"))
    ]
    return aligned([_COLUMNS, *rows], left=4)


def _row(name: str, line: Line) -> tuple[str, ...]:
    weak = f", {line['batch'] // line['devices']} a chip"
    chips = line["topology"] + (weak if line["scaling"] == "weak" else "")
    named = (name, line["what"].removeprefix("train:"), line["dtype"], chips)
    memory = optional(line["total_bytes"] and line["total_bytes"] / 2**30, "{:.2f}")
    seconds = f"{line['compile_seconds']:.0f}"
    if "error" in line:
        return (*named, memory, "no", *[""] * 7, seconds)
    counts = {kind: one["count"] for kind, one in line["collectives"].items()}
    reduces = counts.pop("all-reduce", 0)
    return (
        *(*named, memory, "yes" if line["fits"] else "no", line["bound_by"]),
        short(line["bound_per_second"]),
        optional(line["flops_per_chip"] and line["flops_per_chip"] / 1e12, "{:.2f}"),
        f"{line['hbm_traffic_bytes'] / 1e9:.1f}",
        f"{line['link_bytes'] / 1e6:.0f}",
        *(str(reduces), str(sum(counts.values())), seconds),
    )


if __name__ == "__main__":
    sys.exit(main())
