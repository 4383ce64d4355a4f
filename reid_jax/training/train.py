"""The only training loop: stages in order, one compiled step each, exact resume."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
from tqdm import tqdm

from reid_jax import checks, experiment
from reid_jax.errors import Terminated
from reid_jax.experiment import Stage
from reid_jax.runtime import sharding
from reid_jax.runtime import workdir as workdirs
from reid_jax.runtime.metrics import StepLog
from reid_jax.runtime.optimizer import idle_groups
from reid_jax.runtime.preemption import PreemptionNotice
from reid_jax.runtime.progress import said
from reid_jax.runtime.state import TrainState
from reid_jax.training import closing, sources
from reid_jax.training.batches import Loader
from reid_jax.training.run import Position, Run
from reid_jax.training.step import StageProgram


class _Stopped(Exception):
    """The run has saved its state and ends before its last step; if it was told to."""

    def __init__(self, text: str, *, told: bool):
        super().__init__(text)
        self.told = told


def train_and_evaluate(
    config: Any, workdir: str, *, extend: bool = False
) -> list[dict[str, Any]]:
    """Trains every stage, evaluates, and leaves checkpoints, results and pictures.

    A run of the same config in `workdir` is resumed where its last checkpoint stands.

    Args:
      config: see `configs/common.py`.
      workdir: folder of the run.
      extend: whether the run that is there goes on with another schedule, see
        `extension.py`.

    Returns:
      the entries of `results.json`; none if the run stopped at `config.max_steps`.

    Raises:
      UserError: anything that the user can mend, including a loss that is not finite.
      KeyboardInterrupt: after Ctrl-C, once all is saved.
      Terminated: after another notice to stop, once all is saved.
    """
    checks.check_config(config)
    for remark in checks.remarks(config) if jax.process_index() == 0 else ():
        print(f"note: {remark}")
    records = sources.open_data(config)
    if not workdirs.has_checkpoint(workdir):
        sources.check_pretrained(config)
    only_once = workdirs.held(workdir) if jax.process_index() == 0 else nullcontext()
    with only_once:
        run = Run.build(config, workdir, records, extend=extend)
        return _train(run)


def _train(run: Run) -> list[dict[str, Any]]:
    notice = PreemptionNotice()
    try:
        with notice:
            state, step = _run_stages(run, notice)
        # Nothing is left to be saved: from here on Ctrl-C ends the run as any program.
        return run.finish(state, run.stages[-1], step)
    except _Stopped as stop:
        if notice.interrupted:
            raise KeyboardInterrupt(str(stop)) from None
        if stop.told:
            raise Terminated(str(stop)) from None
        if jax.process_index() == 0:
            print(stop)
        return []
    finally:
        run.close()


def _run_stages(run: Run, notice: PreemptionNotice) -> tuple[TrainState, int]:
    """Trains every stage that is not done yet; the last state and its global step."""
    state = None
    for stage in run.stages[run.start.stage_index :]:
        loop = _StageLoop(run, stage, notice)
        first = state is None
        # The name moves on: nothing else of the stage before stays on the devices.
        state = loop.initial_state(state)
        if first and jax.process_index() == 0:
            print(closing.overview(run.config.method, state.params))
            for remark in _idle_groups(run, state.params):
                print(f"note: {remark}")
        state = loop.run(state)
    loop.wait()
    return state, loop.last_step


def _idle_groups(run: Run, params: Any) -> Iterator[str]:
    """A remark on each group of parameters that changes nothing."""
    for stage in run.stages:
        frozen = run.method.frozen(stage.name)
        for name in idle_groups(stage.optimizer, params, frozen=frozen):
            yield (
                f"config.stages.{stage.name}.optimizer.groups.{name} has no parameter "
                "that learns: patterns match paths such as a/b/kernel, from their "
                "start, and the first one counts"
            )


class _StageLoop:
    """One stage of a run: its data, its compiled step, and what happens when."""

    def __init__(self, run: Run, stage: Stage, notice: PreemptionNotice):
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
            ema_decay=config.ema_decay,
            gradient_dtype=config.gradient_dtype,
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
        if not sources.wants_pretrained(run.config):
            return program.fresh()
        return program.fresh(
            sources.load_pretrained(run.config, run.method, program.blank())
        )

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
                    last=self._total,
                    batch_size=self._stage.batch_size,
                )
                if self._resumed and self._run.evaluation_due:
                    self._run.evaluate(state, self._stage, self._offset + self._start)
                for step in range(self._start, self._end):
                    number = self._offset + step + 1
                    with self._run.trace.of_step(number, log):
                        batch = sharding.put_batch(next(data), self._run.mesh)
                        with self._announced(step, bar):
                            state, metrics = self._program.step(state, batch)
                        log.add(step + 1, metrics)
                    self._run.trace.after_step(number, state, log)
                    self._after_step(step + 1, state, data, log)
        finally:
            data.close()
        if self._end < self._total:
            limit = f"config.max_steps={self._config.max_steps}"
            self._stop(
                max(self._start, self._end),
                f"raise {limit} to go on, or evaluate it with --mode=evaluate",
                told=False,
            )
        return state

    def wait(self) -> None:
        """Waits until all is saved; raises `_Stopped` if a notice came meanwhile."""
        self._run.checkpoints.wait()
        if self._notice.received(self.last_step + 1):
            self._stop(self._total)

    def _after_step(
        self, step: int, state: TrainState, data: Loader, log: StepLog
    ) -> None:
        """Evaluates, saves and stops where that is due after `step` steps."""
        config = self._config
        told = self._notice.received(self._offset + step)
        # The run ends with an evaluation of its own.
        over = step == self._total and self._stage is self._run.stages[-1]
        evaluation = not over and self._due(step, config.evaluation.every_epochs)
        if evaluation and not told:
            with log.paused():
                self._run.evaluate(state, self._stage, self._offset + step)
        due = self._due(step, config.checkpoint.every_epochs)
        if due or told or step == self._end:
            # Entering the pause raises if this step is not finite: it is never saved.
            with log.paused():
                # Who gives notice may give seconds: a run that goes on evaluates then.
                self._save(step, state, data, evaluation_due=evaluation and told)
        if told:
            self._stop(step)

    def _stop(
        self,
        step: int,
        how_on: str = "the same command goes on from there",
        *,
        told: bool = True,
    ) -> None:
        self._run.checkpoints.wait()
        text = f"stopped at step {self._offset + step}, saved; {how_on}"
        raise _Stopped(text, told=told)

    def _announced(self, step: int, bar: tqdm) -> AbstractContextManager[None]:
        if step > self._start:
            return nullcontext()
        bar.clear()  # It has its line back after the step.
        return said(f"compiling the training step of stage {self._stage.name}")

    # clu's periodic actions are not used: they import TensorFlow, which this library
    # does without, and their rate would count evaluation and saving as training.
    def _due(self, step: int, every_epochs: float) -> bool:
        if not every_epochs:
            return False
        return step % max(1, round(every_epochs * self._steps_per_epoch)) == 0

    def _save(
        self, step: int, state: TrainState, data: Loader, *, evaluation_due: bool
    ) -> None:
        position = Position(self._stage.index, step, self._offset + step)
        meta = self._run.meta(self._stage, position, evaluation_due=evaluation_due)
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
            # Where this run ends, which `max_steps` may bring forward.
            total=max(self._start, self._end),
            initial=self._start,
            desc=self._stage.name,
            unit="step",
            disable=jax.process_index() != 0,
            dynamic_ncols=True,
        )
