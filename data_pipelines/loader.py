"""Grain pipelines from stored records to batches of NumPy arrays.

Training batches are a pure function of (seed, stage, step): the sampling plan says
which records they hold, and the augmentation of a row is seeded by its global
position. So any number of workers and hosts produces the same global batches, and a
host decodes only its own rows. Images stay uint8; they are normalised on the device.
"""

import concurrent.futures
import contextlib
import dataclasses
import errno
import multiprocessing
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from data_pipelines import images, transforms
from data_pipelines.part_labels.kinds import UNLABELLED
from data_pipelines.records import Records
from data_pipelines.sampling import PKPlan
from reid_jax.errors import UserError

Batch = dict[str, np.ndarray]

# A prefetched element is a whole batch (6 MB for 64 images of 256 x 128).
_READ_THREADS = min(4, os.cpu_count() or 1)
_READ_OPTIONS = grain.ReadOptions(
    num_threads=_READ_THREADS, prefetch_buffer_size=_READ_THREADS
)
_WORKER_READ_OPTIONS = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
_MAX_STEPS = 2**40
_BYTES_PER_PIXEL = 4  # colours and part label
_NO_MEMORY = (errno.ENOMEM, errno.ENOSPC)


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads one record as image (and parts) at the size of the network's input."""

    records: Records
    image_size: tuple[int, int]
    with_parts: bool
    augment: transforms.Augment | None = None

    def __call__(self, index: int, rng: np.random.Generator | None = None) -> Batch:
        image, parts = self._decode(index)
        if self.augment is not None:
            image, parts = self.augment(image, parts, rng)
        row = {
            "image": image,
            "person": self.records.person[index],
            "camera": self.records.camera[index],
            "index": np.int32(index),
        }
        if self.with_parts:
            row["parts"] = self._unlabelled() if parts is None else parts
        return row

    def padding(self) -> Batch:
        """A row that stands for no record: black, person and index -1, camera 0."""
        row = {
            "image": np.zeros((*self.image_size, 3), np.uint8),
            "person": np.int32(-1),
            "camera": np.int32(0),
            "index": np.int32(-1),
        }
        if self.with_parts:
            row["parts"] = self._unlabelled()
        return row

    def _decode(self, index: int) -> transforms.Pair:
        record = self.records[index]
        try:
            image = images.decode(record["image"])
            image = images.resize(image, self.image_size, self.records.resize)
            if not self.with_parts or "parts" not in record:
                return image, None
            parts = images.decode_parts(record["parts"])
        except ValueError as error:
            raise UserError(
                f"The stored image {record['filename']} (record {index}) is damaged: "
                f"{error}. Prepare the data set again with --overwrite."
            ) from error
        parts = images.resize_parts(parts, self.image_size)
        # As where there are no labels: erased pixels are not background either.
        return image, None if (parts == UNLABELLED).all() else parts

    def _unlabelled(self) -> np.ndarray:
        return np.full(self.image_size, UNLABELLED, np.uint8)


@dataclasses.dataclass(frozen=True)
class _TrainRow:
    """Maps a position in this host's stream of rows to an augmented row."""

    reader: _Reader
    plan: PKPlan
    seed: int
    stage_index: int
    start_step: int
    rows: range  # This host's rows of a global batch.

    def __call__(self, position: int) -> Batch:
        step, row = divmod(int(position), len(self.rows))
        step, row = self.start_step + step, self.rows[row]
        index = int(self.plan.batch(step)[row])
        place = step * self.plan.batch_size + row
        rng = np.random.default_rng([self.seed, self.stage_index, place])
        return {**self.reader(index, rng), "label": self.plan.labels[index]}


class TrainLoader(grain.DatasetIterator):
    """Endless iterator over this host's part of the training batches.

    Each batch is a dict of `image` uint8 [b, H, W, 3], `label`, `person`, `camera`
    and `index` int32 [b], and `parts` uint8 [b, H, W] where asked for.

    The state is the step of the next batch, so a checkpoint that was saved with one
    number of workers or hosts continues with any other. Works with
    `grain.checkpoint.CheckpointSave`. Call `close()` when done: it ends the workers.
    """

    def __init__(self, row: _TrainRow, num_workers: int):
        super().__init__()
        self._row = row
        self._num_workers = num_workers
        self._step = row.start_step
        self._batches: Iterator[Batch] | None = None

    def __next__(self) -> Batch:
        with _workers_alive(self._num_workers):
            if self._batches is None:  # Workers start only once a batch is wanted.
                self._batches = iter(self._pipeline())
            batch = next(self._batches)
        self._step += 1
        if self._num_workers:
            # Workers hand over views of shared memory, which would leak if the caller
            # still held one at exit.
            batch = {key: np.array(value) for key, value in batch.items()}
        return batch

    def get_state(self) -> dict[str, Any]:
        """The step of the next batch."""
        return {"next_step": self._step}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to the step of a `get_state()`."""
        self._stop()
        self._step = int(state["next_step"])

    def close(self) -> None:
        """Ends the reading threads and the workers."""
        self._stop()
        super().close()

    def _pipeline(self) -> grain.IterDataset:
        row = dataclasses.replace(self._row, start_step=self._step)
        size = len(row.rows)
        rows = grain.MapDataset.range(_MAX_STEPS * size).map(row)
        # Batches are formed before workers divide the stream: divided first, each
        # worker would batch rows of different global batches.
        batches = rows.batch(size, drop_remainder=True)
        if not self._num_workers:
            return batches.to_iter_dataset(_READ_OPTIONS)
        _mark_flags_parsed()
        return batches.to_iter_dataset(_WORKER_READ_OPTIONS).mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=self._num_workers, per_worker_buffer_size=2
            ),
            worker_init_fn=_heed_parent,
        )

    def _stop(self) -> None:
        if self._batches is not None:
            self._batches.close()
            self._batches = None


def _heed_parent(index: int, count: int) -> None:
    """Makes a worker end with its parent, however that ends, and not before it.

    Ctrl-C and Slurm's notice come to all processes of a group, and a run that is told
    to stop saves first.
    """
    del index, count
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    def follow() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


_DIED = re.compile(r"terminated unexpectedly with exit code (-?\d+)")


@contextlib.contextmanager
def _workers_alive(count: int) -> Iterator[None]:
    """Turns the end of a worker, or of what workers share, into one message."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        died = _DIED.search(str(error))
        if not count or not (died or getattr(error, "errno", 0) in _NO_MEMORY):
            raise
        code = -int(died[1]) if died else 0
        how = signal.Signals(code).name if code > 0 else str(error)
        raise UserError(
            f"a reading worker died ({how}). Most often memory has run out, or shared "
            f"memory has: /dev/shm has {_shared_memory()} in all, and workers keep "
            f"batches there. Lower --config.data.num_workers (now {count}; 0 reads in "
            "this process), or give more (docker run --shm-size=8g). The same command "
            "goes on from the last checkpoint."
        ) from error


def _shared_memory() -> str:
    try:
        return f"{shutil.disk_usage('/dev/shm').total >> 20} MiB"
    except OSError:
        return "nothing"


def train_loader(
    records: Records,
    plan: PKPlan,
    *,
    augment: transforms.Augment,
    image_size: tuple[int, int],
    seed: int,
    stage_index: int = 0,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
    with_parts: bool = False,
) -> TrainLoader:
    """Training batches of one host; the hosts' rows joined are the global batch.

    Args:
      records: the training split.
      plan: which records each batch holds.
      augment: applied to each decoded and resized image.
      image_size: height and width.
      seed: seeds the augmentation, together with stage, step and row.
      stage_index: position of the training stage in its method.
      start_step: step of the stage whose batch comes first.
      process_index: this host.
      process_count: number of hosts, each with an equal share of the rows.
      num_workers: processes that decode; 0 reads in threads of this process.
      with_parts: adds `parts`; 255 throughout where a record has none.

    Raises:
      UserError: the hosts do not divide the batch, or parts are asked for and joined
        records number theirs differently; later, from `next`, a stored image that is
        damaged, or a worker that died.
    """
    rows = host_rows(plan.batch_size, process_index, process_count)
    _check_memory(len(rows), image_size)
    if with_parts and records.has_parts:
        augment = augment.for_parts(records.parts_kind)
    reader = _Reader(records, tuple(image_size), with_parts, augment)
    row = _TrainRow(reader, plan, int(seed), int(stage_index), int(start_step), rows)
    return TrainLoader(row, num_workers)


@dataclasses.dataclass(frozen=True)
class _EvalRow:
    """Maps a position in this host's part of the padded sequence to a row."""

    reader: _Reader
    batch_size: int
    rows: range

    def __call__(self, position: int) -> Batch:
        step, row = divmod(int(position), len(self.rows))
        index = step * self.batch_size + self.rows[row]
        real = index < len(self.reader.records)
        content = self.reader(index) if real else self.reader.padding()
        return {**content, "mask": np.bool_(real)}


def eval_batches(
    records: Records,
    *,
    image_size: tuple[int, int],
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    with_parts: bool = False,
) -> Iterator[Batch]:
    """Every record once, in order, in batches padded to one size.

    Args:
      records: a query or gallery split.
      image_size: height and width.
      batch_size: rows of a global batch, shared equally by the hosts.
      process_index: this host.
      process_count: number of hosts; each gets the same number of batches.
      with_parts: adds `parts`; 255 throughout where a record has none.

    Returns:
      Iterator over `image` uint8 [b, H, W, 3], `person`, `camera` and `index` int32
      [b], `mask` bool [b], False on padding (black, person and index -1, camera 0),
      and `parts` uint8 [b, H, W] where asked for.

    Raises:
      UserError: the hosts do not divide the batch; later, from `next`, a stored image
        that is damaged.
    """
    rows = host_rows(batch_size, process_index, process_count)
    _check_memory(len(rows), image_size)
    reader = _Reader(records, tuple(image_size), with_parts)
    steps = -(-len(records) // batch_size)
    if not steps:
        return iter(())
    dataset = grain.MapDataset.range(steps * len(rows))
    dataset = dataset.map(_EvalRow(reader, batch_size, rows)).batch(len(rows))
    return iter(dataset.to_iter_dataset(_READ_OPTIONS))


def image_batch(
    records: Records,
    indices: Sequence[int] | np.ndarray,
    *,
    image_size: tuple[int, int],
    with_parts: bool = False,
) -> Batch:
    """The named records as one batch, as `eval_batches` has them, without padding.

    As many threads read them as read those.

    Raises:
      UserError: a stored image is damaged.
    """
    reader = _Reader(records, tuple(image_size), with_parts)
    with concurrent.futures.ThreadPoolExecutor(_READ_THREADS) as pool:
        rows = list(pool.map(reader, map(int, indices)))
    mask = np.ones(len(rows), bool)
    # The padding row gives keys, shapes and types where there are no rows.
    joined = {
        key: np.stack([like, *(row[key] for row in rows)])[1:]
        for key, like in reader.padding().items()
    }
    return {**joined, "mask": mask}


def host_rows(batch_size: int, process_index: int, process_count: int) -> range:
    """The rows of a global batch that host `process_index` decodes.

    Raises:
      UserError: the hosts do not divide the batch.
    """
    if batch_size % process_count:
        raise UserError(
            f"A batch of {batch_size} images cannot be shared equally by "
            f"{process_count} hosts. Choose a batch size that {process_count} divides."
        )
    size = batch_size // process_count
    return range(process_index * size, (process_index + 1) * size)


def _check_memory(rows: int, image_size: tuple[int, int]) -> None:
    """Raises UserError for a batch that is larger than this machine's memory."""
    height, width = image_size
    needed = rows * height * width * _BYTES_PER_PIXEL
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise UserError(
            f"{rows} images of {height} x {width} pixels take {needed >> 30} GiB, and "
            f"this machine has {there >> 30}. Lower config.data.height and width or "
            "the size of the batch."
        )


def _mark_flags_parsed() -> None:
    """Lets Grain's workers read absl flags in a script that runs without `app.run`."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
