"""A run: what is opened and checked before it starts, and its best result so far."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from data_pipelines import sampling
from data_pipelines.protocols import Protocol
from data_pipelines.records import Records
from reid_jax import experiment, storage
from reid_jax.backbones.self_attention import check_trains_here
from reid_jax.errors import UserError
from reid_jax.evaluation import evaluate, results
from reid_jax.experiment import Stage
from reid_jax.models.method import Method
from reid_jax.report import report
from reid_jax.runtime import sharding, trackers
from reid_jax.runtime import workdir as workdirs
from reid_jax.runtime.checkpoint import Checkpoints
from reid_jax.runtime.metrics import MetricWriter
from reid_jax.runtime.state import Meta, TrainState
from reid_jax.training import extension, profile, sources
from reid_jax.training.batches import TrainingBatches


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a run stands: the stage, the step in it, and the step over all stages."""

    stage_index: int = 0
    step: int = 0
    global_step: int = 0


@dataclasses.dataclass
class Run:
    """What stays the same during a run, and the best result so far."""

    config: Any
    workdir: str
    num_classes: int
    mesh: jax.sharding.Mesh
    method: Method
    stages: tuple[Stage, ...]
    batches: TrainingBatches
    protocols: tuple[Protocol, ...]
    evaluator: evaluate.Evaluator
    checkpoints: Checkpoints
    writer: MetricWriter
    trace: profile.StepTrace
    start: Position
    resumed: bool
    best: dict[str, Any] | None
    evaluation_due: bool
    data: dict[str, Any]

    @classmethod
    def build(
        cls, config: Any, workdir: str, records: Records, *, extend: bool = False
    ) -> Run:
        """Checks all that can be checked before anything is computed or written."""
        trackers.check_installed(config.trackers)
        described = _described(config, records)
        profile.check(config.profile_steps, last=_last_step(config, described))
        if extend:
            extension.check_begun(workdir)
        checkpoints = Checkpoints(workdir, keep=config.checkpoint.keep)
        meta = checkpoints.meta() if checkpoints.latest_step() is not None else {}
        start = Position(*(meta.get(f.name, 0) for f in dataclasses.fields(Position)))
        fields, extended = config.to_dict(), {}
        if extend:
            stages, batches = described["stages"], described["batches"]
            extended = extension.accepted(
                workdir, fields, meta, stages=stages, batches=batches
            )
        first = jax.process_index() == 0
        if first:
            saved = meta.get("config")
            workdirs.check_same_run(workdir, fields, extended=extended, saved=saved)
        sources.check_unchanged(records, meta.get("data"), workdir=workdir)
        if first:
            _begin(workdir, fields, start, extended if extend else None)
            if meta and meta.get("sampler", 1) != sampling.VERSION:
                print(
                    "note: this run was begun with an older version's batches; from "
                    f"step {start.global_step} on it sees others of the same seed"
                )
        return cls(
            **described,
            config=config,
            workdir=workdir,
            checkpoints=checkpoints,
            writer=MetricWriter(
                workdir,
                trackers=config.trackers,
                config=workdirs.flatten(fields),
                resume_step=start.global_step,
                resume_rows=meta.get("metric_rows"),
                enabled=first,
            ),
            trace=profile.StepTrace(
                config.profile_steps, workdir, done=start.global_step
            ),
            start=start,
            resumed=bool(meta),
            best=checkpoints.best(),
            evaluation_due=meta.get("evaluation_due", False),
            data=records.fingerprint,
        )

    def evaluate(
        self, state: TrainState, stage: Stage, step: int, *, final: bool = False
    ) -> list[dict[str, Any]]:
        """Evaluates on all protocols; keeps the best state by the first one's mAP.

        The best state is one of the latest stage: an earlier one lacks what came after.
        Where another protocol has become the first one, the best is sought anew: its
        scores cannot be compared with the ones before. The `final` evaluation draws
        pictures, and leaves it to the end of the run to print its figures.
        """
        folder = storage.absolute(self.workdir) / "pictures"
        averaged = experiment.takes_average(
            self.config, workdirs.flatten(self.config.to_dict())
        )
        variables = experiment.without_rows(
            self.method, state.averaged if averaged else state.variables
        )
        entries = evaluate.evaluate_protocols(
            self.evaluator,
            self.protocols,
            sharding.gather(variables, self.mesh),
            stage=stage.name,
            step=step,
            picture_root=folder if final else None,
        )
        if averaged:
            entries = [entry | {"averaged": True} for entry in entries]
        for entry in entries if jax.process_index() == 0 else ():
            if not final:
                tqdm.write(f"step {step}  {results.summary(entry)}")
            figures = entry["metrics"].items()
            self.writer.write(
                step, {f"{entry['protocol']}/{name}": value for name, value in figures}
            )
        score = _shared_score(entries)
        if not self._is_comparable(stage, entries) or score > self.best["score"]:
            self.best = {"score": score, "entries": entries, "stage": stage.name}
            position = Position(stage.index, int(state.step), step)
            self.checkpoints.save_best(step, state, self.meta(stage, position))
        return entries

    def _is_comparable(self, stage: Stage, entries: list[dict[str, Any]]) -> bool:
        """Whether the best so far was found by what these entries were found by."""
        if self.best is None or self.best["stage"] != stage.name:
            return False
        return results.same_protocol(self.best["entries"][0], entries[0])

    def finish(
        self, state: TrainState, stage: Stage, step: int
    ) -> list[dict[str, Any]]:
        """The last state's evaluation with pictures and report, the best one beside it.

        A protocol that the best state was not evaluated on has no `best`.
        """
        entries = self.evaluate(state, stage, step, final=True)
        for entry in entries:
            for best in self.best["entries"]:
                if results.same_protocol(entry, best):
                    figures = best.get("metrics")
                    entry["best"] = {"step": best["step"], "metrics": figures}
        results.write(self.workdir, entries)
        self.writer.flush()
        if jax.process_index() == 0:
            report.write([self.workdir], storage.absolute(self.workdir) / report.NAME)
        return entries

    def meta(
        self, stage: Stage, position: Position, *, evaluation_due: bool = False
    ) -> Meta:
        """What a checkpoint at a position says of itself."""
        return Meta(
            **dataclasses.asdict(position),
            stage=stage.name,
            method=self.config.method,
            num_classes=self.num_classes,
            metric_rows=self.writer.rows,
            data=self.data,
            process_count=jax.process_count(),
            best=self.best,
            evaluation_due=evaluation_due,
            sampler=sampling.VERSION,
            config=workdirs.flatten(self.config.to_dict()),
        )

    def close(self) -> None:
        """Waits for what is being saved; ends a trace that was cut short."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.writer.close)
            stack.callback(self.checkpoints.close)
            stack.callback(self.trace.close)


def _described(config: Any, records: Records) -> dict[str, Any]:
    """What the config describes, checked; by the names that `Run` has for it."""
    mesh = sharding.make_mesh()
    check_trains_here(config.model.get("attention_implementation", ""))
    num_classes = len(np.unique(records.person[records.person > 0]))
    method = experiment.build_method(config, num_classes=num_classes)
    stages = _checked_stages(config, method, mesh)
    evaluator = evaluate.Evaluator(method, mesh, experiment.build_evaluation(config))
    protocols = experiment.build_protocols(config)
    for protocol in protocols:
        evaluator.check(protocol)
    if config.evaluation.rerank:
        batch = experiment.example_batch(config, 2)
        evaluator.check_steps(jax.eval_shape(method.init, jax.random.key(0), batch))
    return {
        "mesh": mesh,
        "num_classes": num_classes,
        "method": method,
        "stages": stages,
        "batches": _batches(config, records, method, stages, mesh),
        "protocols": protocols,
        "evaluator": evaluator,
    }


def _last_step(config: Any, described: Mapping[str, Any]) -> int:
    """Where the run ends, counted over all stages."""
    last = sum(map(described["batches"].steps, described["stages"]))
    return min(last, config.max_steps or last)


def _begin(
    workdir: str, config: dict[str, Any], start: Position, extended: Any | None
) -> None:
    """Writes down that the run starts here, and with which fields it goes on."""
    workdirs.write_json(storage.absolute(workdir) / "config.json", config)
    about = {}
    if extended is not None:
        about["extended"] = {"from_step": start.global_step, "fields": extended}
    workdirs.write_manifest(workdir, config, **about)
    if start != Position():
        print(f"resuming {workdir} at step {start.global_step}")


def _checked_stages(
    config: Any, method: Method, mesh: jax.sharding.Mesh
) -> tuple[Stage, ...]:
    """The stages, whose batches the mesh divides, and groups of rows."""
    stages = experiment.build_stages(config, method)
    for stage in stages:
        field = f"config.stages.{stage.name}.identities"
        experiment.check_split(stage, mesh, field=field)
        _check_groups(stage, config.model, field=field)
    return stages


def _check_groups(stage: Stage, model: Any, *, field: str) -> None:
    """Raises UserError for groups of rows that cannot be, or leave nothing to mine."""
    size, people = stage.micro_batch_size, stage.identities // stage.micro_batches
    for name in ("bn_groups", "mining_groups"):
        if size % model.get(name, 1):
            raise UserError(
                f"config.model.{name}={model[name]} does not divide the {size} images "
                f"that stage {stage.name} sees at once: change that or {field}"
            )
    groups = model.get("mining_groups", 1)
    if lacking := _lacking(stage, groups):
        raise UserError(
            f"config.model.mining_groups={groups} cuts {size} images so that some have "
            f"no {lacking} in their group: take a divisor of their {people} identities "
            f"({field}) that is less than {people}"
        )


def _lacking(stage: Stage, groups: int) -> str:
    """What mining within equal groups of rows lacks for some of them; "" for nothing.

    Borders between groups lie symmetrically: where one has a single image of an
    identity behind it, another has one before it.
    """
    size, of_one = stage.micro_batch_size // groups, stage.images_per_identity
    if size <= of_one:  # the first group is within one identity
        return "negative"
    alone = any(group * size % of_one == 1 for group in range(1, groups))
    return "positive" if alone else ""


def _batches(
    config: Any,
    records: Records,
    method: Method,
    stages: tuple[Stage, ...],
    mesh: jax.sharding.Mesh,
) -> TrainingBatches:
    experiment.check_parts(method, records, method.train_inputs)
    return TrainingBatches(
        records,
        stages,
        mesh,
        augment=experiment.build_augment(config),
        image_size=experiment.image_size(config),
        with_parts="parts" in method.train_inputs,
        seed=config.seed,
        num_workers=config.data.num_workers,
        resident_bytes=config.data.resident_bytes,
    )


def _shared_score(entries: list[dict[str, Any]]) -> float:
    """mAP of the first protocol, from the process that ranked, on every process."""
    score = entries[0]["metrics"]["mAP"] if "metrics" in entries[0] else 0.0
    if jax.process_count() == 1:
        return score
    return float(multihost_utils.broadcast_one_to_all(np.float32(score)))
