"""TFDS builder `synthetic`: renders the embedded data set into ArrayRecord."""

import collections
import concurrent.futures
import io
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any, ClassVar

import tensorflow_datasets as tfds
import tqdm

from data_pipelines import features
from data_pipelines.synthetic import plan, render, sets
from reid_jax.errors import UserError

GUARD = "`if __name__ == '__main__':`"
"""What keeps the processes of a script from running the script."""

_ALONE = 300
"""Below so many pictures, starting processes takes longer than rendering."""

_SHARE = 16
"""Pictures that a process renders before it hands them over."""

_Encoded = tuple[bytes, bytes]


class Synthetic(tfds.core.GeneratorBasedBuilder):
    """Rendered pedestrians of many identities, seen by several cameras.

    Configs are `<variant>_<size>`, `pretrain` and `bed_<bed>_<step>`. Every picture
    carries person, camera and an exact part map; carried objects and occluders count
    as background there.

    - `holistic`: whole people; 12 % of the training images are lightly occluded
      (8 to 25 % of the body).
    - `occluded`: 30 % of the training images are occluded (15 to 50 % of the body),
      every query is (25 to 60 %), the gallery is whole.
    - `partial`: trained like `holistic`; every query shows the upper part, the lower
      part or one side, stretched to the frame; the gallery is whole.
    - `varied`: three of five training images and queries have a difficulty of the test
      beds (something or somebody in front, cut off, box off or too large); the gallery
      is whole.

    Sizes are `demo` (100 training identities, 1,200 images), `small` (300, 4,000) and
    `market` (the counts of Market-1501); see `plan.SIZES`. The variants of one size
    share their people. Test people are not seen in training, every query has a match
    from another camera in the gallery, and galleries hold some distractors (person
    0).

    `pretrain` (3,200 training identities, 40,000 images, 24 cameras) is rendered like
    `holistic`, to start networks from: its people, cameras and places are in none of
    the others. `pretrain_demo` is a small one of its kind.

    `bed_...` are test beds without training images, of a difficulty that is controlled
    in steps; see `data_pipelines/synthetic/beds.py`.

    A version of the builder always renders the same pictures.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name=name, description=name.replace("_", ", "))
        for name in sets.NAMES
    ]

    def __init__(
        self,
        *,
        file_format: str = "array_record",
        progress: bool = True,
        **kwargs: Any,
    ):
        """Accepts what TFDS accepts; stores ArrayRecord unless told otherwise."""
        self._progress = progress
        super().__init__(file_format=file_format, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=features.features(with_parts=True),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        name = self.builder_config.name
        return {
            split: self._generate_examples(sets.shots(name, split))
            for split in sets.splits(name)
        }

    def _generate_examples(self, shots: list[plan.Shot]) -> Iterator[tuple[int, dict]]:
        pictures = rendered(shots, processes=_cores())
        # Not TFDS' own bar, which is switched off with the others of TFDS.
        shown = tqdm.tqdm(
            pictures,
            desc=f"rendering {shots[0].split}",
            total=len(shots),
            unit=" images",
            disable=not self._progress,
        )
        for shot, (image, parts) in zip(shots, shown, strict=True):
            yield (
                shot.index,
                {
                    "image": io.BytesIO(image),
                    "parts": io.BytesIO(parts),
                    "person": shot.person,
                    "camera": shot.camera,
                    "filename": shot.filename,
                },
            )


def rendered(shots: list[plan.Shot], *, processes: int) -> Iterator[_Encoded]:
    """Renders pictures in order; the bytes do not depend on `processes`.

    Returns:
      JPEG picture and PNG part map of each shot.

    Raises:
      UserError: a process has died.
    """
    if processes == 1 or len(shots) < _ALONE:
        yield from map(render.encoded, shots)
        return
    # Spawned, not forked: the caller may hold threads, as JAX does.
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(processes, context, _obey)
    begun: collections.deque = collections.deque()
    try:
        for first in range(0, len(shots), _SHARE):
            begun.append(pool.submit(_share, shots[first : first + _SHARE]))
            if len(begun) > 2 * processes:  # enough for all, and few to keep
                yield from begun.popleft().result()
        while begun:
            yield from begun.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(
            "A process that renders has died. If memory has run out, free some and "
            f"prepare again; if a script prepares, put what it does below {GUARD}."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _share(shots: list[plan.Shot]) -> list[_Encoded]:
    return list(map(render.encoded, shots))


def _obey() -> None:
    """Leaves it to the parent to end this process: by Ctrl-C, and by a kill, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
