"""The rendered sets by name, as in `synthetic/NAME`: their splits and pictures."""

from data_pipelines.synthetic import plan, seeds
from data_pipelines.synthetic.plan import Shot

NAMES = (
    *(f"{variant}_{size}" for variant in plan.VARIANTS for size in plan.SIZES),
    *plan.PRETRAINING,
)


def splits(name: str) -> tuple[str, ...]:
    """The splits of a set."""
    return plan.SPLITS


def shots(name: str, split: str) -> list[Shot]:
    """The pictures of a set's split in the order of the records."""
    if name in plan.PRETRAINING:
        return plan.shots("pretrain", name, split, seed=seeds.PRETRAINING)
    variant, size = name.split("_")
    return plan.shots(variant, size, split)
