r"""Shows what a prepared data set holds, and what looks wrong in it.

    python -m data_pipelines.inspect market1501 --data_dir=data --out=market1501.png

Prints counts, identities per camera, images per identity, sizes, the share of images
with part labels, and suspicious entries; writes a contact sheet with a few identities
of each split, their part labels drawn over the images. Every image is decoded once.
Suspicious entries do not change the exit code: they are for a person to judge.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import hashlib
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence

import cv2
import numpy as np
import tqdm

from data_pipelines import prepared, transforms
from data_pipelines.entries import shown
from data_pipelines.part_labels.kinds import UNLABELLED
from data_pipelines.records import Records
from reid_jax.errors import UserError

SPLITS = ("train", "query", "gallery")
"""Splits in the order in which they are shown; others follow."""

_COLUMNS = 12
_ROWS = 3
_TILE = (128, 64)
_CAPTION = 18
_GAP = 3
_THREADS = min(4, os.cpu_count() or 1)


@dataclasses.dataclass(frozen=True)
class Image:
    """What is kept of one image: `size` is None where it cannot be decoded."""

    size: tuple[int, int] | None
    digest: bytes
    labelled: bool


@dataclasses.dataclass(frozen=True)
class Inspected:
    """A split and what is known of its images, in the order of the records."""

    stored: Records
    images: list[Image]

    @property
    def identities(self) -> np.ndarray:
        """Persons above 0, sorted."""
        return np.unique(self.stored.person[self.stored.person > 0])


def inspect(
    dataset: str, data_dir: str | os.PathLike, *, progress: bool = True
) -> dict[str, Inspected]:
    """Reads every image of a prepared data set.

    Returns:
      Split name -> its records and images.

    Raises:
      UserError: the data set is not there or is damaged.
    """
    found = {}
    for split in _splits(dataset, data_dir):
        stored = prepared.open_records(dataset, split, data_dir)
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            images = tqdm.tqdm(
                pool.map(lambda i, stored=stored: _look(stored[i]), range(len(stored))),
                desc=split,
                total=len(stored),
                unit=" images",
                leave=False,
                disable=not progress,
            )
            found[split] = Inspected(stored, list(images))
    return found


def _splits(dataset: str, data_dir: str | os.PathLike) -> list[str]:
    present = prepared.split_names(dataset, data_dir)
    return sorted(
        present, key=lambda s: SPLITS.index(s) if s in SPLITS else len(SPLITS)
    )


def _look(record: Mapping) -> Image:
    digest = hashlib.sha256(record["image"]).digest()
    try:
        size = transforms.decode(record["image"]).shape[:2]
        labelled = "parts" in record and bool(
            (transforms.decode_parts(record["parts"]) != UNLABELLED).any()
        )
    except ValueError:
        return Image(None, digest, False)
    return Image(size, digest, labelled)


def report(found: Mapping[str, Inspected]) -> str:
    """The table of counts, the distributions and the suspicious entries, as text."""
    suspicious = list(suspicions(found))
    lines = [
        *_counts(found),
        "",
        *_per_camera(found),
        "",
        "Suspicious entries:" if suspicious else "Suspicious entries: none.",
        *(f"- {line}" for line in suspicious),
    ]
    return "\n".join(lines)


def _counts(found: Mapping[str, Inspected]) -> Iterator[str]:
    head = ("", "images", "identities", "cameras", "images each", "size", "labelled")
    yield _cells(head)
    for name, split in found.items():
        stored = split.stored
        _, each = np.unique(stored.person[stored.person > 0], return_counts=True)
        labelled = np.mean([i.labelled for i in split.images]) if len(stored) else 0
        yield _cells(
            (
                name,
                len(stored),
                len(each),
                np.unique(stored.camera).size,
                _spread(each),
                _sizes(split.images),
                f"{labelled:.1%}",
            )
        )
        if distractors := int((stored.person == 0).sum()):
            yield f"{'':10}{distractors:>9} of them distractors"
    yield "images each: least / median / most of an identity; size: height x width"


def _cells(cells: Sequence[object]) -> str:
    widths = (10, 9, 12, 9, 18, 26, 10)
    text = (f"{c!s:>{w}}" for c, w in zip(cells[1:], widths[1:], strict=True))
    return f"{cells[0]!s:{widths[0]}}" + "".join(text)


def _spread(values: np.ndarray) -> str:
    if not len(values):
        return "-"
    return f"{values.min()} / {np.median(values):g} / {values.max()}"


def _sizes(images: Sequence[Image]) -> str:
    sizes = np.array([i.size for i in images if i.size])
    if not len(sizes):
        return "-"
    (low_h, low_w), (high_h, high_w) = sizes.min(axis=0), sizes.max(axis=0)
    least, most = f"{low_h} x {low_w}", f"{high_h} x {high_w}"
    return least if least == most else f"{least} to {most}"


def _per_camera(found: Mapping[str, Inspected]) -> Iterator[str]:
    cameras = sorted({int(c) for s in found.values() for c in s.stored.camera})
    shown_cameras = cameras[:20]
    yield "identities of each camera:"
    yield f"{'':10}" + "".join(f"{c:>7}" for c in shown_cameras)
    for name, split in found.items():
        person, camera = split.stored.person, split.stored.camera
        seen = (
            np.unique(person[(camera == c) & (person > 0)]).size for c in shown_cameras
        )
        yield f"{name:10}" + "".join(f"{n:>7}" for n in seen)
    if len(cameras) > len(shown_cameras):
        yield f"and {len(cameras) - len(shown_cameras)} more cameras"


def suspicions(found: Mapping[str, Inspected]) -> Iterator[str]:
    """What may be a mistake in the data, a line each."""
    for name, split in found.items():
        broken = [n for n, i in _named(split) if i.size is None]
        if broken:
            yield f"{name}: {_images(broken)} cannot be read: {shown(broken)}"
    yield from _duplicates(found)
    if "query" in found and "gallery" in found:
        yield from _unmatched(found["query"].stored, found["gallery"].stored)
    tested = [s.identities for n, s in found.items() if n != "train"]
    if "train" in found and tested:
        both = np.intersect1d(found["train"].identities, np.concatenate(tested))
        if len(both):
            yield f"{_identities(both, 'is', 'are')} in train and in test: {_ids(both)}"


def _named(split: Inspected) -> Iterator[tuple[str, Image]]:
    return ((split.stored.filename(i), image) for i, image in enumerate(split.images))


def _duplicates(found: Mapping[str, Inspected]) -> Iterator[str]:
    """Groups of images with the same bytes, by their splits and identities."""
    places = collections.defaultdict(list)
    for name, split in found.items():
        for index, image in enumerate(split.images):
            person = int(split.stored.person[index])
            places[image.digest].append(
                (name, f"{name}/{split.stored.filename(index)}", person)
            )
    groups = [group for group in places.values() if len(group) > 1]
    within = [g for g in groups if len({split for split, _, _ in g}) == 1]
    across = [g for g in groups if len({split for split, _, _ in g}) > 1]
    mixed = [g for g in groups if len({person for _, _, person in g}) > 1]
    for what, chosen in (
        ("within a split", within),
        ("in several splits", across),
        ("under several identities", mixed),
    ):
        if chosen:
            examples = [" = ".join(n for _, n, _ in g[:3]) for g in chosen]
            verb = "is" if len(chosen) == 1 else "are"
            yield (
                f"{_images(chosen)} {verb} there several times {what}: "
                f"{shown(examples, most=3)}"
            )


def _unmatched(query: Records, gallery: Records) -> Iterator[str]:
    """Identities that the camera filter leaves without a match, and the reverse."""
    seen = _cameras_by_person(gallery)
    asked = _cameras_by_person(query)
    absent = [p for p in asked if p not in seen]
    if absent:
        count = _identities(absent, "is", "are", kind="query ")
        yield f"{count} not in the gallery: {_ids(absent)}"
    alone = [
        p for p, cameras in asked.items() if p in seen and len(cameras | seen[p]) == 1
    ]
    if alone:
        yield (
            f"{_identities(alone, 'was', 'were')} seen by one camera only in query "
            f"and gallery, so that their queries have no match: {_ids(alone)}"
        )


def _cameras_by_person(stored: Records) -> dict[int, set[int]]:
    cameras = collections.defaultdict(set)
    for person, camera in zip(
        stored.person.tolist(), stored.camera.tolist(), strict=True
    ):
        if person > 0:
            cameras[person].add(camera)
    return cameras


def _images(items: Sequence[object]) -> str:
    return "1 image" if len(items) == 1 else f"{len(items)} images"


def _identities(items: Sequence[int], one: str, many: str, *, kind: str = "") -> str:
    """How many identities, and the verb that goes with the number."""
    if len(items) == 1:
        return f"1 {kind}identity {one}"
    return f"{len(items)} {kind}identities {many}"


def _ids(persons: Iterable[int]) -> str:
    return shown([str(p) for p in sorted(persons)])


def contact_sheet(found: Mapping[str, Inspected], path: str | os.PathLike) -> None:
    """Writes a picture: a few identities of each split, one row for each.

    Args:
      found: from `inspect`.
      path: PNG file to write.

    Raises:
      UserError: it cannot be written.
    """
    blocks = []
    for name, split in found.items():
        blocks.append(_caption(f"{name}: {len(split.stored)} images"))
        blocks += _rows_of(split)
    sheet = np.concatenate(blocks)[..., ::-1]
    try:
        pathlib.Path(path).write_bytes(cv2.imencode(".png", sheet)[1].tobytes())
    except OSError as error:
        raise UserError(f"Cannot write --out={path} ({error}).") from error


def _rows_of(split: Inspected) -> list[np.ndarray]:
    """Rows of the identities with the most images: as many as there are rows."""
    person = split.stored.person
    ids, counts = np.unique(person, return_counts=True)
    often = ids[np.argsort(-counts, kind="stable")]
    chosen = sorted(often[often > 0][:_ROWS]) or sorted(often[:_ROWS])
    return [_row(split, np.flatnonzero(person == p)) for p in chosen]


def _row(split: Inspected, indices: np.ndarray) -> np.ndarray:
    places = np.linspace(0, len(indices) - 1, min(_COLUMNS, len(indices)))
    tiles = [_tile(split, int(i)) for i in indices[places.round().astype(int)]]
    blank = np.full_like(tiles[0], 255)
    tiles += [blank] * (_COLUMNS - len(tiles))
    return np.concatenate(tiles, axis=1)


def _tile(split: Inspected, index: int) -> np.ndarray:
    """One image with its labels, if it has any, and its person and camera below."""
    image = split.images[index]
    stored = split.stored
    if image.size is None:
        drawn = np.zeros((*_TILE, 3), np.uint8)
    else:
        record = stored[index]
        drawn = transforms.resize(transforms.decode(record["image"]), _TILE)
        if image.labelled:
            parts = transforms.decode_parts(record["parts"])
            drawn = _painted(drawn, transforms.resize_parts(parts, _TILE))
    text = f"{stored.person[index]} c{stored.camera[index]}"
    framed = np.full((_TILE[0] + _CAPTION, _TILE[1] + _GAP, 3), 255, np.uint8)
    framed[: _TILE[0], : _TILE[1]] = drawn
    return _written(framed, text, 0.34, _TILE[0] + 11)


def _painted(image: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """The image with its part classes in colours that neighbours do not share."""
    labels = np.arange(256)
    # Steps of the golden angle keep consecutive hues far apart.
    hue = (labels * 0.618034 % 1 * 180).astype(np.uint8)
    full = np.full_like(hue, 255)
    colours = cv2.cvtColor(np.stack([hue, full, full], -1)[None], cv2.COLOR_HSV2RGB)[0]
    mixed = (0.5 * image + 0.5 * colours[parts]).astype(np.uint8)
    seen = (parts > 0) & (parts != UNLABELLED)
    return np.where(seen[..., None], mixed, image)


def _caption(text: str) -> np.ndarray:
    strip = np.full((_CAPTION + 4, _COLUMNS * (_TILE[1] + _GAP), 3), 255, np.uint8)
    return _written(strip, text, 0.45, _CAPTION)


def _written(picture: np.ndarray, text: str, size: float, bottom: int) -> np.ndarray:
    cv2.putText(
        picture,
        text,
        (2, bottom),
        cv2.FONT_HERSHEY_SIMPLEX,
        size,
        (0, 0, 0),
        1,
        cv2.LINE_AA,
    )
    return picture


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m data_pipelines.inspect",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dataset", help="name or name/config of a prepared data set")
    parser.add_argument("--data_dir", default="data", help="default: %(default)s")
    parser.add_argument("--out", help="contact sheet; default: <dataset>.png")
    given = parser.parse_args(argv)
    out = given.out or f"{given.dataset.replace('/', '-')}.png"
    try:
        found = inspect(given.dataset, given.data_dir)
        print(report(found))
        contact_sheet(found, out)
    except UserError as error:
        print(f"inspect: {error}", file=sys.stderr)
        return 2
    print(f"Contact sheet: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
