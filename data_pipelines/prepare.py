r"""Prepares a data set: reads its source once and stores it as ArrayRecord files.

    python -m data_pipelines.prepare --dataset=market1501 \
        --source=Market-1501-v15.09.15 --data_dir=data
    python -m data_pipelines.prepare --dataset=synthetic/holistic_demo --data_dir=data

A data set of one's own in Market-1501's layout is stored under its own name:

    python -m data_pipelines.prepare --dataset=market1501 --source=<folder or zip> \
        --allow_other_counts --name=<its_name> --data_dir=data

An interrupted or failed run leaves nothing that could be taken for a data set; start
it again.
"""

import argparse
import contextlib
import dataclasses
import difflib
import errno
import fcntl
import functools
import io
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import tensorflow_datasets as tfds
import tqdm

from data_pipelines import market1501, records
from data_pipelines.synthetic.builder import Synthetic
from reid_jax.errors import UserError

SPLITS = ("train", "query", "gallery")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is to be built: under which name and version, and how."""

    name: str
    version: str
    make: Callable[[pathlib.Path], tfds.core.DatasetBuilder]


def known_datasets() -> list[str]:
    """Names that `prepare` accepts."""
    synthetic = [f"synthetic/{config.name}" for config in Synthetic.BUILDER_CONFIGS]
    return ["market1501", *synthetic]


def prepare(
    dataset: str,
    *,
    data_dir: str | os.PathLike,
    source: str | os.PathLike | None = None,
    allow_other_counts: bool = False,
    name: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> pathlib.Path:
    """Stores a data set, unless one of that name is already prepared.

    Args:
      dataset: one of `known_datasets()`.
      data_dir: folder of the prepared data sets.
      source: folder or zip of a data set that is not rendered by the library.
      allow_other_counts: accepts a source whose counts are not the published ones.
      name: stores under this name instead of that of the data set.
      overwrite: prepares again, and replaces the old one once the new one is whole.
      progress: shows progress bars.

    Returns:
      The folder of the prepared data set.

    Raises:
      UserError: unknown data set, missing or wrong source, an image that cannot be
        used, a name that cannot be used, or no room or right to write.
    """
    plan = _plan(dataset, source, allow_other_counts, name, progress)
    return _prepare(plan, pathlib.Path(data_dir).expanduser(), overwrite)[0]


def _prepare(
    plan: _Plan, data_dir: pathlib.Path, overwrite: bool
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
            _install(_build(plan, staging), target, staging)
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


def _plan(
    dataset: str,
    source: str | os.PathLike | None,
    allow_other_counts: bool,
    name: str | None,
    progress: bool,
) -> _Plan:
    if dataset not in known_datasets():
        raise _unknown(dataset)
    if dataset == "market1501":
        name = _checked_name(name or dataset)
        make = functools.partial(
            _market, source, allow_other_counts, name, _tracker(progress)
        )
        return _Plan(name, str(market1501.MarketBuilder.VERSION), make)
    if source or name or allow_other_counts:
        raise UserError(
            f"{dataset} is rendered by the library: leave out --source, --name and "
            "--allow_other_counts."
        )
    config = dataset.split("/")[1]
    return _Plan(dataset, str(Synthetic.VERSION), functools.partial(_synthetic, config))


def _market(
    source: str | os.PathLike | None,
    allow_other_counts: bool,
    name: str,
    track: Callable[[Sequence[market1501.Entry], str], Iterable[market1501.Entry]],
    staging: pathlib.Path,
) -> tfds.core.DatasetBuilder:
    if not source:
        raise UserError(f"market1501 needs --source. {market1501.EXPECTED}")
    splits = market1501.scan(source)
    if not allow_other_counts:
        market1501.check_published(splits)
    return market1501.builder(splits, name=name, data_dir=staging, track=track)


def _synthetic(config: str, staging: pathlib.Path) -> tfds.core.DatasetBuilder:
    return Synthetic(
        config=config, data_dir=os.fspath(staging), file_format="array_record"
    )


def _tracker(progress: bool) -> Callable[[Sequence, str], Iterable]:
    def track(entries: Sequence, split: str) -> Iterable:
        return tqdm.tqdm(entries, desc=split, unit=" images", disable=not progress)

    return track


def _unknown(dataset: str) -> UserError:
    known = known_datasets()
    near = difflib.get_close_matches(dataset, known, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return UserError(
        f"Unknown data set {dataset!r}.{hint} Known: {', '.join(known)}. A data set of "
        "your own in Market-1501's layout: --dataset=market1501 --source=<folder or "
        "zip> --allow_other_counts --name=<its_name>."
    )


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name) or name == "synthetic":
        raise UserError(
            f"--name={name!r} cannot be used. A name has at most 64 small letters, "
            "digits and _, starts with a letter, and is not 'synthetic'."
        )
    return name


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


def _build(plan: _Plan, staging: pathlib.Path) -> pathlib.Path:
    """Builds the whole data set inside `staging` and opens it once."""
    builder = plan.make(staging)
    # TFDS announces every step on standard output, under its temporary path, and has
    # progress bars without a total.
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()
    for split in SPLITS:
        records.open_records(plan.name, split, staging)
    return pathlib.Path(builder.data_path)


def _install(built: pathlib.Path, target: pathlib.Path, staging: pathlib.Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target.rename(staging / "replaced")
    built.rename(target)


def report(dataset: str, data_dir: str | os.PathLike) -> str:
    """Describes a prepared data set: images, identities, cameras, remarks.

    Raises:
      UserError: the data set is not there or is damaged.
    """
    opened = {s: records.open_records(dataset, s, data_dir) for s in SPLITS}
    lines = [f"{'':8}{'images':>8}{'identities':>12}{'cameras':>9}"]
    for split, stored in opened.items():
        identities = np.unique(stored.person[stored.person > 0]).size
        cameras = np.unique(stored.camera).size
        lines.append(f"{split:8}{len(stored):>8}{identities:>12}{cameras:>9}")
    return "\n".join(lines + _remarks(opened))


def _remarks(opened: dict[str, records.Records]) -> list[str]:
    query, gallery, train = (
        set(opened[s].person[opened[s].person > 0].tolist())
        for s in ("query", "gallery", "train")
    )
    remarks = []
    if distractors := int((opened["gallery"].person == 0).sum()):
        remarks.append(f"{distractors} gallery images are distractors.")
    if alone := len(query - gallery):
        remarks.append(f"{alone} query identities have no gallery image.")
    if shared := len(train & (query | gallery)):
        remarks.append(
            f"Note: {shared} identities are in train and in query or gallery; "
            "evaluation does not measure new identities."
        )
    return remarks


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_pipelines.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--dataset", required=True, help=f"one of: {', '.join(known_datasets())}"
    )
    parser.add_argument("--source", help="folder or zip file of the data set")
    parser.add_argument("--data_dir", default="data", help="default: %(default)s")
    parser.add_argument(
        "--allow_other_counts",
        action="store_true",
        help="accept a source whose counts are not the published ones",
    )
    parser.add_argument("--name", help="store under this name")
    parser.add_argument(
        "--overwrite", action="store_true", help="prepare again and replace"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    args = vars(_parser().parse_args(argv))
    data_dir = pathlib.Path(args.pop("data_dir")).expanduser()
    overwrite = args.pop("overwrite")
    try:
        plan = _plan(**args, progress=True)
        path, built = _prepare(plan, data_dir, overwrite)
        text = report(plan.name, data_dir)
    except UserError as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("prepare: interrupted; nothing was stored.", file=sys.stderr)
        return 130
    if built:
        print(f"Prepared {plan.name} in {path}")
    else:
        print(f"{plan.name} is already prepared in {path}; nothing was done.")
        print("--overwrite prepares it again.")
    print(text, *_junk(path), _next_command(plan.name, data_dir), sep="\n")
    return 0


def _junk(path: pathlib.Path) -> list[str]:
    metadata = tfds.builder_from_directory(path).info.metadata or {}
    junk = sum(metadata.get("junk_dropped", {}).values())
    return [f"{junk} junk images (person -1) were left out."] if junk else []


def _next_command(name: str, data_dir: pathlib.Path) -> str:
    config = f"configs/baseline.py:dataset={name}"
    return (
        f"Next: python -m reid_jax.main --config={config} "
        f"--config.data.data_dir={data_dir}"
    )


if __name__ == "__main__":
    sys.exit(main())
