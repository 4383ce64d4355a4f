r"""Embeds many images into a file: Parquet, or .npz.

  reid-jax embed --model=runs/aaformer-demo --images=photos --to=photos.parquet
  reid-jax embed --model=runs/aaformer-demo --images='cameras/*/*.jpg' --to=all.npz
  reid-jax embed --model=runs/market --dataset=market1501 --split=gallery --to=g.parquet

--images is a folder (all image files below it), an image, a glob pattern, or a table
(.csv, .parquet) with the columns path, relative to the folder of the table, and, where
they are known, person, camera and time. A network that reads cameras needs the training
set's numbers of them, from 0 on. Killed, the same command goes on where it was. Images
whose size or time of modification has changed since count as others.

For more images than one machine can do, --shard=3/64 embeds the fourth of 64 shares
into a file of its own, NAME-00003-of-00064.parquet; so do the processes of a JAX run,
each its share (--coordinator). launch/embed.sh starts Slurm arrays and indexed
Kubernetes jobs.
"""

from __future__ import annotations

import argparse
import pathlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from reid_jax.errors import UserError

if TYPE_CHECKING:
    from reid_jax.embed.listing import Listing


def main(argv: Sequence[str]) -> None:
    """`reid-jax embed`."""
    args = _parser().parse_args(argv)
    # The help and wrong flags are answered before anything heavy is imported.
    import jax
    from jax.experimental import multihost_utils

    import reid_jax
    from reid_jax import storage
    from reid_jax.embed import files, job
    from reid_jax.runtime import compilation, processes

    target = storage.expanded(args.to)
    files.check_suffix(target)
    shard = _shard(args.shard)
    compilation.silence_notes()
    processes.join(
        args.coordinator,
        count=args.process_count,
        index=args.process_index,
        timeout=args.process_timeout,
    )
    processes.check_devices()
    if jax.process_count() > 1:
        if shard:
            raise UserError("--shard is for processes that do not know each other")
        shard = (jax.process_index(), jax.process_count())
    wanted = job.Job(
        _listing(args),
        _of_shard(target, shard) if shard else target,
        shard or (0, 1),
        flip=args.flip,
        batch_size=args.batch_size,
        skip_bad_images=args.skip_bad_images,
        overwrite=args.overwrite,
    )
    wanted.listing.share(*wanted.shard)  # a wrong one is said before a network is read
    print(job.run(wanted, reid_jax.load(args.model)))
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("all shares are embedded")


def _listing(args: argparse.Namespace) -> Listing:
    """The images that are meant."""
    from reid_jax.embed import listing

    if (args.images is None) == (args.dataset is None):
        raise UserError("give either --images or --dataset and --split")
    if args.images is not None:
        return listing.of_images(args.images)
    return listing.of_split(args.dataset, args.split, args.data_dir)


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)/([1-9]\d*)", text)
    if not match:
        raise UserError(f"--shard={text}: write 3/64 for the fourth of 64 shares")
    return int(match[1]), int(match[2])


def _of_shard(target: pathlib.Path, shard: tuple[int, int]) -> pathlib.Path:
    name = f"{target.stem}-{shard[0]:05}-of-{shard[1]:05}{target.suffix}"
    return target.with_name(name)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="reid-jax embed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--model",
        required=True,
        help="a run's folder, a checkpoint, an export or shipped/NAME",
    )
    add("--images", help="folder, image, glob pattern or table")
    add("--dataset", help="name of a prepared data set, in place of --images")
    add("--split", default="gallery", help="of it; default: %(default)s")
    add("--data_dir", default="data", help="of prepared data; default: %(default)s")
    add("--to", required=True, help="file to be written, .parquet or .npz")
    add("--flip", action="store_true", help="average with the mirror images")
    add("--batch_size", type=int, help="images at once over all devices")
    add("--shard", help="I/N: the share I of N, from 0, into a file of its own")
    add("--skip_bad_images", action="store_true", help="list unreadable ones, go on")
    add("--overwrite", action="store_true", help="replace what other work has left")
    add("--coordinator", help="HOST:PORT of process 0 of a JAX run, or auto")
    add("--process_count", type=int, help="processes of the JAX run")
    add("--process_index", type=int, help="this process, from 0")
    add("--process_timeout", type=int, default=300, help="seconds to wait for others")
    return parser
