"""Prepared data sets from a bucket: copied to this machine once, then read here.

ArrayRecord opens files of a disk only, and random access to single images over a
network would be slow. A copy is made again when the bucket's files have changed.
"""

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator

from etils import epath
from tqdm import tqdm

from reid_jax import storage
from reid_jax.errors import UserError

_CHUNK = 8 << 20

Listing = dict[str, list[int]]
"""Size and time of change of every file, by its path below a folder."""


def cache_folder() -> pathlib.Path:
    """Where copies lie: $REID_JAX_DATA_CACHE, or ~/.cache/reid_jax/data."""
    chosen = os.environ.get("REID_JAX_DATA_CACHE")
    return storage.expanded(chosen or "~/.cache/reid_jax/data")


def local_copy(folder: epath.Path) -> epath.Path:
    """A folder of a bucket on this machine, copied unless a copy is there.

    It appears whole or not at all; processes of one machine wait for one another.

    Raises:
      UserError: there is no room or no right to write, or a file came incomplete.
    """
    target = cache_folder() / str(folder).removeprefix(storage.BUCKET)
    record = target.with_name(f".{target.name}.json")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _held(target.with_name(f".{target.name}.lock")):
            wanted = _listing(folder)
            if not target.is_dir() or _recorded(record) != wanted:
                _copy(folder, wanted, target, record)
    except OSError as error:
        raise UserError(
            f"cannot copy {folder} to {target} ({error}). REID_JAX_DATA_CACHE names "
            "another folder for copies."
        ) from error
    return epath.Path(target)


def _listing(folder: epath.Path) -> Listing:
    facts = {file: file.stat() for file in storage.files_below(folder)}
    return {
        str(file.relative_to(folder)): [stat.length, stat.mtime]
        for file, stat in facts.items()
    }


def _recorded(record: pathlib.Path) -> Listing | None:
    """What the bucket's files were when they were copied."""
    try:
        return json.loads(record.read_text())
    except (FileNotFoundError, ValueError):
        return None


def _copy(
    folder: epath.Path, wanted: Listing, target: pathlib.Path, record: pathlib.Path
) -> None:
    staging = target.with_name(f".{target.name}.copying")
    for old in (staging, target):
        shutil.rmtree(old, ignore_errors=True)
    total = sum(size for size, _ in wanted.values())
    with tqdm(
        total=total, desc=f"copying {folder}", unit="B", unit_scale=True, leave=False
    ) as bar:
        for name, (size, _) in wanted.items():
            _copy_file(folder / name, staging / name, bar)
            if (staging / name).stat().st_size != size:
                raise UserError(f"{folder / name} came incomplete; try again")
    storage.write_bytes(record, json.dumps(wanted).encode())
    staging.rename(target)


def _copy_file(source: epath.Path, target: pathlib.Path, bar: tqdm) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(_CHUNK):
            writer.write(chunk)
            bar.update(len(chunk))


@contextlib.contextmanager
def _held(lock: pathlib.Path) -> Iterator[None]:
    with lock.open("w") as file:
        storage.lock(file, wait=True)
        yield
