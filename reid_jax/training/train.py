"""The only training loop: stages in order, one compiled step each, exact resume."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from typing import Any

import jax
import numpy as np
from absl import logging
from clu import parameter_overview
from etils import epath
from jax.experimental import multihost_utils
from tqdm import tqdm

from data_pipelines.protocols import Protocol
from data_pipelines.records import Records
from reid_jax import experiment
from reid_jax.evaluation import evaluate
from reid_jax.experiment import Stage
from reid_jax.models.method import Method
from reid_jax.runtime import sharding
from reid_jax.runtime import workdir as workdirs
from reid_jax.runtime.checkpoint import Checkpoints, TrainState
from reid_jax.runtime.metrics import MetricWriter, StepLog
from reid_jax.runtime.preemption import PreemptionNotice
from reid_jax.training.batches import Loader, TrainingBatches
from reid_jax.training.step import StageProgram


class _Stopped(Exception):
    """The run has saved its state and ends before its last step."""


def train_and_evaluate(config: Any, workdir: str) -> list[dict[str, Any]]:
    """Trains every stage, evaluates, and leaves checkpoints, results and pictures.

    A run of the same config in `workdir` is resumed where its last checkpoint stands.

    Args:
      config: see `configs/common.py`.
      workdir: folder of the run.

    Returns:
      the entries of `results.json`; none if the run stopped before its end (a notice
      to stop, or `config.max_steps`).

    Raises:
      UserError: anything that the user can mend, including a loss that is not finite.
    """
    experiment.check_numbers(config)
    records = experiment.open_training_data(config)
    if not workdirs.has_checkpoint(workdir):
        experiment.check_pretrained(config)
    only_once = workdirs.held(workdir) if jax.process_index() == 0 else nullcontext()
    with only_once:
        return _train(config, workdir, records)


def _train(config: Any, workdir: str, records: Records) -> list[dict[str, Any]]:
    run = _Run.build(config, workdir, records)
    try:
        with PreemptionNotice() as notice:
            return run.run(notice)
    except _Stopped as stop:
        print(stop)
        return []
    finally:
        run.close()


@dataclasses.dataclass(frozen=True)
class _Position:
    """Where a run stands: the stage, the step in it, and the step over all stages."""

    stage_index: int = 0
    step: int = 0
    global_step: int = 0


@dataclasses.dataclass
class _Run:
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
    start: _Position
    resumed: bool
    best: dict[str, Any] | None

    @classmethod
    def build(cls, config: Any, workdir: str, records: Records) -> _Run:
        """Checks all that can be checked before anything is computed or written."""
        mesh = sharding.make_mesh()
        num_classes = len(np.unique(records.person[records.person > 0]))
        method = experiment.build_method(config, num_classes=num_classes)
        stages = _checked_stages(config, method, mesh)
        batches = _batches(config, records, method, stages, mesh)
        evaluator = evaluate.Evaluator(config, method, mesh)
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
        start = _Position(*(meta.get(f.name, 0) for f in dataclasses.fields(_Position)))
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
            writer=MetricWriter(workdir, resume_step=start.global_step, enabled=first),
            start=start,
            resumed=resumed,
            best=meta.get("best"),
        )

    def run(self, notice: PreemptionNotice) -> list[dict[str, Any]]:
        """Trains every stage that is not done yet, then reports."""
        state = None
        for stage in self.stages[self.start.stage_index :]:
            loop = _StageLoop(self, stage, notice)
            state = loop.run(loop.initial_state(state))
        return self._finish(state, stage, loop.last_step)

    def _finish(
        self, state: TrainState, stage: Stage, step: int
    ) -> list[dict[str, Any]]:
        """The last state's evaluation with pictures, and the best one beside it."""
        entries = self.evaluate(state, stage, step, pictures=True)
        for entry, best in zip(entries, self.best["entries"], strict=True):
            entry["best"] = {"step": best["step"], "metrics": best.get("metrics")}
        evaluate.write_results(self.workdir, entries)
        return entries

    def evaluate(
        self, state: TrainState, stage: Stage, step: int, *, pictures: bool = False
    ) -> list[dict[str, Any]]:
        """Evaluates on all protocols; keeps the best state by the first one's mAP.

        The best state is one of the latest stage: an earlier one lacks what came after.
        """
        folder = epath.Path(self.workdir) / "pictures"
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
            tqdm.write(f"step {step}  {evaluate.summary(entry)}")
            figures = entry["metrics"].items()
            self.writer.write(
                step, {f"{entry['protocol']}/{name}": value for name, value in figures}
            )
        score = _shared_score(entries)
        best = self.best
        if best is None or best["stage"] != stage.name or score > best["score"]:
            self.best = {"score": score, "entries": entries, "stage": stage.name}
            position = _Position(stage.index, int(state.step), step)
            self.checkpoints.save_best(step, state, self.meta(stage, position))
        return entries

    def meta(self, stage: Stage, position: _Position) -> dict[str, Any]:
        """What a checkpoint says of itself."""
        return {
            **dataclasses.asdict(position),
            "stage": stage.name,
            "method": self.config.method,
            "num_classes": self.num_classes,
            "process_count": jax.process_count(),
            "best": self.best,
            "config": workdirs.flatten(self.config.to_dict()),
        }

    def close(self) -> None:
        """Waits for what is being saved."""
        self.checkpoints.close()
        self.writer.close()


class _StageLoop:
    """One stage of a run: its data, its compiled step, and what happens when."""

    def __init__(self, run: _Run, stage: Stage, notice: PreemptionNotice):
        self._run, self._stage, self._notice = run, stage, notice
        self._config = config = run.config
        self._steps_per_epoch = run.batches.steps_per_epoch(stage)
        self._total = run.batches.steps(stage)
        self._offset = sum(map(run.batches.steps, run.stages[: stage.index]))
        self._resumed = run.resumed and stage.index == run.start.stage_index
        self._start = run.start.step if self._resumed else 0
        self._program = StageProgram(
            run.method,
            stage,
            run.mesh,
            shapes=experiment.example_batch(config, run.stages[0].micro_batch_size),
            steps_per_epoch=self._steps_per_epoch,
            seed=config.seed,
            shard_parameters=config.shard_parameters,
        )
        # `max_steps` counts over all stages; 0 is no limit.
        limit = config.max_steps - self._offset if config.max_steps else self._total
        self._end = min(self._total, limit)

    @property
    def last_step(self) -> int:
        """The stage's last step, counted over all stages."""
        return self._offset + self._total

    def initial_state(self, previous: TrainState | None) -> TrainState:
        """From the checkpoint, from the stage before, or fresh; born on the mesh."""
        run, program = self._run, self._program
        if previous is not None:
            return program.following(previous.variables)
        if self._resumed:
            return run.checkpoints.restore(program.abstract(), program.layout)
        state = program.fresh()
        if experiment.wants_pretrained(run.config):
            # An optimizer's first state does not depend on the parameters' values.
            loaded = experiment.load_pretrained(run.config, run.method, state.variables)
            params = loaded.pop("params")
            state = state.replace(params=params, collections=loaded)
        count = parameter_overview.count_parameters(state.params)
        logging.info("%s: %d parameters", run.config.method, count)
        return state

    def run(self, state: TrainState) -> TrainState:
        """Trains to the stage's end; raises `_Stopped` once a stop is due and saved."""
        data = self._data()
        try:
            with self._bar() as bar:
                log = StepLog(
                    self._run.writer,
                    bar,
                    offset=self._offset,
                    every=self._config.log_every_steps,
                    batch_size=self._stage.batch_size,
                )
                bar.set_postfix_str("the first step is compiled first")
                for step in range(self._start, self._end):
                    batch = sharding.put_batch(next(data), self._run.mesh)
                    state, metrics = self._program.step(state, batch)
                    log.add(step + 1, metrics)
                    self._after_step(step + 1, state, data, log)
        finally:
            data.close()
        if self._end < self._total:
            limit = f"config.max_steps={self._config.max_steps}"
            self._stop(
                max(self._start, self._end),
                f"raise {limit} to go on, or evaluate it with --mode=evaluate",
            )
        return state

    def _after_step(
        self, step: int, state: TrainState, data: Loader, log: StepLog
    ) -> None:
        """Evaluates, saves and stops where that is due after `step` steps."""
        config = self._config
        told = self._notice.received(self._offset + step)
        # The run ends with an evaluation of its own.
        over = step == self._total and self._stage is self._run.stages[-1]
        if not over and self._due(step, config.evaluation.every_epochs):
            with log.paused():
                self._run.evaluate(state, self._stage, self._offset + step)
        due = self._due(step, config.checkpoint.every_epochs)
        if due or told or step == self._end:
            # Entering the pause raises if this step is not finite: it is never saved.
            with log.paused():
                self._save(step, state, data)
        if told:
            self._stop(step, "the same command goes on from there")

    def _stop(self, step: int, how_on: str) -> None:
        self._run.checkpoints.wait()
        raise _Stopped(f"stopped at step {self._offset + step}, saved; {how_on}")

    def _due(self, step: int, every_epochs: float) -> bool:
        every = round(every_epochs * self._steps_per_epoch)
        return every > 0 and step % every == 0

    def _save(self, step: int, state: TrainState, data: Loader) -> None:
        position = _Position(self._stage.index, step, self._offset + step)
        meta = self._run.meta(self._stage, position)
        self._run.writer.flush()
        self._run.checkpoints.save(position.global_step, state, data, meta)

    def _data(self) -> Loader:
        """The stage's batches from its start on.

        The step is authoritative: batches are a pure function of it. The iterator's
        own state is read back where the processes are the ones that saved it.
        """
        run = self._run
        data = run.batches.of_stage(self._stage, start_step=self._start)
        if self._resumed and run.checkpoints.meta()["process_count"] == (
            jax.process_count()
        ):
            run.checkpoints.restore_data(data)
        return data

    def _bar(self) -> tqdm:
        return tqdm(
            total=self._total,
            initial=self._start,
            desc=self._stage.name,
            unit="step",
            disable=jax.process_index() != 0,
            dynamic_ncols=True,
        )


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
