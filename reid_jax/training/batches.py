"""Where a run's training batches come from: its disk, or its devices' memory."""

from __future__ import annotations

import functools
from typing import Any

import jax

from data_pipelines import loader
from data_pipelines.records import Records
from data_pipelines.sampling import PKPlan
from reid_jax import experiment
from reid_jax.models.method import Method
from reid_jax.training import resident

Loader = loader.TrainLoader | resident.ResidentLoader


class TrainingBatches:
    """The batches of every stage of a run.

    Args:
      config: of the run; `data`, `augment` and `seed` are read.
      records: the training split.
      method: what is to be trained.
      mesh: of the run.

    Raises:
      UserError: for an augmentation that does not exist, and for a training set that
        `config.data.resident_bytes` does not allow, or not with these steps.
    """

    def __init__(
        self, config: Any, records: Records, method: Method, mesh: jax.sharding.Mesh
    ):
        self._config, self._records, self._mesh = config, records, mesh
        self._augment = experiment.build_augment(config)
        self._size = experiment.image_size(config)
        self._with_parts = "parts" in method.train_inputs
        if config.data.resident_bytes:
            resident.check(
                records,
                self._augment,
                image_size=self._size,
                with_parts=self._with_parts,
                limit=config.data.resident_bytes,
            )

    def of_stage(self, plan: PKPlan, *, stage_index: int, start_step: int) -> Loader:
        """The batches of one stage from a step on, the same ones wherever they lie."""
        same = {
            "augment": self._augment,
            "seed": self._config.seed,
            "stage_index": stage_index,
            "start_step": start_step,
        }
        if self._config.data.resident_bytes:
            return resident.ResidentLoader(self._resident, self._records, plan, **same)
        return loader.train_loader(
            self._records,
            plan,
            image_size=self._size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            num_workers=self._config.data.num_workers,
            with_parts=self._with_parts,
            **same,
        )

    @functools.cached_property
    def _resident(self) -> resident.ResidentSet:
        """Decoded once for all stages."""
        return resident.ResidentSet(
            self._records,
            self._mesh,
            image_size=self._size,
            with_parts=self._with_parts,
        )
