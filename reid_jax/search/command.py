"""`reid-jax search`: a gallery of embedded images that can be searched, on Milvus.

--gallery is a file NAME.db, which needs nothing to be started, or a Milvus server or
cluster, http://HOST:19530; all else is the same. `docs/search.md` has examples.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import itertools
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from reid_jax import storage
from reid_jax.errors import UserError
from reid_jax.extractor import load as loading
from reid_jax.extractor.images import BadImage
from reid_jax.search import check, milvus, parquet, query, rows, schema, strip
from reid_jax.search import gallery as galleries
from reid_jax.search.gallery import Gallery
from reid_jax.search.query import Asked, Hit

if TYPE_CHECKING:
    from reid_jax.extractor.extractor import Extractor

_AGE = re.compile(r"(\d+)([dhm])")
_UNITS = {"d": "days", "h": "hours", "m": "minutes"}


def main(argv: Sequence[str]) -> None:
    """Runs one sub-verb.

    Args:
      argv: what follows `reid-jax search`.

    Raises:
      UserError: see the sub-verbs.
    """
    args = _parser().parse_args(argv)
    args.run(args)


def add(args: argparse.Namespace) -> None:
    """Embeds what is not there yet, or has changed, and adds it."""
    begin = time.monotonic()
    tables = [place for place in args.places if parquet.holds(place)]
    if tables and len(tables) < len(args.places):
        raise UserError("add either images or Parquet files, not both at once")
    if tables:
        _check_for_tables(args)
        options = {"model": args.model, "index": args.index}
        new, total = parquet.add(args.gallery, args.collection, tables, **options)
    else:
        entries = _entries(args)
        begin, total = time.monotonic(), len(entries)
        try:
            new = _add(args, entries)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted; what was embedded is in {args.gallery}, and the same "
                "command goes on from there"
            ) from None
    speed = new / (time.monotonic() - begin)
    print(
        f"{args.gallery}: {new} images added or changed, {total - new} were there; "
        f"{speed:.1f} images/s"
    )


def _check_for_tables(args: argparse.Namespace) -> None:
    """Raises UserError for flags that Parquet files have no use for."""
    flags = ("pattern", "camera", "skip_bad_images", "batch_size")
    if given := [f"--{flag}" for flag in flags if getattr(args, flag)]:
        raise UserError(
            f"{', '.join(given)}: what is known of the images of a Parquet file is in "
            "it, and they are not read again; leave this out"
        )


def _entries(args: argparse.Namespace) -> list[rows.Entry]:
    bad: list[BadImage] = []
    try:
        entries = rows.from_files(
            args.places,
            pattern=args.pattern,
            camera=args.camera,
            skipped=(lambda _, e: bad.append(e)) if args.skip_bad_images else None,
        )
    except BadImage as error:
        raise UserError(
            f"{error}. Repair it, or leave such images out with --skip_bad_images"
        ) from error
    for line in bad:
        print(f"skipped: {line}", file=sys.stderr)
    return entries


def _add(args: argparse.Namespace, entries: Sequence[rows.Entry]) -> int:
    there, told = _there(args, entries)
    new = [entry for entry in entries if there.get(entry.id) != entry.content]
    if not new:
        return told
    extractor = _loaded(args.model)
    batches = rows.embedded(extractor, new, batch_size=args.batch_size)
    batch, embedding = next(batches)
    about = rows.about(extractor, args.model, embedding)
    options = {"index": args.index}
    with galleries.made(args.gallery, about, args.collection, **options) as gallery:
        for some, arrays in itertools.chain([(batch, embedding)], batches):
            rows.put(gallery, rows.remembering(gallery, some), arrays)
        gallery.flush()
    return told + len(new)


def _there(
    args: argparse.Namespace, entries: Sequence[rows.Entry]
) -> tuple[dict[str, str], int]:
    """Id -> content of what is there already; nothing, where there is no gallery.

    Of these, so many had other facts; they have those of `entries` now. --model becomes
    the gallery's network unless it is given.
    """
    try:
        with galleries.existing(args.gallery, args.collection) as gallery:
            gallery.check_index(args.index)
            if args.model:
                gallery.check(_loaded(args.model).network.fingerprint, args.model)
            args.model = args.model or gallery.about.model
            there = gallery.contents([entry.id for entry in entries])
            return there, rows.retell(gallery, entries)
    except milvus.NoGallery:
        _loaded(args.model)
        return {}, 0


def ask(args: argparse.Namespace) -> None:
    """The nearest images of each query: a table, JSON lines, a picture."""
    _check_files(args)
    options = query.Options(
        top=args.top,
        where=args.filter,
        other_cameras=args.other_cameras,
        candidates=args.candidates,
    )
    with galleries.existing(args.gallery, args.collection) as gallery:
        if not gallery.count():
            raise UserError(f"the gallery {args.gallery} is empty: add images first")
        gallery.count(args.filter)  # a wrong filter is told before anything is embedded
        for path in filter(None, (args.jsonl, args.strip)):
            storage.check_writable(storage.absolute(path).parent)
        entries = rows.from_files(args.places, pattern=args.pattern, camera=args.camera)
        extractor = _network_of(gallery, args.model)
        asked = rows.asked(gallery, extractor, entries)
        lists = query.answers(gallery, extractor.distance, asked, options)
        size = gallery.about.image_size
    _say(asked, lists)
    if args.jsonl:
        storage.write_bytes(args.jsonl, _json_lines(asked, lists).encode())
        print(f"the answers are in {args.jsonl}")
    if args.strip:
        title = f"the nearest in {args.gallery}" + (
            f", where {args.filter}" if args.filter else ""
        )
        lost = strip.draw(args.strip, asked, lists, size, title=title)
        if lost:
            print(f"note: {lost} images are no longer there", file=sys.stderr)
        if len(asked) > strip.MOST_QUERIES or args.top > strip.MOST_IMAGES:
            print(
                f"note: of {len(asked)} queries {strip.MOST_QUERIES} are drawn at "
                f"most, and {strip.MOST_IMAGES} images of each; --jsonl has all",
                file=sys.stderr,
            )
        print(f"the answers are drawn in {args.strip}")


def _check_files(args: argparse.Namespace) -> None:
    """Raises UserError for files that cannot be written, before anything is done."""
    for flag in ("jsonl", "strip"):
        path = getattr(args, flag)
        if path and storage.absolute(path).is_dir():
            raise UserError(f"--{flag}={path} is a folder; name a file")
    if args.strip and not args.strip.lower().endswith(".png"):
        raise UserError(f"--strip={args.strip}: the picture is a PNG; name it so")


def info(args: argparse.Namespace) -> None:
    """What a gallery holds, and of which network."""
    with galleries.existing(args.gallery, args.collection) as gallery:
        about = gallery.about
        print(f"gallery      {gallery.uri}, collection {gallery.name}")
        print(f"images       {gallery.count()}")
        for name in rows.KNOWN:
            print(f"  {name:10} known of {gallery.count(f'{name} is not null')}")
        print(f"network      {about.method}, fingerprint {about.fingerprint}")
        print(f"  from       {about.model or 'unknown'}")
        print(f"  image size {about.image_size[0]} x {about.image_size[1]}")
        for name, (dtype, shape) in about.arrays.items():
            print(f"  {name:10} {' x '.join(map(str, shape)) or '1'}, {dtype}")
        print(f"index        {gallery.index} over {about.anchor}")
        print(f"columns      {', '.join(['id', 'path', *rows.KNOWN, 'added'])}")
        for name, kind in about.columns.items():
            print(f"             {name} ({kind})")


def delete(args: argparse.Namespace) -> None:
    """Removes entries by a filter, by age, or by both."""
    parts = [f"({args.filter})"] if args.filter.strip() else []
    if args.older_than:
        parts.append(_older(args.older_than))
    if not parts:
        raise UserError("say what to delete: --filter=..., --older_than=90d, or both")
    where = " and ".join(parts)
    with galleries.existing(args.gallery, args.collection) as gallery:
        count = gallery.count(where) if args.dry_run else gallery.delete(where)
    done = "would be deleted" if args.dry_run else "deleted"
    print(f"{args.gallery}: {count} entries {done}; image files are left alone")


def measure(args: argparse.Namespace) -> None:
    """Speed and recall of each kind of index; on request, the gallery gets another."""
    with galleries.existing(args.gallery, args.collection) as gallery:
        options = {"top": args.top, "queries": args.queries, "most": args.most}
        print(check.HEADER)
        for measured in check.measure(gallery, args.index, **options):
            print(measured, flush=True)
        if args.use:
            gallery.reindex(args.use)
            print(f"{args.gallery} has {args.use} now")


def serve(args: argparse.Namespace) -> None:
    """The page for review, until Ctrl-C."""
    from reid_jax.search import web

    with galleries.existing(args.gallery, args.collection) as gallery:
        storage.check_writable(storage.expanded(args.marks))
        extractor = _network_of(gallery, args.model)
        web.serve(gallery, extractor, host=args.host, port=args.port, marks=args.marks)


@functools.cache
def _loaded(place: str) -> Extractor:
    if not place:
        raise UserError(
            "say which network embeds: --model=RUN, an export's folder or shipped/NAME"
        )
    return loading.load(place)


def _network_of(gallery: Gallery, place: str) -> Extractor:
    """The network at `place`, or where the gallery says it was."""
    place = place or gallery.about.model
    extractor = _loaded(place)
    gallery.check(extractor.network.fingerprint, place)
    return extractor


def _say(asked: Sequence[Asked], lists: Sequence[Sequence[Hit]]) -> None:
    for one, hits in zip(asked, lists, strict=True):
        print(one.name)
        for rank, hit in enumerate(hits, 1):
            known = [f"{k} {hit.facts[k]}" for k in rows.KNOWN if hit.facts.get(k)]
            line = "  ".join([f"{hit.distance:.4f}", hit.facts["path"], *known])
            print(f"{rank:4}  {line}")
        if not hits:
            print("      nothing passes the filter")


def _json_lines(asked: Sequence[Asked], lists: Sequence[Sequence[Hit]]) -> str:
    lines = []
    for one, hits in zip(asked, lists, strict=True):
        for rank, hit in enumerate(hits, 1):
            own = {"query": one.name, "rank": rank, "distance": hit.distance}
            # Galleries of an older version may have columns of these names.
            lines.append(json.dumps(own | hit.facts | own) + "\n")
    return "".join(lines)


def _older(age: str) -> str:
    """The filter of what is older: by its time, or, without one, when it was added."""
    found = _AGE.fullmatch(age)
    if not found:
        raise UserError(f"--older_than={age} is no age; write 90d, 12h or 30m")
    try:
        length = datetime.timedelta(**{_UNITS[found[2]]: int(found[1])})
        begin = datetime.datetime.now(datetime.UTC) - length
    except (OverflowError, ValueError) as error:
        raise UserError(f"--older_than={age} is before the year 1") from error
    limit = milvus.quoted(rows.moment(begin))
    return f"(time <= {limit} or (time is null and added <= {limit}))"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="reid-jax search",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(required=True, metavar="SUB-VERB")
    for fill in (_add_flags, _query_flags, _info_flags, _delete_flags, _check_flags):
        fill(functools.partial(_verb, verbs))
    _serve_flags(functools.partial(_verb, verbs))
    return parser


Make = Callable[..., argparse.ArgumentParser]


def _verb(
    verbs: argparse._SubParsersAction, name: str, run: Callable, *, model: bool = False
) -> argparse.ArgumentParser:
    about = (run.__doc__ or "").splitlines()[0]
    parser = verbs.add_parser(name, help=about, description=about)
    parser.set_defaults(run=run)
    parser.add_argument("--gallery", required=True, help="NAME.db or http://HOST:19530")
    parser.add_argument(
        "--collection", default=galleries.COLLECTION, help="default: %(default)s"
    )
    if model:
        parser.add_argument(
            "--model",
            default="",
            help="a run's folder, a checkpoint, an export or shipped/NAME",
        )
    return parser


def _image_flags(parser: argparse.ArgumentParser, places: str) -> None:
    parser.add_argument("places", nargs="+", metavar="PLACE", help=places)
    parser.add_argument(
        "--pattern",
        default="",
        help="what paths tell: a regular expression with the groups person, camera "
        r"and time, such as '(?P<person>\d+)_c(?P<camera>\d+)'",
    )
    parser.add_argument("--camera", help="of images whose path does not tell it")


def _add_flags(make: Make) -> None:
    parser = make("add", add, model=True)
    _image_flags(parser, "images, folders, or Parquet files of reid-jax embed")
    parser.add_argument(
        "--skip_bad_images", action="store_true", help="list unreadable ones, go on"
    )
    parser.add_argument("--batch_size", type=int, help="images at once")
    parser.add_argument(
        "--index",
        default="",
        choices=schema.INDEXES,
        help="of a new gallery; default: FLAT",
    )


def _query_flags(make: Make) -> None:
    parser = make("query", ask, model=True)
    _image_flags(parser, "images, or folders")
    parser.add_argument("--top", type=int, default=10, help="default: %(default)s")
    parser.add_argument(
        "--filter", default="", help="in Milvus' words, such as 'camera == \"3\"'"
    )
    parser.add_argument(
        "--other_cameras", action="store_true", help="not the query's own camera"
    )
    parser.add_argument(
        "--candidates",
        type=int,
        default=query.CANDIDATES,
        help="found by cosine and compared by the method; default: %(default)s",
    )
    parser.add_argument("--jsonl", help="file for the answers as JSON lines")
    parser.add_argument("--strip", help="file for the answers as a picture, NAME.png")


def _info_flags(make: Make) -> None:
    make("info", info)


def _delete_flags(make: Make) -> None:
    parser = make("delete", delete)
    parser.add_argument("--filter", default="", help="in Milvus' words")
    parser.add_argument(
        "--older_than",
        default="",
        help="90d, 12h or 30m: by time, or when it was added",
    )
    parser.add_argument("--dry_run", action="store_true", help="only count")


def _check_flags(make: Make) -> None:
    parser = make("check", measure)
    kinds = list(schema.INDEXES)
    parser.add_argument("--index", nargs="+", default=kinds, choices=kinds)
    parser.add_argument("--top", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--queries", type=int, default=50, help="default: %(default)s")
    parser.add_argument(
        "--most", type=int, default=100_000, help="entries copied; default: %(default)s"
    )
    parser.add_argument("--use", choices=kinds, help="the gallery's index from now on")


def _serve_flags(make: Make) -> None:
    parser = make("serve", serve, model=True)
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("--port", type=int, default=8080, help="default: %(default)s")
    parser.add_argument(
        "--marks",
        default="marks",
        help="folder for what is marked; default: %(default)s",
    )
