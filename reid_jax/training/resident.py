"""The training set in the devices' memory, for hosts with too few cores to decode it.

Every image is decoded and resized once, and lies on each device as uint8. A batch is
gathered and augmented there. What is random is drawn on the host, by the very steps
and generators of `data_pipelines.loader`, so that the batches are the same to the bit,
and a run may go on with or without it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from data_pipelines import loader
from data_pipelines.augment.geometry import Flip, PadCrop
from data_pipelines.augment.occlusion import RandomErasing
from data_pipelines.part_labels import kinds
from data_pipelines.records import Records
from data_pipelines.sampling import PKPlan
from data_pipelines.transforms import STEPS, Augment
from reid_jax.errors import UserError
from reid_jax.models.method import Batch
from reid_jax.runtime import sharding

_FIELD = "config.data.resident_bytes"
_DECODED_AT_ONCE = 64

Pair = tuple[jax.Array, jax.Array | None]
"""Images uint8 [b, H, W, 3] and their part labels uint8 [b, H, W], if there are any."""


def check(
    records: Records,
    augment: Augment,
    *,
    image_size: tuple[int, int],
    with_parts: bool,
    limit: int,
) -> None:
    """Raises UserError if a training set cannot be used in this way.

    Args:
      records: the training split.
      augment: its augmentation; every step needs a version for devices.
      image_size: height and width.
      with_parts: whether part labels are needed too.
      limit: bytes that may be taken on each device.
    """
    for step in augment.steps:
        if type(step) not in _ON_DEVICE or getattr(step, "mode", "colour") != "colour":
            names = [name for name, kind in STEPS.items() if kind in _ON_DEVICE]
            raise UserError(
                f"{step} runs on the host only; with {_FIELD} the steps may be "
                f"{', '.join(names)} (by colour). Set it to 0, or change config.augment"
            )
    height, width = image_size
    needed = len(records) * height * width * (4 if with_parts else 3)
    if needed > limit:
        raise UserError(
            f"{len(records)} decoded images of {height} x {width} need {needed} bytes "
            f"on each device, but {_FIELD}={limit}. Raise it if there is room beside "
            "the network, lower config.data.height and width, or set it to 0"
        )


class ResidentSet:
    """A decoded training set, replicated on a mesh.

    Attributes:
      images: uint8 [N, H, W, 3].
      parts: uint8 [N, H, W], or None.
      labelled: bool [N], which images have part labels at all.
    """

    def __init__(
        self,
        records: Records,
        mesh: jax.sharding.Mesh,
        *,
        image_size: tuple[int, int],
        with_parts: bool,
    ):
        """Decodes everything; every process does.

        Raises:
          UserError: a stored image is damaged.
        """
        height, width = image_size
        images = np.empty((len(records), height, width, 3), np.uint8)
        labels = np.empty((len(records), height, width), np.uint8)
        batches = loader.eval_batches(
            records,
            image_size=image_size,
            batch_size=_DECODED_AT_ONCE,
            with_parts=with_parts,
        )
        hidden = jax.process_index() != 0
        bar = tqdm(total=len(records), desc="decoding", unit="img", disable=hidden)
        with bar:
            for batch in batches:
                rows = batch["index"][batch["mask"]]
                images[rows] = batch["image"][batch["mask"]]
                if with_parts:
                    labels[rows] = batch["parts"][batch["mask"]]
                bar.update(len(rows))
        everywhere = sharding.replicated(mesh)
        put = functools.partial(jax.make_array_from_process_local_data, everywhere)
        self.mesh, self.images = mesh, put(images)
        self.parts = put(labels) if with_parts else None
        has_labels = (labels != kinds.UNLABELLED).any((1, 2)) if with_parts else None
        self.labelled = put(has_labels) if with_parts else None


class ResidentLoader(grain.DatasetIterator):
    """Takes the place of `loader.TrainLoader`; the batches lie on the devices.

    Each is a dict of global arrays split over the mesh, with the keys, shapes and types
    of `loader.train_loader`'s. The state is the same as that loader's.

    Args:
      resident: the decoded records.
      records: the same, for what is not an image.
      plan: which records each batch holds.
      augment: of which every step has passed `check`.
      seed: seeds the augmentation, together with stage, step and row.
      stage_index: position of the training stage in its method.
      start_step: step of the stage whose batch comes first.

    Raises:
      UserError: the processes do not divide the batch.
    """

    def __init__(
        self,
        resident: ResidentSet,
        records: Records,
        plan: PKPlan,
        *,
        augment: Augment,
        seed: int,
        stage_index: int = 0,
        start_step: int = 0,
    ):
        super().__init__()
        if resident.parts is not None and records.has_parts:
            augment = augment.for_parts(records.parts_kind)
        self._resident, self._records, self._plan = resident, records, plan
        self._steps = augment.steps
        self._seed, self._stage, self._step = int(seed), int(stage_index), start_step
        self._rows = loader.host_rows(
            plan.batch_size, jax.process_index(), jax.process_count()
        )
        self._make = jax.jit(
            functools.partial(_gather, self._steps),
            out_shardings=sharding.batch_sharding(resident.mesh),
        )

    def __next__(self) -> Batch:
        resident = self._resident
        rows = sharding.put_batch(self.host_part(), resident.mesh)
        drawn = [rows.pop(f"step {n}") for n in range(len(self._steps))]
        made = self._make(
            rows["index"], drawn, resident.images, resident.parts, resident.labelled
        )
        self._step += 1
        return rows | made

    def get_state(self) -> dict[str, Any]:
        """The step of the next batch."""
        return {"next_step": self._step}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to the step of a `get_state()`."""
        self._step = int(state["next_step"])

    def host_part(self) -> dict[str, np.ndarray]:
        """What the host does for the next batch, of its own rows.

        Numbers int32 [b], and for step n of the augmentation what it draws, `step n`,
        int32 [b, k].
        """
        size = self._resident.images.shape[1:3]
        index = self._plan.batch(self._step)[self._rows.start : self._rows.stop]
        rows = {
            "person": self._records.person[index],
            "camera": self._records.camera[index],
            "index": index.astype(np.int32),
            "label": self._plan.labels[index],
        }
        draws = []
        for row in self._rows:
            place = self._step * self._plan.batch_size + row
            rng = np.random.default_rng([self._seed, self._stage, place])
            draws.append([step.draw(size, rng) for step in self._steps])
        return rows | {
            f"step {n}": np.array(drawn, np.int32)
            for n, drawn in enumerate(zip(*draws, strict=True))
        }


def _gather(
    steps: Sequence[Any],
    index: jax.Array,
    drawn: Sequence[jax.Array],
    images: jax.Array,
    labels: jax.Array | None,
    labelled: jax.Array | None,
) -> Batch:
    """Augmented images and part labels of a batch."""
    pair = images[index], None if labels is None else labels[index]
    for step, values in zip(steps, drawn, strict=True):
        pair = _ON_DEVICE[type(step)](step, values, *pair)
    made = {"image": pair[0]}
    if pair[1] is not None:
        # Images without labels stay without: erased pixels are not background either.
        known = labelled[index][:, None, None]
        made["parts"] = jnp.where(known, pair[1], np.uint8(kinds.UNLABELLED))
    return made


def _flip(step: Flip, drawn: jax.Array, image: jax.Array, labels: Any) -> Pair:
    mirrored = drawn[:, 0, None, None] == 1
    image = jnp.where(mirrored[..., None], image[:, :, ::-1], image)
    if labels is not None:
        every = np.arange(256, dtype=np.uint8)
        sides = jnp.asarray(kinds.flip_classes(every, step.parts_kind))
        labels = jnp.where(mirrored, sides[labels[:, :, ::-1]], labels)
    return image, labels


def _pad_crop(step: PadCrop, drawn: jax.Array, image: jax.Array, labels: Any) -> Pair:
    def crop(array: jax.Array) -> jax.Array:
        border = [(0, 0), (step.pad, step.pad), (step.pad, step.pad)]
        padded = jnp.pad(array, [*border, *[(0, 0)] * (array.ndim - 3)])

        def one(padded: jax.Array, start: jax.Array) -> jax.Array:
            starts = (start[0], start[1], *[0] * (array.ndim - 3))
            return jax.lax.dynamic_slice(padded, starts, array.shape[1:])

        return jax.vmap(one)(padded, drawn)

    return crop(image), None if labels is None else crop(labels)


def _erase(
    step: RandomErasing, drawn: jax.Array, image: jax.Array, labels: Any
) -> Pair:
    top, bottom, left, right = (drawn[:, n, None, None] for n in range(4))
    row = jnp.arange(image.shape[1])[:, None]
    column = jnp.arange(image.shape[2])
    inside = (row >= top) & (row < bottom) & (column >= left) & (column < right)
    fill = np.asarray(step.fill).astype(np.uint8)
    image = jnp.where(inside[..., None], fill, image)
    if labels is not None:
        labels = jnp.where(inside, np.uint8(step.part_label), labels)
    return image, labels


_ON_DEVICE: dict[type, Callable[..., Pair]] = {
    Flip: _flip,
    PadCrop: _pad_crop,
    RandomErasing: _erase,
}
