"""`docs/plans.md`: what `benchmarks.full_size_plans` has compiled so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from reid_jax.benchmark.lines import Line, aligned, label, optional, short
from reid_jax.plan.plan_report import bound_efficiencies

Plans = Mapping[str, Sequence[Line]]
"""The lines of each system, by its name."""

_HEAD = """\
# Plans at full size

What each training step takes, moves and sends, per chip, and the images per second
that no run can exceed: read from programs that were compiled for chips that were not
there, so nothing of it was run. [accelerators.md](accelerators.md) says how to read it.
Batches and images are those of the papers' configs (64 images; CACE-Net 16). Written by

```bash
python -m benchmarks.full_size_plans
```

which keeps each line in `benchmarks/results/plans` as it comes, and goes on where it
was stopped; `--systems=DROP --topologies=v5e:2x2 --dtypes=bfloat16` takes a part of it.
What is missing below was not compiled yet. "ViT-stripes" is TransReID, the baseline
`backbone=transreid`.
"""

_SCALING = """\
## Scaling

The same number of images on each chip, and more and more chips (weak scaling).
Efficiency: the bound per chip, relative to the fewest chips. Links: the time that they
need, relative to the bound.

```bash
python -m benchmarks.full_size_plans --systems=AAformer,DROP --dtypes=bfloat16 \\
  --batch_per_device=16 --topologies=v5e:2x2,v5e:4x4,v5e:8x8,v5e:16x16
```
"""

_COLUMNS = (
    *("system", "step", "chips", "GiB per chip", "fits", "bound by"),
    *("images/s at most", "TFLOPs", "HBM GB", "links MB", "all-reduces", "others"),
)

_SCALING_COLUMNS = (
    *("system", "step", "dtype", "chips", "images", "GiB per chip", "bound by"),
    *("images/s at most", "efficiency", "links"),
)


def page(plans: Plans) -> str:
    """The whole page."""
    lines = [(name, line) for name, lines in plans.items() for line in lines]
    parts = [_HEAD]
    for dtype in ("bfloat16", "float32"):
        strong = [
            _row(name, line)
            for name, line in sorted(lines, key=_place)
            if line["dtype"] == dtype and line["scaling"] == "strong"
        ]
        if strong:
            parts.append(f"## {dtype}\n\n{aligned([_COLUMNS, *strong], left=3)}")
    weak = [row for name, lines in plans.items() for row in _scaling(name, lines)]
    if weak:
        table = aligned([_SCALING_COLUMNS, *weak], left=4)
        parts.append(f"{_SCALING}\n{table}")
    return "\n".join(parts)


def _place(named: tuple[str, Line]) -> tuple[int, int, str]:
    """GPUs last, and more of them later; systems stay in their order."""
    line = named[1]
    tpu = line["device_kind"].startswith("TPU")
    return (0 if tpu else 1, line["devices"], line["topology"])


def _row(name: str, line: Line) -> tuple[str, ...]:
    named = (name, _step(line), line["topology"])
    memory = optional(line["total_bytes"] and line["total_bytes"] / 2**30, "{:.2f}")
    if "error" in line:
        return (*named, memory, "no", *[""] * 7)
    counts = {kind: one["count"] for kind, one in line["collectives"].items()}
    reduces = counts.pop("all-reduce", 0)
    return (
        *(*named, memory, "yes" if line["fits"] else "no", line["bound_by"]),
        short(line["bound_per_second"]),
        optional(line["flops_per_chip"] and line["flops_per_chip"] / 1e12, "{:.2f}"),
        f"{line['hbm_traffic_bytes'] / 1e9:.1f}",
        f"{line['link_bytes'] / 1e6:.0f}",
        *(str(reduces), str(sum(counts.values()))),
    )


def _step(line: Line) -> str:
    """The stage, and what of the paper's config is changed beside the dtype."""
    stage = line["what"].removeprefix("train:")
    changed = {n: value for n, value in line["sweep"].items() if n != "model.dtype"}
    return f"{stage} {label(changed)}".strip()


def _scaling(name: str, lines: Iterable[Line]) -> list[tuple[str, ...]]:
    weak = sorted(
        (line for line in lines if line["scaling"] == "weak" and "error" not in line),
        key=lambda line: (
            *(_step(line), line["dtype"], line["chip"]),
            *(line["batch"] / line["devices"], line["devices"]),
        ),
    )
    return [
        (
            *(name, _step(line), line["dtype"], line["topology"]),
            *(str(line["batch"]), f"{line['total_bytes'] / 2**30:.2f}"),
            *(line["bound_by"], short(line["bound_per_second"])),
            optional(efficiency, "{:.0%}"),
            f"{line['share_of_links']:.0%}",
        )
        for line, efficiency in zip(weak, bound_efficiencies(weak), strict=True)
    ]
