"""The rendered sets by name, as in `synthetic/NAME`: their splits and pictures."""

from data_pipelines.synthetic import beds, plan, seeds, varied
from data_pipelines.synthetic.plan import Shot

NAMES = (
    *(f"{variant}_{size}" for variant in plan.VARIANTS for size in plan.SIZES),
    *varied.NAMES,
    *plan.PRETRAINING,
    *beds.TRIALS,
)


def splits(name: str) -> tuple[str, ...]:
    """The splits of a set."""
    return beds.SPLITS if name in beds.TRIALS else plan.SPLITS


def shots(name: str, split: str) -> list[Shot]:
    """The pictures of a set's split in the order of the records."""
    if name in plan.PRETRAINING:
        return plan.shots("pretrain", name, split, seed=seeds.PRETRAINING)
    if name in beds.TRIALS:
        return beds.shots(name, split)
    variant, size = name.split("_")
    if name in varied.NAMES:
        return varied.shots(size, split)
    return plan.shots(variant, size, split)
