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

Images and label files that cannot be used are named, and nothing is stored;
`--skip_bad_images` leaves them out, says which they are, and needs a `--name`. An image
whose label file is left out is unlabelled.

An interrupted or failed run leaves nothing that could be taken for a data set; start
it again.
"""

import argparse
import os
import pathlib
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from data_pipelines import prepared
from data_pipelines.part_labels.kinds import KINDS
from data_pipelines.preparation import staging
from data_pipelines.preparation.plan import Plan, known_datasets, make_plan
from data_pipelines.preparation.request import Place, Request
from data_pipelines.readers.datasets import DATASETS
from data_pipelines.report import next_command, report
from reid_jax import errors, storage
from reid_jax.errors import UserError


def prepare(
    dataset: str,
    *,
    data_dir: str | os.PathLike,
    source: Place = None,
    lists: Place = None,
    parts: Place = None,
    parts_kind: str | None = None,
    allow_other_counts: bool = False,
    skip_bad_images: bool = False,
    name: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> pathlib.Path:
    """Stores a data set, unless it is already prepared under that name.

    Args:
      dataset: one of `known_datasets()`.
      data_dir: folder of the prepared data sets.
      source: folder or zip of a data set that is not rendered by the library.
      lists: folder of the published lists, for data sets that can be made with them.
      parts: folder of part-label files; see `part_labels.label_files`.
      parts_kind: what they are, one of `part_labels.kinds.KINDS`.
      allow_other_counts: accepts a source whose counts are not the published ones.
      skip_bad_images: leaves out images and label files that cannot be used.
      name: stores under this name instead of that of the data set.
      overwrite: prepares again, and replaces the old one once the new one is whole.
      progress: shows progress bars.

    Returns:
      The folder of the prepared data set.

    Raises:
      UserError: unknown data set, missing or wrong source, images that cannot be
        used, a name that cannot be used or stands for another source already, or no
        room or right to write.
    """
    request = Request(
        dataset,
        source=source,
        lists=lists,
        parts=parts,
        parts_kind=parts_kind,
        allow_other_counts=allow_other_counts,
        skip_bad_images=skip_bad_images,
        name=name,
    )
    plan = make_plan(request, progress=progress)
    return _install(plan, _on_disk(data_dir), overwrite)[0]


def _install(
    plan: Plan, data_dir: pathlib.Path, overwrite: bool
) -> tuple[pathlib.Path, str]:
    """The folder of the prepared data set, and what was done."""
    path, built = staging.install(plan, data_dir, overwrite)
    if built:
        return path, f"Prepared {plan.name} in {path}"
    compared = plan.check(path)
    done = f"{plan.name} is already prepared in {path}; nothing was done."
    return path, "\n".join(filter(None, (done, compared)))


def _on_disk(data_dir: str | os.PathLike) -> pathlib.Path:
    """Raises UserError for a bucket."""
    if storage.in_bucket(data_dir):
        raise UserError(
            f"--data_dir={data_dir}: data sets are prepared on a disk, then copied: "
            f"gcloud storage cp --recursive data/NAME {data_dir}"
        )
    return storage.expanded(data_dir)


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
    parser.add_argument(
        "--skip_bad_images",
        action="store_true",
        help="leave out images and label files that cannot be used",
    )
    parser.add_argument("--name", help="store under this name")
    parser.add_argument(
        "--overwrite", action="store_true", help="prepare again and replace"
    )
    return parser


def _acknowledge(number: int, frame: FrameType | None) -> None:
    """Answers Ctrl-C at once: clearing away what was begun may take a moment."""
    print("\nstopping ...", file=sys.stderr, flush=True)
    signal.default_int_handler(number, frame)


def main(argv: Sequence[str] | None = None) -> None:
    """Prepares a data set, and says how to go on.

    Raises:
      UserError: for a mistake in the arguments or in the source.
      KeyboardInterrupt: after Ctrl-C, with what to say.
    """
    args = vars(_parser().parse_args(argv))
    data_dir, overwrite = args.pop("data_dir"), args.pop("overwrite")
    try:
        plan = make_plan(Request(**args), progress=True)
        place = _on_disk(data_dir)
        _, done = _install(plan, place, overwrite)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; nothing was stored.") from None
    opened = prepared.open_splits(plan.name, place)
    text = report(plan.name, opened, prepared.metadata(plan.name, place))
    notes = [DATASETS[args["dataset"]].note] if args["dataset"] in DATASETS else []
    following = next_command(plan.name, opened, place)
    print(done, text, *filter(None, notes), following, sep="\n")


def run() -> None:
    """The command of this module alone; `reid-jax prepare` answers signals itself."""
    signal.signal(signal.SIGINT, _acknowledge)
    with errors.answered():
        main()


if __name__ == "__main__":
    run()
