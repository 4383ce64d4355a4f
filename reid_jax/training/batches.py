"""Where a run's training batches come from: its disk, or its devices' memory."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax

from data_pipelines import loader
from data_pipelines.records import Records
from data_pipelines.sampling import PKPlan
from data_pipelines.transforms import Augment
from reid_jax.errors import UserError
from reid_jax.experiment import Stage
from reid_jax.training import resident

Loader = loader.TrainLoader | resident.ResidentLoader


class TrainingBatches:
    """The batches of every stage of a run: which records, from where, how augmented.

    Args:
      records: the training split.
      stages: of the method, in order.
      mesh: of the run.
      augment: applied to each decoded and resized image.
      image_size: height and width.
      with_parts: whether the batches have part labels.
      seed: of the run; stages draw different batches.
      num_workers: processes that decode; 0 reads in threads of this process.
      resident_bytes: of each device's memory that the decoded images may take; 0
        decodes them for every batch.

    Raises:
      UserError: for a stage whose batches cannot be drawn from these identities, and
        for a training set that `resident_bytes` does not allow, or not with these
        steps of augmentation.
    """

    def __init__(
        self,
        records: Records,
        stages: Sequence[Stage],
        mesh: jax.sharding.Mesh,
        *,
        augment: Augment,
        image_size: tuple[int, int],
        with_parts: bool,
        seed: int,
        num_workers: int = 0,
        resident_bytes: int = 0,
    ):
        self._records, self._mesh, self._augment = records, mesh, augment
        self._image = {"image_size": image_size, "with_parts": with_parts}
        self._seed, self._num_workers = seed, num_workers
        self._plans = [_plan(records, stage, seed) for stage in stages]
        self._in_memory = resident_bytes > 0
        if self._in_memory:
            resident.check(records, augment, **self._image, limit=resident_bytes)

    def steps_per_epoch(self, stage: Stage) -> int:
        """Batches of an epoch; every schedule counts in them."""
        return self._plans[stage.index].steps_per_epoch

    def steps(self, stage: Stage) -> int:
        """Batches of the whole stage."""
        return max(1, round(stage.epochs * self.steps_per_epoch(stage)))

    def of_stage(self, stage: Stage, *, start_step: int) -> Loader:
        """The batches of one stage from a step on, the same ones wherever they lie."""
        plan = self._plans[stage.index]
        same = {
            "augment": self._augment,
            "seed": self._seed,
            "stage_index": stage.index,
            "start_step": start_step,
        }
        if self._in_memory:
            return resident.ResidentLoader(self._resident, self._records, plan, **same)
        return loader.train_loader(
            self._records,
            plan,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            num_workers=self._num_workers,
            **self._image,
            **same,
        )

    @functools.cached_property
    def _resident(self) -> resident.ResidentSet:
        """Decoded once for all stages."""
        return resident.ResidentSet(self._records, self._mesh, **self._image)


def _plan(records: Records, stage: Stage, seed: int) -> PKPlan:
    try:
        return PKPlan(
            records.person,
            identities=stage.identities,
            images_per_identity=stage.images_per_identity,
            # Stages draw different batches.
            seed=seed + (stage.index << 20),
        )
    except UserError as error:
        raise UserError(str(error).replace("<stage>", stage.name)) from error
