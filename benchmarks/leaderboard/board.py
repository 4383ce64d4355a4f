"""A folder of the leaderboard's runs: which are missing, and what is known of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath
from tqdm import tqdm

from benchmarks import beds, trainings
from benchmarks.leaderboard.standings import Group, Line, Network
from benchmarks.leaderboard.systems import IMAGES, IN_EPOCHS, PAPERS, System, systems
from configs import run as run_config
from reid_jax import experiment, storage
from reid_jax.errors import UserError
from reid_jax.models.method import parameter_count
from reid_jax.runtime import checkpoint, workdir

_OWN = re.compile(
    r"--config\.(seed|evaluate_on|data\.dataset|evaluation\.(every_epochs|pictures)|"
    rf"model\.({'|'.join(IN_EPOCHS)})|stages\.\w+\.(epochs|identities|"
    r"images_per_identity|optimizer\.(warmup_epochs|milestones)))="
)
"""Fields that are set here, or that schedules count on."""

_FREE = re.compile(
    r"--config\.(data\.(data_dir|num_workers)|trackers|checkpoint\.\w+)="
)
"""Fields that may be others when a run is asked for again."""


class Board:
    """The runs of a folder.

    Attributes:
      folder: with a folder for each run, and `leaderboard.json`.
      facts: what that file has: `images` that each network saw, `flags` that all runs
        got, `ceilings`, the oracle's mAP in percent by set, and `parameters` by system.
    """

    def __init__(self, folder: str):
        self.folder = storage.absolute(folder)
        self._path = self.folder / "leaderboard.json"
        there = self._path.exists()
        self.facts = workdir.read_object(self._path) if there else {}
        self._free: list[str] = []

    def claim(self, images: int | None, flags: Sequence[str]) -> None:
        """Makes this the folder of such runs, once something is kept of them.

        Args:
          images: that each network sees; None for what is there, or `IMAGES`.
          flags: for all runs.

        Raises:
          UserError: for flags that are no fields, or are set here; if the folder is of
            other runs.
        """
        for flag in flags:
            if not re.match(r"--config\.[\w.]+=", flag):
                raise UserError(f"{flag}: fields follow --, as --config.NAME=VALUE")
            if _OWN.match(flag):
                raise UserError(f"{flag}: the leaderboard sets that field itself")
        kept = [flag for flag in flags if not _FREE.match(flag)]
        wanted = {"images": images or self.facts.get("images", IMAGES), "flags": kept}
        there = {name: self.facts.get(name) for name in wanted}
        if self.facts and there != wanted:
            known = " ".join((f"--images={there['images']} --", *there["flags"]))
            raise UserError(
                f"{self.folder} holds a leaderboard of {known.removesuffix(' --')}: "
                "choose another --workdir"
            )
        self._free = [flag for flag in flags if _FREE.match(flag)]
        self.facts = {"ceilings": {}, "parameters": {}} | self.facts | wanted

    def add_ceilings(self, sets: Sequence[str]) -> None:
        """Asks the oracle of those sets that it was not asked of before."""
        missing = [name for name in sets if name not in self.facts["ceilings"]]
        for name in tqdm(missing, "ceilings", unit="set", disable=not missing):
            self._keep("ceilings", name, 100 * float(beds.oracle(name).mAP))

    def run(
        self, system: System, seed: int, sets: Sequence[str], schedule: Sequence[str]
    ) -> dict[str, float]:
        """Trains a system with a seed, and scores it on sets, unless that was done.

        Returns:
          mAP in percent by set.
        """
        folder = self.folder / f"{system.name}-seed{seed}"
        flags = [f"--config.seed={seed}", *schedule, *self.facts["flags"]]
        trainings.finished(
            f"{system.paper}:{system.arguments}",
            folder,
            flags,
            free=[_evaluate_on(sets), *self._free],
        )
        # A network that was there has not seen the sets that were asked for later.
        scores = _scores(folder, "metrics")
        if missing := [name for name in sets if name not in scores]:
            place = [f"--workdir={folder}", "--mode=evaluate"]
            trainings.launch([*place, _evaluate_on(missing), *self._free])
        if system.name not in self.facts["parameters"]:
            self._keep("parameters", system.name, _parameters(folder))
        return _scores(folder, "metrics")

    def _keep(self, what: str, name: str, value: Any) -> None:
        self.facts[what][name] = value
        workdir.write_json(self._path, self.facts)

    def groups(self) -> list[Group]:
        """All that was scored, by paper.

        Raises:
          UserError: if the seeds of a system were not trained by one config.
        """
        found = {paper: tuple(self._lines(paper)) for paper in PAPERS}
        return [Group(PAPERS[name].title, x) for name, x in found.items() if x]

    def _lines(self, paper: str) -> Iterator[Line]:
        for system in systems([paper]):
            folders = self._folders(system)
            if not folders:
                continue
            _check_alike(list(folders.values()))
            before = _by_seed(folders, "metrics_before_pairs")
            if any(before.values()):
                yield Line("before pairs", system.row, before)
            role = "baseline" if system.row else "system"
            network = self._network(system, list(folders.values()))
            yield Line(role, system.row, _by_seed(folders, "metrics"), network)

    def origins(self) -> str:
        """What the runs were made with, in a sentence."""
        starts = [
            workdir.read_objects(folder / "manifest.json")[-1]
            for system in systems(PAPERS)
            for folder in self._folders(system).values()
        ]
        revisions = {str(start["git_revision"])[:12] for start in starts}
        versions = {start["packages"]["jax"] for start in starts}
        devices = {name for start in starts for name in start["devices"]}
        return (
            f"Code of {', '.join(sorted(revisions))}; jax "
            f"{', '.join(sorted(versions))} on {', '.join(sorted(devices))}."
        )

    def _folders(self, system: System) -> dict[int, epath.Path]:
        """Seed -> folder of a run that has ended."""
        found = {
            int(path.name.rpartition("-seed")[2]): path
            for path in self.folder.glob(f"{system.name}-seed*")
            if trainings.record(path)
        }
        return dict(sorted(found.items()))

    def _network(self, system: System, folders: list[epath.Path]) -> Network:
        records = [trainings.record(folder) for folder in folders]
        config = workdir.flatten(workdir.read_object(folders[0] / "config.json"))
        batch = ("identities", "images_per_identity")
        return Network(
            config=f"{system.paper}:{system.arguments}",
            pixels=f"{config['data.height']} × {config['data.width']}",
            batch=" × ".join(str(config[f"stages.train.{name}"]) for name in batch),
            steps=records[0]["step"],
            parameters=self.facts["parameters"].get(system.name),
            seconds=max(record["seconds"] for record in records),
        )


def _evaluate_on(sets: Sequence[str]) -> str:
    return f"--config.evaluate_on={tuple(f'synthetic/{name}' for name in sets)}"


def _scores(folder: epath.Path, metrics: str) -> dict[str, float]:
    """mAP in percent by set."""
    return {
        entry["protocol"].removeprefix("synthetic/"): 100 * entry[metrics]["mAP"]
        for entry in trainings.entries(folder)
        if metrics in entry
    }


def _by_seed(
    folders: Mapping[int, epath.Path], metrics: str
) -> dict[int, dict[str, float]]:
    return {seed: _scores(folder, metrics) for seed, folder in folders.items()}


def _check_alike(folders: Sequence[epath.Path]) -> None:
    """Raises UserError if runs differ in more than their seed."""
    first, *others = (
        workdir.flatten(workdir.read_object(folder / "config.json"))
        for folder in folders
    )
    free = ("seed", *workdir.FREE_FIELDS)
    for folder, other in zip(folders[1:], others, strict=True):
        differing = sorted(
            field
            for field in first | other
            if first.get(field) != other.get(field) and not field.startswith(free)
        )
        if differing:
            raise UserError(
                f"{folder} and {folders[0]} differ in {', '.join(differing)}: remove "
                "one of them, and train it anew"
            )


def _parameters(folder: epath.Path) -> int:
    """Of a run's network, its classifiers included."""
    config = run_config.get_config(str(folder))
    classes = checkpoint.read_meta(checkpoint.find(str(folder)))["num_classes"]
    method = experiment.build_method(config, num_classes=classes)
    batch = experiment.example_batch(config, 2)
    return parameter_count(jax.eval_shape(method.init, jax.random.key(0), batch))
