"""Building a data set beside its place, and putting it there whole."""

import contextlib
import errno
import fcntl
import io
import os
import pathlib
import shutil
from collections.abc import Iterator

import tensorflow_datasets as tfds

from data_pipelines import prepared
from data_pipelines.preparation.plan import Plan
from reid_jax.errors import UserError


def install(
    plan: Plan, data_dir: pathlib.Path, overwrite: bool
) -> tuple[pathlib.Path, bool]:
    """The folder of the prepared data set, and whether it was built just now."""
    target = data_dir / plan.name / plan.version
    staging = data_dir / f".preparing-{plan.name.replace('/', '-')}"
    if target.exists() and not overwrite and not staging.exists():
        return target, False
    try:
        with _locked(staging, target):
            if target.exists() and not overwrite:
                return target, False
            _put_in_place(_build(plan, staging), target, staging)
            return target, True
    except (OSError, RuntimeError) as error:
        if not _is_disk_error(error):
            raise
        raise UserError(
            f"Cannot write to {data_dir} ({error}). Make room or choose another "
            "--data_dir. Nothing was stored."
        ) from error


def _is_disk_error(error: Exception) -> bool:
    """Whether it is the disk's fault: ArrayRecord reports it as a RuntimeError."""
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
    reasons = [os.strerror(code) for code in codes]
    return isinstance(error, OSError) or any(r in str(error) for r in reasons)


@contextlib.contextmanager
def _locked(staging: pathlib.Path, target: pathlib.Path) -> Iterator[None]:
    """Holds the folder in which `target` is built; removes it in the end.

    The lock ends with its process, however that dies. So what lies in a folder that
    nobody has locked is a leftover.
    """
    staging.mkdir(parents=True, exist_ok=True)
    lock = staging / "lock"
    with lock.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it before may have removed the folder in between.
            own = os.fstat(held.fileno()).st_ino == lock.stat().st_ino
        except (BlockingIOError, FileNotFoundError):
            own = False
        if not own:
            raise UserError(
                f"Another process is preparing this data set in {staging}. Wait for it."
            )
        try:
            _clear(staging, target)
            yield
        finally:
            _clear(staging, target)
            shutil.rmtree(staging, ignore_errors=True)


def _clear(staging: pathlib.Path, target: pathlib.Path) -> None:
    """Puts back what a broken-off run was replacing; removes what it was building."""
    replaced = staging / "replaced"
    if replaced.exists() and not target.exists():
        replaced.rename(target)
    for leftover in staging.iterdir():
        if leftover.is_dir():
            shutil.rmtree(leftover)


def _build(plan: Plan, staging: pathlib.Path) -> pathlib.Path:
    """Builds the whole data set inside `staging` and opens it once."""
    builder = plan.make(staging)
    # TFDS announces every step on standard output, under its temporary path, and has
    # progress bars without a total.
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()
    for split in builder.info.splits:
        prepared.open_records(plan.name, split, staging)
    return pathlib.Path(builder.data_path)


def _put_in_place(
    built: pathlib.Path, target: pathlib.Path, staging: pathlib.Path
) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target.rename(staging / "replaced")
    built.rename(target)
