"""What the leaderboard compares, on what, and how long each of them is trained."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from data_pipelines.sampling import PKPlan
from data_pipelines.synthetic import beds, sets
from reid_jax import experiment
from reid_jax.errors import UserError
from reid_jax.experiment import Stage

DATASET = "varied_demo"
"""What all are trained on: it has what the beds ask for, and the part labels that some
need."""

IMAGES = 20_480
"""Images that each network sees in its training, unless `--images` says otherwise."""


class Paper(NamedTuple):
    """A paper's name, and what its system is compared with.

    Attributes:
      title: of the system.
      baseline: the row of `configs/NAME.py` that the paper calls so.
      plain: what the same network is without what the paper adds at test; "" where
        nothing can be left out.
      fields: for `--mode=evaluate`, that leave it out; empty where an evaluation scores
        both.
    """

    title: str
    baseline: str
    plain: str = ""
    fields: tuple[str, ...] = ()


PAPERS = {
    "aaformer": Paper(
        *("AAformer", "table4-vit", "CLS alone"), ("--config.model.vector=cls",)
    ),
    "cpacol": Paper("CpaCol", "table4-baseline", "before pairs"),
    "cacenet": Paper("CACE-Net", "table1-individual", "before pairs"),
    "drop": Paper(
        *("DROP", "table4-baseline", "global alone"),
        ("--config.model.embeddings=('global',)",),
    ),
    # HPNet, "the baseline model" of section 4.4: no routing and no global branch.
    "sanet": Paper("SANet", "table3-hpnet"),
}

IN_EPOCHS = ("ramp_epochs", "contrast_from", "mining_from")
"""Fields of `config.model` that are part of a schedule: CpaCol's."""


def beds_and_sets() -> dict[str, list[str]]:
    """Bed -> its sets, by difficulty."""
    found: dict[str, list[str]] = {}
    for name in beds.TRIALS:
        found.setdefault(name.split("_")[1], []).append(name)
    return found


@dataclasses.dataclass(frozen=True)
class System:
    """A row of a paper's config; "" is the paper's system."""

    paper: str
    row: str

    @property
    def name(self) -> str:
        """That of its folders, before the seed."""
        return f"{self.paper}-{self.row or 'full'}"

    @property
    def arguments(self) -> str:
        """What follows the colon of its config."""
        row = f",row={self.row}" if self.row else ""
        return f"demo,dataset=synthetic/{DATASET}{row}"

    def config(self) -> ConfigDict:
        """The demo as it stands."""
        module = importlib.import_module(f"configs.{self.paper}")
        return module.get_config(self.arguments)


def systems(papers: Iterable[str]) -> list[System]:
    """Baseline and system of each paper."""
    return [System(p, row) for p in papers for row in (PAPERS[p].baseline, "")]


def schedule(system: System, images: int) -> list[str]:
    """Flags with which a demo sees so many images, over all of its stages.

    Stages share them as in the demo, and warm-ups are stretched with their stages.

    Raises:
      UserError: if its batches do not make up that number.
    """
    config = system.config()
    person = np.array([shot.person for shot in sets.shots(DATASET, "train")])
    method = experiment.build_method(config, num_classes=len(np.unique(person)))
    stages = experiment.build_stages(config, method)
    per_epoch = [_steps_per_epoch(stage, person) for stage in stages]
    steps = _shared(stages, per_epoch, images)
    if steps is None:
        sizes = " and ".join(dict.fromkeys(str(stage.batch_size) for stage in stages))
        raise UserError(
            f"--images={images}: {system.name} sees images in batches of {sizes}; take "
            f"a multiple of 64, such as {IMAGES}"
        )
    flags = [f"--config.evaluation.{x}" for x in ("every_epochs=0", "pictures=False")]
    for stage, number, epoch in zip(stages, steps, per_epoch, strict=True):
        flags += _stretched(config, stage, number / epoch)
    return flags


def _steps_per_epoch(stage: Stage, person: np.ndarray) -> int:
    batch = {
        "identities": stage.identities,
        "images_per_identity": stage.images_per_identity,
    }
    return PKPlan(person, **batch, seed=0).steps_per_epoch


def _shared(
    stages: tuple[Stage, ...], per_epoch: list[int], images: int
) -> list[int] | None:
    """Batches of each stage, which make up `images`; None if none do."""
    sizes = [stage.batch_size for stage in stages]
    demo = [
        stage.epochs * number * size
        for stage, number, size in zip(stages, per_epoch, sizes, strict=True)
    ]
    steps = [
        round(images * share / sum(demo) / size)
        for share, size in zip(demo[:-1], sizes[:-1], strict=True)
    ]
    last, rest = divmod(images - int(np.dot(steps, sizes[:-1])), sizes[-1])
    steps.append(last)
    return None if rest or min(steps) < 1 else steps


def _stretched(config: ConfigDict, stage: Stage, epochs: float) -> Iterator[str]:
    """Flags of a stage of another length; what counts in epochs goes with it."""
    factor, path = epochs / stage.epochs, f"stages.{stage.name}"
    optimizer = config.stages[stage.name].optimizer
    fields = {
        f"{path}.epochs": epochs,
        f"{path}.optimizer.warmup_epochs": factor * optimizer.warmup_epochs,
    }
    if optimizer.milestones:
        milestones = tuple(factor * epoch for epoch in optimizer.milestones)
        fields[f"{path}.optimizer.milestones"] = milestones
    if stage.index == 0:
        own = [name for name in IN_EPOCHS if config.model.get(name)]
        fields |= {f"model.{name}": factor * config.model[name] for name in own}
    return (f"--config.{field}={value}" for field, value in fields.items())
