"""Building a data set beside its place, and putting it there whole.

What is under way lies in `<data_dir>/.preparing-<name>`: a lock that ends with its
process, however that dies; below `<name>` what is being built; below `replaced` what
is being replaced. So what lies in a folder that nobody has locked is a leftover.
"""

import contextlib
import io
import multiprocessing
import pathlib
import shutil
import sys
from collections.abc import Iterator

import tensorflow_datasets as tfds

from data_pipelines import prepared
from data_pipelines.preparation.plan import Plan
from data_pipelines.synthetic.builder import GUARD
from reid_jax import staging as folders
from reid_jax import storage
from reid_jax.errors import UserError

_PREFIX = ".preparing-"


def install(
    plan: Plan, data_dir: pathlib.Path, overwrite: bool
) -> tuple[pathlib.Path, bool]:
    """The folder of the prepared data set, and whether it was built just now.

    Raises:
      UserError: it cannot be built or written, or is being built by another process.
    """
    target = data_dir / plan.name / plan.version
    try:
        clear_dead(data_dir)
        if target.exists() and not overwrite:
            return target, False
        _check_guarded()
        with _locked(data_dir, plan.name) as staging:
            if target.exists() and not overwrite:
                return target, False
            aside = staging / "replaced" / target.name
            folders.put(_build(plan, staging), target, aside)
            return target, True
    except (OSError, ValueError, RuntimeError) as error:
        # ArrayRecord reports a disk's fault as a RuntimeError.
        if not isinstance(error, OSError) and storage.disk_error(error) is None:
            raise
        raise UserError(
            f"Cannot write to {data_dir} ({error}). Make room or choose another "
            "--data_dir. Nothing was stored."
        ) from error


def _check_guarded() -> None:
    """Refuses to build in a process that has come here by running its parent's script.

    The parent builds already, and waits for it: it would wait for the parent's lock.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise UserError(
            "Preparing a data set starts processes, which run the script that does so "
            f"again: put what it does below {GUARD}."
        )


def clear_dead(data_dir: pathlib.Path) -> None:
    """Clears away what killed runs have left, and nothing of those that are alive."""
    for folder in sorted(data_dir.glob(f"{_PREFIX}*")):
        # Another user's leftovers are not ours to clear; where files cannot be locked,
        # nothing tells the dead from the living.
        with contextlib.suppress(OSError):
            if (lock := folders.try_lock(folder, certain=True)) is not None:
                with lock:
                    _clear(folder)


@contextlib.contextmanager
def _locked(data_dir: pathlib.Path, name: str) -> Iterator[pathlib.Path]:
    """Holds the folder in which a data set is built; removes it in the end."""
    staging = data_dir / (_PREFIX + name.replace("/", "-"))
    # Runs that start together all want it, and one of them prepares it.
    with folders.locked(staging, doing="preparing this data set", patient=True):
        try:
            yield staging
        finally:
            _clear(staging)


def _clear(staging: pathlib.Path) -> None:
    """Puts back what a broken-off run was replacing, and removes the folder."""
    place = staging.parent / staging.name.removeprefix(_PREFIX).replace("-", "/")
    for replaced in (staging / "replaced").glob("*"):
        if not (place / replaced.name).exists():
            replaced.rename(place / replaced.name)
    shutil.rmtree(staging, ignore_errors=True)


def _build(plan: Plan, staging: pathlib.Path) -> pathlib.Path:
    """Builds the whole data set inside `staging` and opens it once."""
    builder = plan.builder(staging)
    if plan.progress:
        print(f"Preparing {plan.name} in {staging.parent}, once", file=sys.stderr)
    # TFDS announces every step on standard output, under its temporary path, and has
    # progress bars without a total.
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()
    for split in builder.info.splits:
        prepared.open_records(plan.name, split, staging)
    return pathlib.Path(builder.data_path)
