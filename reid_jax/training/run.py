"""A run: what is opened and checked before it starts, and its best result so far."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from data_pipelines.protocols import Protocol
from data_pipelines.records import Records
from reid_jax import experiment, storage
from reid_jax.evaluation import evaluate, results
from reid_jax.experiment import Stage
from reid_jax.models.method import Method
from reid_jax.runtime import sharding
from reid_jax.runtime import workdir as workdirs
from reid_jax.runtime.checkpoint import Checkpoints, Meta, TrainState
from reid_jax.runtime.metrics import MetricWriter
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
    start: Position
    resumed: bool
    best: dict[str, Any] | None

    @classmethod
    def build(cls, config: Any, workdir: str, records: Records) -> Run:
        """Checks all that can be checked before anything is computed or written."""
        mesh = sharding.make_mesh()
        num_classes = len(np.unique(records.person[records.person > 0]))
        method = experiment.build_method(config, num_classes=num_classes)
        stages = _checked_stages(config, method, mesh)
        batches = _batches(config, records, method, stages, mesh)
        evaluator = evaluate.Evaluator(
            method, mesh, experiment.build_evaluation(config)
        )
        protocols = experiment.build_protocols(config)
        for protocol in protocols:
            evaluator.check(protocol)
        first = jax.process_index() == 0
        if first:
            workdirs.claim(workdir, config.to_dict())
            workdirs.write_manifest(workdir, config.to_dict())
        checkpoints = Checkpoints(workdir, keep=config.checkpoint.keep)
        resumed = checkpoints.latest_step() is not None
        meta = checkpoints.meta() if resumed else {}
        start = Position(*(meta.get(f.name, 0) for f in dataclasses.fields(Position)))
        if resumed and first:
            print(f"resuming {workdir} at step {start.global_step}")
        return cls(
            config=config,
            workdir=workdir,
            num_classes=num_classes,
            mesh=mesh,
            method=method,
            stages=stages,
            batches=batches,
            protocols=protocols,
            evaluator=evaluator,
            checkpoints=checkpoints,
            writer=MetricWriter(
                workdir,
                resume_step=start.global_step,
                resume_rows=meta.get("metric_rows"),
                enabled=first,
            ),
            start=start,
            resumed=resumed,
            best=meta.get("best"),
        )

    def evaluate(
        self, state: TrainState, stage: Stage, step: int, *, pictures: bool = False
    ) -> list[dict[str, Any]]:
        """Evaluates on all protocols; keeps the best state by the first one's mAP.

        The best state is one of the latest stage: an earlier one lacks what came after.
        """
        folder = storage.absolute(self.workdir) / "pictures"
        variables = experiment.without_rows(self.method, state.variables)
        entries = evaluate.evaluate_protocols(
            self.evaluator,
            self.protocols,
            sharding.gather(variables, self.mesh),
            stage=stage.name,
            step=step,
            picture_root=folder if pictures else None,
        )
        for entry in entries if jax.process_index() == 0 else ():
            tqdm.write(f"step {step}  {results.summary(entry)}")
            figures = entry["metrics"].items()
            self.writer.write(
                step, {f"{entry['protocol']}/{name}": value for name, value in figures}
            )
        score = _shared_score(entries)
        best = self.best
        if best is None or best["stage"] != stage.name or score > best["score"]:
            self.best = {"score": score, "entries": entries, "stage": stage.name}
            position = Position(stage.index, int(state.step), step)
            self.checkpoints.save_best(step, state, self.meta(stage, position))
        return entries

    def finish(
        self, state: TrainState, stage: Stage, step: int
    ) -> list[dict[str, Any]]:
        """The last state's evaluation with pictures, and the best one beside it."""
        entries = self.evaluate(state, stage, step, pictures=True)
        for entry, best in zip(entries, self.best["entries"], strict=True):
            entry["best"] = {"step": best["step"], "metrics": best.get("metrics")}
        results.write(self.workdir, entries)
        return entries

    def meta(self, stage: Stage, position: Position) -> Meta:
        """What a checkpoint at a position says of itself."""
        return Meta(
            **dataclasses.asdict(position),
            stage=stage.name,
            method=self.config.method,
            num_classes=self.num_classes,
            metric_rows=self.writer.rows,
            process_count=jax.process_count(),
            best=self.best,
            config=workdirs.flatten(self.config.to_dict()),
        )

    def close(self) -> None:
        """Waits for what is being saved."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.writer.close)
            stack.callback(self.checkpoints.close)


def _checked_stages(
    config: Any, method: Method, mesh: jax.sharding.Mesh
) -> tuple[Stage, ...]:
    """The stages, whose batches the mesh divides."""
    stages = experiment.build_stages(config, method)
    for stage in stages:
        field = f"config.stages.{stage.name}.identities"
        experiment.check_split(stage, mesh, field=field)
    return stages


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
