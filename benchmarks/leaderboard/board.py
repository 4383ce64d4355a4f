"""The leaderboard's runs: which are missing, and what is known of the others."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath
from tqdm import tqdm

from benchmarks import beds, trainings
from benchmarks.leaderboard.standings import Group, Line, Network
from benchmarks.leaderboard.systems import IMAGES, IN_EPOCHS, PAPERS, System, systems
from configs import run as run_config
from data_pipelines import sampling
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

    What is known of a run that has ended is in one file, which is all that a document
    is made of: the folders of the runs may be gone.

    Attributes:
      folder: with a folder for each run, and `leaderboard.json`.
      facts: what that file has: `images` that each network saw, `flags` that all runs
        got, `sampler`, the version of what deals their batches (absent for 1),
        `ceilings`, the oracle's mAP in percent by set; by system `parameters` and
        `configs`, the fields that all seeds share; and `runs`, by name.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = storage.absolute(folder)
        self._path = self.folder / "leaderboard.json"
        self._free: list[str] = []
        self.facts: dict[str, Any] = {}
        self._read()

    def _read(self) -> None:
        """Adds what is there, of another process, too, that trains other systems."""
        empty = {name: {} for name in ("ceilings", "parameters", "configs", "runs")}
        there = workdir.read_object(self._path) if self._path.exists() else {}
        self.facts = empty | self.facts | there

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
        if self.facts["runs"] and self.facts.get("sampler", 1) != sampling.VERSION:
            raise UserError(
                f"{self.folder} holds runs of an older version's batches, which others "
                "are not compared with: choose another --workdir"
            )
        there = {name: self.facts.get(name) for name in wanted}
        if self.facts["runs"] and there != wanted:
            known = " ".join((f"--images={there['images']} --", *there["flags"]))
            raise UserError(
                f"{self.folder} holds a leaderboard of {known.removesuffix(' --')}: "
                "choose another --workdir"
            )
        self._free = [flag for flag in flags if _FREE.match(flag)]
        self.facts |= wanted | {"sampler": sampling.VERSION}

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

        Raises:
          UserError: if it was trained for another schedule, or differs from other seeds
            in more than its seed.
        """
        name = f"{system.name}-seed{seed}"
        what = [f"--config.seed={seed}", *schedule, *self.facts["flags"]]
        known = self.facts["runs"].get(name, {"flags": what, "metrics": {}})
        if known["flags"] != what:
            raise UserError(
                f"{name} was trained with {' '.join(known['flags'])}, not with "
                f"{' '.join(what)}: choose another --workdir"
            )
        if not known["metrics"].keys() >= set(sets):
            self._train(system, self.folder / name, what, sets)
            known = self._keep(
                "runs", name, self._known(system, name) | {"flags": what}
            )
        return known["metrics"]

    def _train(
        self,
        system: System,
        folder: epath.Path,
        flags: Sequence[str],
        sets: Sequence[str],
    ) -> None:
        if folder.name in self.facts["runs"] and not trainings.record(folder):
            raise UserError(
                f"{folder} is gone, and with it the network that was to be scored on "
                f"{', '.join(sets)}: remove {folder.name} from {self._path}, and it is "
                "trained anew"
            )
        free = [_evaluate_on(sets), *self._free]
        config = f"{system.paper}:{system.arguments}"
        trainings.finished(config, folder, flags, free=free)
        # A network that was there has not seen the sets that were asked for later.
        self._evaluate(folder, sets, _scores(folder, "metrics"))
        if fields := _plain_fields(system):
            self._evaluate(folder, sets, _plain(system, folder), fields)

    def _evaluate(
        self,
        folder: epath.Path,
        sets: Sequence[str],
        scores: Mapping[str, float],
        fields: Sequence[str] = (),
    ) -> None:
        """On those sets that have no score."""
        if missing := [name for name in sets if name not in scores]:
            place = [f"--workdir={folder}", "--mode=evaluate"]
            trainings.launch([*place, *fields, _evaluate_on(missing), *self._free])

    def _known(self, system: System, name: str) -> dict[str, Any]:
        """Of a run that has ended: how it was trained, and what it scored."""
        folder = self.folder / name
        config = workdir.flatten(workdir.read_object(folder / "config.json"))
        self._check(system, name, config)
        if system.name not in self.facts["parameters"]:
            self._keep("parameters", system.name, _parameters(folder))
        start = workdir.read_objects(folder / "manifest.json")[-1]
        record = trainings.record(folder)
        return {
            "metrics": _scores(folder, "metrics"),
            "plain": _plain(system, folder),
            "step": record["step"],
            "seconds": record["seconds"],
            "revision": str(start["git_revision"])[:12],
            "jax": start["packages"]["jax"],
            "devices": start["devices"],
        }

    def _check(self, system: System, name: str, config: Mapping[str, Any]) -> None:
        """Raises UserError if a run and the first one differ in more than the seed."""
        free = ("seed", *workdir.FREE_FIELDS)
        shared = {x: value for x, value in config.items() if not x.startswith(free)}
        first = self.facts["configs"].get(system.name)
        if first is None:
            first = self._keep("configs", system.name, shared)
        if differing := workdir.differences(first, shared):
            raise UserError(
                f"{self.folder / name} and the seeds in {self._path} differ in "
                f"{', '.join(differing)}: choose another --workdir"
            )

    def _keep(self, what: str, name: str, value: Any) -> Any:
        self._read()
        self.facts[what][name] = value
        self.folder.mkdir(parents=True, exist_ok=True)
        workdir.write_json(self._path, self.facts)
        return value

    def groups(self) -> list[Group]:
        """All that was scored, by paper."""
        found = {paper: tuple(self._lines(paper)) for paper in PAPERS}
        return [Group(PAPERS[name].title, x) for name, x in found.items() if x]

    def _lines(self, paper: str) -> Iterator[Line]:
        for system in systems([paper]):
            runs = self._runs(system)
            if not runs:
                continue
            plain = {seed: run["plain"] for seed, run in runs.items()}
            if any(plain.values()):
                yield Line(PAPERS[paper].plain, system.row, plain)
            role = "baseline" if system.row else "system"
            scores = {seed: run["metrics"] for seed, run in runs.items()}
            network = self._network(system, list(runs.values()))
            yield Line(role, system.row, scores, network)

    def origins(self) -> str:
        """What the runs were made with."""
        runs = self.facts["runs"].values()
        revisions = {run["revision"] for run in runs}
        versions = {run["jax"] for run in runs}
        devices = {name for run in runs for name in run["devices"]}
        text = (
            f"Code of {', '.join(sorted(revisions))}; jax "
            f"{', '.join(sorted(versions))} on {', '.join(sorted(devices))}."
        )
        if self.facts.get("sampler", 1) == sampling.VERSION:
            return text
        return (
            f"{text} Their batches are an older version's, neighbours of which held "
            "mostly the same people: new seeds need a `--workdir` of their own."
        )

    def _runs(self, system: System) -> dict[int, dict[str, Any]]:
        """Seed -> what is known of its run."""
        found = {
            int(seed): run
            for name, run in self.facts["runs"].items()
            for start, _, seed in [name.rpartition("-seed")]
            if start == system.name
        }
        return dict(sorted(found.items()))

    def _network(self, system: System, runs: Sequence[Mapping[str, Any]]) -> Network:
        config = self.facts["configs"][system.name]
        batch = ("identities", "images_per_identity")
        return Network(
            config=f"{system.paper}:{system.arguments}",
            pixels=f"{config['data.height']} × {config['data.width']}",
            batch=" × ".join(str(config[f"stages.train.{name}"]) for name in batch),
            steps=runs[0]["step"],
            parameters=self.facts["parameters"][system.name],
            seconds=max(run["seconds"] for run in runs),
        )


def _evaluate_on(sets: Sequence[str]) -> str:
    return f"--config.evaluate_on={tuple(f'synthetic/{name}' for name in sets)}"


def _scores(
    folder: epath.Path, metrics: str, *, changed: Collection[str] = ()
) -> dict[str, float]:
    """mAP in percent by set."""
    return {
        entry["protocol"].removeprefix("synthetic/"): 100 * entry[metrics]["mAP"]
        for entry in trainings.entries(folder, changed=changed)
        if metrics in entry
    }


def _plain_fields(system: System) -> tuple[str, ...]:
    return () if system.row else PAPERS[system.paper].fields


def _plain(system: System, folder: epath.Path) -> dict[str, float]:
    """What a system scores without what its paper adds at test."""
    if fields := _plain_fields(system):
        names = [x.removeprefix("--config.").partition("=")[0] for x in fields]
        return _scores(folder, "metrics", changed=names)
    return _scores(folder, "metrics_before_pairs")


def _parameters(folder: epath.Path) -> int:
    """Of a run's network, its classifiers included."""
    config = run_config.get_config(str(folder))
    classes = checkpoint.read_meta(checkpoint.find(str(folder)))["num_classes"]
    method = experiment.build_method(config, num_classes=classes)
    batch = experiment.example_batch(config, 2)
    return parameter_count(jax.eval_shape(method.init, jax.random.key(0), batch))
