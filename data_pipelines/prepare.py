r"""Prepares a data set: reads its source once and stores it as ArrayRecord files.

    python -m data_pipelines.prepare --dataset=market1501 \
        --source=Market-1501-v15.09.15 --data_dir=data
    python -m data_pipelines.prepare --dataset=synthetic/holistic_demo --data_dir=data

Occluded-Duke can be made from a copy of DukeMTMC-reID and its published lists:

    python -m data_pipelines.prepare --dataset=occluded_duke --source=DukeMTMC-reID \
        --lists=Occluded_Duke --data_dir=data

A data set of one's own in Market-1501's layout is stored under its own name:

    python -m data_pipelines.prepare --dataset=market1501 --source=<folder or zip> \
        --allow_other_counts --name=<its_name> --data_dir=data

One that is listed in a CSV or Parquet table (`readers.table`):

    python -m data_pipelines.prepare --dataset=table --source=my.csv --name=mine \
        --data_dir=data

Part-label files that lie beside any of them (`part_labels.label_files`) are stored with
the images by adding `--parts=<folder> --parts_kind=pifpaf`.

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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import tensorflow_datasets as tfds
import tqdm

from data_pipelines import prepared, store
from data_pipelines.entries import Split
from data_pipelines.part_labels import label_files
from data_pipelines.part_labels.kinds import KINDS
from data_pipelines.readers.datasets import DATASETS
from data_pipelines.readers.sources import DataSet, check_published
from data_pipelines.report import next_command, report
from data_pipelines.synthetic.builder import Synthetic
from reid_jax import storage
from reid_jax.errors import UserError

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
    return [*DATASETS, *synthetic]


def prepare(
    dataset: str,
    *,
    data_dir: str | os.PathLike,
    source: str | os.PathLike | None = None,
    lists: str | os.PathLike | None = None,
    parts: str | os.PathLike | None = None,
    parts_kind: str | None = None,
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
      lists: folder of the published lists, for data sets that can be made with them.
      parts: folder of part-label files; see `part_labels.label_files`.
      parts_kind: what they are, one of `data_pipelines.parts.KINDS`.
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
    plan = _plan(
        dataset,
        source=source,
        options={"lists": lists},
        part_labels=(parts, parts_kind),
        allow_other_counts=allow_other_counts,
        name=name,
        progress=progress,
    )
    return _prepare(plan, _on_disk(data_dir), overwrite)[0]


def _on_disk(data_dir: str | os.PathLike) -> pathlib.Path:
    """Raises UserError for a bucket."""
    if storage.in_bucket(data_dir):
        raise UserError(
            f"--data_dir={data_dir}: data sets are prepared on a disk, then copied: "
            f"gcloud storage cp --recursive data/NAME {data_dir}"
        )
    return pathlib.Path(data_dir).expanduser()


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
    *,
    source: str | os.PathLike | None,
    options: Mapping[str, str | os.PathLike | None],
    part_labels: tuple[str | os.PathLike | None, str | None],
    allow_other_counts: bool,
    name: str | None,
    progress: bool,
) -> _Plan:
    if dataset not in known_datasets():
        raise _unknown(dataset)
    options = {key: value for key, value in options.items() if value is not None}
    if dataset in DATASETS:
        chosen = DATASETS[dataset]
        scan = functools.partial(
            _scan, chosen, source, options, part_labels, allow_other_counts
        )
        return _source_plan(
            chosen,
            name=_checked_name(chosen, name),
            scan=scan,
            track=_tracker(progress),
        )
    if source or name or allow_other_counts or options or any(part_labels):
        raise UserError(
            f"{dataset} is rendered by the library: leave out --source, --name, "
            "--lists, --parts, --parts_kind and --allow_other_counts."
        )
    config = dataset.split("/")[1]
    return _Plan(dataset, str(Synthetic.VERSION), functools.partial(_synthetic, config))


def _source_plan(
    data_set: DataSet,
    *,
    name: str,
    scan: Callable[[], Mapping[str, Split]],
    track: store.Track,
) -> _Plan:
    def make(staging: pathlib.Path) -> tfds.core.DatasetBuilder:
        return store.builder(
            scan(), name=name, title=data_set.title, data_dir=staging, track=track
        )

    return _Plan(name, str(store.VERSION), make)


def _scan(
    data_set: DataSet,
    source: str | os.PathLike | None,
    options: Mapping[str, object],
    part_labels: tuple[str | os.PathLike | None, str | None],
    allow_other_counts: bool,
) -> dict[str, Split]:
    if not source:
        raise UserError(f"{data_set.name} needs --source. {data_set.expected}")
    for option in options:
        if option not in data_set.options:
            raise UserError(f"{data_set.name} has no use for --{option}: leave it out.")
    splits = data_set.read(source, **options)
    if not allow_other_counts:
        check_published(data_set, splits)
    return label_files.attach(splits, *part_labels)


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


def _checked_name(data_set: DataSet, name: str | None) -> str:
    if name is None:
        if data_set.published is None:
            raise UserError(
                f"{data_set.name} is a data set of your own: add --name=<its_name>."
            )
        name = data_set.name
    if name != data_set.name and name in DATASETS:
        raise UserError(
            f"--name={name} is the name of a published data set; choose another, so "
            "that results cannot be taken for its."
        )
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
    for split in builder.info.splits:
        prepared.open_records(plan.name, split, staging)
    return pathlib.Path(builder.data_path)


def _install(built: pathlib.Path, target: pathlib.Path, staging: pathlib.Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target.rename(staging / "replaced")
    built.rename(target)


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
    parser.add_argument(
        "--lists", help="folder of the published lists, for occluded_duke"
    )
    parser.add_argument("--parts", help="folder of part-label files")
    parser.add_argument("--parts_kind", help=f"one of: {', '.join(KINDS)}")
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
    overwrite = args.pop("overwrite")
    try:
        data_dir = _on_disk(args.pop("data_dir"))
        if args["allow_other_counts"] and not args["name"]:
            raise UserError(
                "--allow_other_counts needs --name=<its_name>: other images must not "
                f"be taken for {args['dataset']}."
            )
        plan = _plan(
            options={"lists": args.pop("lists")},
            part_labels=(args.pop("parts"), args.pop("parts_kind")),
            progress=True,
            **args,
        )
        path, built = _prepare(plan, data_dir, overwrite)
        text = report(plan.name, path)
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
        print("The source was not read; --overwrite prepares it again.")
    notes = [DATASETS[args["dataset"]].note] if args["dataset"] in DATASETS else []
    print(text, *filter(None, notes), next_command(plan.name, path), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
