"""The contact sheet: a few identities of each split with their part labels."""

import os
from collections.abc import Mapping

import cv2
import numpy as np

from data_pipelines import images
from data_pipelines.inspection.reading import Inspected
from data_pipelines.part_labels.kinds import UNLABELLED
from reid_jax import storage
from reid_jax.errors import UserError

_COLUMNS = 12
_ROWS = 3
_TILE = (128, 64)
_CAPTION = 18
_GAP = 3


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
        storage.write_bytes(path, cv2.imencode(".png", sheet)[1].tobytes())
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
        drawn = images.resize(images.decode(record["image"]), _TILE)
        if image.labelled:
            parts = images.decode_parts(record["parts"])
            drawn = _painted(drawn, images.resize_parts(parts, _TILE))
    person = stored.person_name(stored.person[index])
    text = f"{person} c{stored.camera_name(stored.camera[index])}"
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
