"""Draws a sheet of synthetic pedestrians, to see what the data set looks like.

python -m data_pipelines.synthetic.contact_sheet --out=sheet.png
python -m data_pipelines.synthetic.contact_sheet --out=beds.png --beds
"""

import argparse
import os
import pathlib
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_pipelines.synthetic import beds, plan, render, sets
from reid_jax import errors, storage
from reid_jax.errors import UserError

_COLOURS = np.array(
    [
        (0, 0, 0),
        (235, 60, 50),
        (250, 200, 60),
        (70, 160, 250),
        (40, 90, 190),
        (110, 210, 110),
        (40, 140, 60),
        (230, 130, 230),
        (150, 60, 170),
    ],
    np.uint8,
)
"""Colour of each part class; the left side is the lighter of a pair."""
_COLUMNS = 14
_GAP = 6
_MARGIN = 76
"""Pixels on the left for the names of the rows."""


def contact_sheet(
    path: str | os.PathLike, *, size: str = "demo", identities: int = 5
) -> None:
    """Writes a picture of blocks of rows: people, occluded, partial, varied, parts.

    Args:
      path: PNG or JPEG file to write.
      size: of the data set.
      identities: rows of the first block; each shows one person in all cameras.

    Raises:
      UserError: there are no rows, or the file cannot be written.
    """
    if identities < 1:
        raise UserError(f"--identities={identities}: draw one row or more")
    shots = plan.shots("holistic", size, "train")
    people = [
        _named(f"identity\n{row[0].person}", _row(row, labels=False))
        for row in _rows(shots, identities)
    ]
    occluded, partial = (
        _row(_every(plan.shots(kind, size, "query")), labels=False)
        for kind in ("occluded", "partial")
    )
    mixed = sets.shots(f"varied_{size}", "train")
    blocks = [
        np.concatenate(people),
        _named("occluded\nqueries", occluded),
        _named("partial\nqueries", partial),
        _named("varied\ntraining", _row(_every(mixed), labels=False)),
        _named("part labels,\nevery other", _row(_every(shots), labels=True)),
    ]
    _write(path, blocks)


def bed_sheet(path: str | os.PathLike) -> None:
    """Writes a picture with a block for each test bed, a row for each step.

    The queries of a column are the same ones in all steps.

    Args:
      path: PNG or JPEG file to write.
    """
    blocks: dict[str, list[np.ndarray]] = {}
    for name in beds.TRIALS:
        _, bed, step = name.split("_")
        queries = sets.shots(name, "query")
        # One camera's, so that those who are alike stand side by side.
        shown = queries[:: beds.CAMERAS] if bed == "alike" else _every(queries)
        row = _row(shown[:_COLUMNS], labels=False)
        blocks.setdefault(bed, []).append(_named(f"{bed}\n{step}", row))
    _write(path, list(map(np.concatenate, blocks.values())))


def _write(path: str | os.PathLike, blocks: list[np.ndarray]) -> None:
    """Blocks of rows below each other, with a gap between them."""
    gap = np.full((_GAP, blocks[0].shape[1], 3), 255, np.uint8)
    sheet = np.concatenate([part for block in blocks for part in (block, gap)][:-1])
    suffix = pathlib.Path(path).suffix.lower()
    if suffix not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"--out={path}: name a file ending in .png or .jpg")
    quality = [] if suffix == ".png" else [cv2.IMWRITE_JPEG_QUALITY, 82]
    encoded = cv2.imencode(suffix, sheet[..., ::-1], quality)[1]
    storage.check_writable(storage.absolute(path).parent)
    storage.write_bytes(path, encoded.tobytes())


def _rows(shots: list[plan.Shot], identities: int) -> list[list[plan.Shot]]:
    """Images of people who were seen often, spread over the list."""
    own: dict[int, list[plan.Shot]] = {}
    for shot in shots:
        own.setdefault(shot.person, []).append(shot)
    often = [images for images in own.values() if len(images) >= _COLUMNS]
    return [_every(images) for images in _every(often, identities)]


def _every(items: list, count: int = _COLUMNS) -> list:
    """`count` items, evenly spaced."""
    return [items[i * len(items) // count] for i in range(count)]


def _named(name: str, row: np.ndarray) -> np.ndarray:
    """The row with its name on the left."""
    margin = Image.new("RGB", (_MARGIN, len(row)), "white")
    place, font = (4, len(row) / 2), ImageFont.load_default(12)
    ImageDraw.Draw(margin).text(place, name, fill="black", font=font, anchor="lm")
    return np.concatenate([np.asarray(margin), row], axis=1)


def _row(shots: list[plan.Shot], *, labels: bool) -> np.ndarray:
    """Images side by side; with `labels`, every other one is a part map."""
    if not labels:
        return np.concatenate([render.render(shot)[0] for shot in shots], axis=1)
    pairs = []
    for shot in shots[: len(shots) // 2]:
        image, parts = render.render(shot)
        mixed = 0.35 * image + 0.65 * _COLOURS[parts]
        pairs += [image, np.where(parts[..., None], mixed, 0.35 * image)]
    return np.concatenate(pairs, axis=1).astype(np.uint8)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line.

    Raises:
      UserError: for no rows, or a file that cannot be written.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, help="PNG or JPEG file to write")
    parser.add_argument("--size", default="demo", choices=plan.SIZES)
    parser.add_argument("--identities", type=int, default=5, help="rows of people")
    parser.add_argument("--beds", action="store_true", help="the test beds instead")
    given = parser.parse_args(argv)
    if given.beds:
        bed_sheet(given.out)
        return
    contact_sheet(given.out, size=given.size, identities=given.identities)


if __name__ == "__main__":
    with errors.answered():
        main()
