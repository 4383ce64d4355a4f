"""Part-label files of other tools: finding them, checking them, storing them.

PifPaf's files are float arrays [36, h, w] of confidences (`.npy`; see
`part_labels.kinds`), far coarser than the image. What is stored is the class of the
greatest confidence, background where that is below 0.5, brought to the image's size by
nearest resizing. BPBreID (Somers et al., 2023) keeps the confidences, groups channels
by their maximum, and takes the arg-max of the groups at the size of the features. A
group's maximum is that of its channels, so both orders give the same group wherever
the groups cover all channels; they differ where equal confidences meet, and in that
BPBreID's resizing to the features mixes neighbours before the arg-max, ours after it.

Label maps (all other kinds) are PNG files of one 8-bit channel.
"""

import collections
import contextlib
import dataclasses
import hashlib
import io
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np
import PIL.Image

from data_pipelines.entries import Entry, Split, bad_file, printable, shown
from data_pipelines.part_labels.kinds import CLASS_NAMES, KINDS, UNLABELLED, check_kind
from reid_jax import storage
from reid_jax.errors import UserError, first_line

THRESHOLD = 0.5
"""Where no confidence reaches this there is background, as in BPBreID."""

_CHANNELS = len(CLASS_NAMES["pifpaf"]) - 1
_SUFFIX = dict.fromkeys(KINDS, ".png") | {"pifpaf": ".npy"}
_FIELDS = ".confidence_fields"
_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp"}
# BPBreID clamps to [0, 1], since resized fields overshoot a little; logits or 0 to 255
# lie far outside.
_LEAST, _GREATEST = -1.0, 2.0
_MAX_PIXELS = 1 << 26
_DEPTH = 24  # where a PNG says how many bits a channel has


@dataclasses.dataclass(frozen=True)
class Label:
    """The label file of one image; makes what is stored, at the image's size."""

    path: pathlib.Path
    kind: str

    def __call__(self, height: int, width: int) -> bytes:
        """The labels as a PNG of one channel.

        Raises:
          UserError: the file cannot be read or has a wrong shape, type or value.
        """
        return encode(read(self.path, self.kind), height, width)


def unlabelled(height: int, width: int) -> bytes:
    """What is stored for an image without labels: 255 throughout."""
    return encode(np.full((1, 1), UNLABELLED, np.uint8), height, width)


def encode(labels: np.ndarray, height: int, width: int) -> bytes:
    """uint8 [h, w] labels as a PNG of height x width, by nearest resizing."""
    resized = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return cv2.imencode(".png", resized)[1].tobytes()


def read(path: pathlib.Path, kind: str) -> np.ndarray:
    """The classes of a label file at its own resolution, uint8 [h, w].

    Raises:
      UserError: the file cannot be read or has a wrong shape, type or value.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _bad(path, f"it cannot be read ({error})") from error
    return _read_fields(path, data) if kind == "pifpaf" else _read_map(path, data, kind)


def classes_of_fields(fields: np.ndarray) -> np.ndarray:
    """PifPaf confidences as classes.

    Args:
      fields: float [36, h, w].

    Returns:
      uint8 [h, w]: 1 + the channel of the greatest confidence (the first of equal
      ones), 0 where that is below `THRESHOLD`.
    """
    clamped = fields.clip(0, 1)
    winner = clamped.argmax(axis=0) + 1
    return np.where(clamped.max(axis=0) < THRESHOLD, 0, winner).astype(np.uint8)


def attach(
    splits: Mapping[str, Split],
    folder: str | os.PathLike | None,
    kind: str | None,
) -> dict[str, Split]:
    """Gives the images of a data set their label files.

    A label file belongs to the image of the same stem: `0002_c1.npy` to
    `0002_c1.jpg`, also under the longer names `0002_c1.jpg.npy` and
    `0002_c1.jpg.confidence_fields.npy`. Where label files lie in folders below
    `folder`, the image lies below folders of the same names, in the same order.

    Args:
      splits: from a reader; entries may have a `Label` already (a table's column).
      folder: with the label files; None where there is none.
      kind: what the files are; None where there are no labels.

    Returns:
      The splits; entries have a `Label` of that kind where there is a file.

    Raises:
      UserError: folder and kind do not go together, no file fits, or a file fits two
        images or the other way round.
    """
    own = any(e.parts for split in splits.values() for e in split.entries)
    _check_arguments(folder, kind, own)
    if folder is None:
        return {n: _map(s, lambda e: _of_kind(e, kind)) for n, s in splits.items()}
    found = _find(storage.expanded(folder), kind)
    matcher = _Matcher(found, kind)
    attached = {name: _map(split, matcher) for name, split in splits.items()}
    if not matcher.used:
        example = next(e.path for s in splits.values() for e in s.entries)
        raise UserError(
            f"None of the {sum(map(len, found.values()))} files in --parts={folder} "
            f"belongs to an image, such as {printable(example)}. A label file has "
            "the image's name with another suffix, and its folder, if any, the name "
            "of the image's folder."
        )
    return attached


def metadata(splits: Mapping[str, Split]) -> dict[str, Any]:
    """What is stored beside a data set: `parts_kind`, and `labelled` images by split.

    Empty where no image has labels.
    """
    kinds = {e.parts.kind for s in splits.values() for e in s.entries if e.parts}
    if not kinds:
        return {}
    (kind,) = kinds
    return {
        "parts_kind": kind,
        "labelled": {n: _labelled(s) for n, s in splits.items()},
    }


def fingerprint(split: Split) -> dict[str, Any]:
    """What tells the labels of a split from others.

    Returns:
      `labelled`, the images with labels; and `labels`, where there are any, 16
      hexadecimal digits of the SHA-256 of their files in the order of the images.
      JSON can hold it.
    """
    found: dict[str, Any] = {"labelled": _labelled(split)}
    if found["labelled"]:
        digest = hashlib.sha256()
        for entry in split.entries:
            data = b""
            # What cannot be read is named when it is to be stored.
            if entry.parts is not None:
                with contextlib.suppress(OSError):
                    data = entry.parts.path.read_bytes()
            digest.update(hashlib.sha256(data).digest())
        found["labels"] = digest.hexdigest()[:16]
    return found


def report(splits: Mapping[str, Split]) -> list[str]:
    """How many images of each split have labels, one line each; none without labels."""
    counts = metadata(splits).get("labelled", {})
    return [
        f"{name}: {count} of {len(splits[name].entries)} images have part labels."
        for name, count in counts.items()
    ]


def _labelled(split: Split) -> int:
    return sum(e.parts is not None for e in split.entries)


def _check_arguments(
    folder: str | os.PathLike | None, kind: str | None, own: bool
) -> None:
    if kind is not None:
        check_kind(kind)
    if own and folder is not None:
        raise UserError("The images have part labels already: leave out --parts.")
    if (own or folder is not None) and kind is None:
        raise UserError(
            "Say what the part labels are: add --parts_kind=<one of "
            f"{', '.join(KINDS)}>."
        )
    if kind is not None and not own and folder is None:
        raise UserError(
            f"--parts_kind={kind} says what the part labels are; name their folder: "
            "add --parts=<folder>."
        )


def _map(split: Split, change: Callable[[Entry], Entry]) -> Split:
    return dataclasses.replace(split, entries=tuple(map(change, split.entries)))


def _of_kind(entry: Entry, kind: str | None) -> Entry:
    """An entry of a table, whose reader does not know the kind of its labels."""
    if entry.parts is None:
        return entry
    return dataclasses.replace(entry, parts=dataclasses.replace(entry.parts, kind=kind))


class _Matcher:
    """Finds the label file of an image, and sees to it that no file serves two."""

    def __init__(self, found: Mapping[str, list], kind: str):
        self._found, self._kind = found, kind
        self.used: dict[pathlib.Path, object] = {}

    def __call__(self, entry: Entry) -> Entry:
        place = pathlib.PurePath(str(entry.path)).parts[:-1]
        stem = pathlib.PurePath(entry.path.name).stem
        fitting = [p for f, p in self._found.get(stem, ()) if _in_order(f, place)]
        if not fitting:
            return entry
        if len(fitting) > 1:
            raise UserError(
                f"{printable(entry.path)} has several label files: "
                f"{shown(list(map(str, fitting)))}. Keep one."
            )
        (path,) = fitting
        other = self.used.setdefault(path, entry.path)
        if other is not entry.path:
            raise UserError(
                f"{printable(path)} belongs to two images: {printable(other)} and "
                f"{printable(entry.path)}. Put the labels into folders named like "
                "those of the images."
            )
        return dataclasses.replace(entry, parts=Label(path, self._kind))


def _find(
    folder: pathlib.Path, kind: str
) -> dict[str, list[tuple[tuple[str, ...], pathlib.Path]]]:
    """Stem of the image -> folders below `folder`, and path of each label file."""
    if not folder.is_dir():
        raise UserError(f"--parts={folder} is not a folder.")
    found = collections.defaultdict(list)
    for top, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        place = pathlib.Path(top)
        for name in sorted(names):
            if name.lower().endswith(_SUFFIX[kind]) and not name.startswith("."):
                below = place.relative_to(folder).parts
                found[_image_stem(name)].append((below, place / name))
    if not found:
        raise UserError(
            f"--parts={folder} holds no {_SUFFIX[kind]} file, as part labels of kind "
            f"{kind} are."
        )
    return found


def _image_stem(name: str) -> str:
    """Stem of the image that a label file belongs to by its name."""
    stem = name[: -len(pathlib.PurePath(name).suffix)]
    stem = stem.removesuffix(_FIELDS)
    suffix = pathlib.PurePath(stem).suffix
    return stem.removesuffix(suffix) if suffix.lower() in _IMAGE_SUFFIXES else stem


def _in_order(some: tuple[str, ...], names: tuple[str, ...]) -> bool:
    """Whether `some` is what is left of `names` after leaving out a few."""
    rest = iter(names)
    return all(name in rest for name in some)


def _read_fields(path: pathlib.Path, data: bytes) -> np.ndarray:
    fields = _load_array(path, data)
    shape = "x".join(map(str, fields.shape))
    if fields.dtype.kind != "f":
        raise _bad(path, f"it holds {fields.dtype} values instead of float ones")
    if fields.ndim != 3 or len(fields) != _CHANNELS or not fields.size:
        raise _bad(path, f"its shape is {shape} instead of {_CHANNELS} x h x w")
    # Comparing this way round refuses NaN too.
    if not (fields.min() >= _LEAST and fields.max() <= _GREATEST):
        raise _bad(
            path,
            f"its values span {fields.min():g} to {fields.max():g}; confidences lie "
            "between 0 and 1",
        )
    return classes_of_fields(fields)


def _load_array(path: pathlib.Path, data: bytes) -> np.ndarray:
    try:
        loaded = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # NumPy raises many kinds on damaged headers.
        raise _bad(path, f"it is no whole NumPy array ({_short(error)})") from error
    if not isinstance(loaded, np.ndarray):
        raise _bad(path, "it is an archive of arrays instead of one array")
    return loaded


def _read_map(path: pathlib.Path, data: bytes, kind: str) -> np.ndarray:
    try:
        with PIL.Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.mode not in ("L", "P"):
                raise _bad(
                    path,
                    f"it is no label map of one 8-bit channel but has mode "
                    f"{image.mode}",
                )
            # Pillow would stretch them: 0, 17, 34, ... of four bits.
            if image.mode == "L" and data[_DEPTH] != 8:
                raise _bad(path, f"its channel has {data[_DEPTH]} bits instead of 8")
            if image.width * image.height > _MAX_PIXELS:
                raise _bad(path, f"it is {image.width} x {image.height} pixels large")
            labels = np.asarray(image, np.uint8)
    except (
        OSError,
        ValueError,
        SyntaxError,
        PIL.Image.DecompressionBombError,
    ) as error:
        raise _bad(path, f"it is no whole PNG ({_short(error)})") from error
    greatest = len(CLASS_NAMES[kind]) - 1
    wrong = np.setdiff1d(labels, [*range(greatest + 1), UNLABELLED])
    if wrong.size:
        raise _bad(
            path,
            f"it has label {wrong[0]}; labels of kind {kind} are 0 to {greatest}, and "
            f"{UNLABELLED} where there is none",
        )
    return labels


def _short(error: Exception) -> str:
    unknown = isinstance(error, PIL.UnidentifiedImageError)
    return "it is no PNG" if unknown else first_line(error)


def _bad(path: pathlib.Path, problem: str) -> UserError:
    return bad_file(path, problem, "Make the label file again, or remove it")
