"""Images as users have them: files, folders, arrays, Pillow's, and many of these."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import PIL.Image
import PIL.ImageOps

from data_pipelines import images as encoded
from reid_jax.errors import UserError

Image = str | os.PathLike[str] | np.ndarray | PIL.Image.Image
Images = Image | Iterable[Image]

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
"""Of image files, in small letters."""

THREADS = min(16, os.cpu_count() or 1)
"""That read and decode."""

_AHEAD = 256

Item = TypeVar("Item")
Result = TypeVar("Result")


class BadImage(UserError):
    """An image that cannot be used; the message names it."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Where an image comes from.

    Attributes:
      name: its path, or its place among the others.
      read: gives `image`, uint8 RGB [H, W, 3] of any size; it may raise BadImage.
      inputs: what a network may read beside it, such as `camera`: int32 [].
    """

    name: str
    read: Callable[[], Mapping[str, np.ndarray]]
    inputs: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def sources(images: Images) -> Iterable[Source]:
    """One for each image; a list, unless `images` is an iterator.

    A folder stands for all image files below it, an array [N, H, W, 3] for N images.

    Raises:
      UserError: a path that is not there, a folder without images, or an array of
        another type or shape.
    """
    if isinstance(images, str | os.PathLike):
        return [_from_file(path) for path in files(images)]
    if isinstance(images, PIL.Image.Image):
        return [_source(0, images)]
    if hasattr(images, "__array__"):
        array = _checked(np.asarray(images))
        images = array if array.ndim == 4 else array[None]
    # What is no sequence may give one image again and again, with other pixels.
    own = isinstance(images, Sequence | np.ndarray)
    made = (_source(i, image, own=own) for i, image in enumerate(images))
    return made if isinstance(images, Iterator) else list(made)


def files(path: str | os.PathLike[str]) -> list[pathlib.Path]:
    """The image file, or all image files below a folder, in the order of their names.

    Hidden ones are left out; linked folders are as others, but no folder counts twice.

    Raises:
      UserError: it is not there, or there are none.
    """
    if not os.fspath(path):
        raise UserError("the path of the images is empty")
    top = pathlib.Path(os.path.expanduser(path))
    if top.is_file():
        return [top]
    if not top.is_dir():
        raise UserError(f"there is no image or folder {os.fspath(path)!r}")
    there = (
        pathlib.Path(folder, name) for folder, names in _folders(top) for name in names
    )
    found = [file for file in there if _is_image(file) and file.is_file()]
    if not found:
        raise UserError(
            f"there are no images below {os.fspath(path)!r} ({', '.join(SUFFIXES)})"
        )
    return sorted(found)


def _folders(top: pathlib.Path) -> Iterator[tuple[str, list[str]]]:
    """Folders and the names in them, each once: links come last, and circles end."""
    seen, starts = set(), [os.fspath(top)]
    for start in starts:  # of which more are found on the way
        for folder, inner, names in os.walk(start):
            about = os.stat(folder)
            place = about.st_dev, about.st_ino
            inner[:] = _shown(inner) if place not in seen else []
            if place in seen:
                continue
            seen.add(place)
            paths = (os.path.join(folder, name) for name in sorted(inner))
            starts += filter(os.path.islink, paths)
            yield folder, _shown(names)


def _shown(names: Iterable[str]) -> list[str]:
    return [name for name in names if not name.startswith(".")]


def read_file(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The pixels of an image file, upright as its EXIF data say.

    Raises:
      BadImage: it is not there, damaged, or no image that OpenCV reads.
    """
    return {"image": read_both(path)[1]}


def read_both(path: str | os.PathLike[str]) -> tuple[bytes, np.ndarray]:
    """The bytes of an image file and its pixels, as `read_file`."""
    try:
        data = pathlib.Path(path).read_bytes()
        return data, encoded.decode(data)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        if isinstance(error, ValueError) and not _is_image(pathlib.Path(path)):
            reason = f"it is none by its name ({', '.join(SUFFIXES)})"
        raise BadImage(
            f"the image {os.fspath(path)} cannot be read: {reason}"
        ) from error


def _is_image(file: pathlib.Path) -> bool:
    return file.suffix.lower() in SUFFIXES


def resized(
    source: Source, size: tuple[int, int], how: str = encoded.BILINEAR
) -> dict[str, np.ndarray]:
    """What `source` gives, the image at (height, width) by one of `encoded.RESIZES`."""
    row = dict(source.read())
    return {**source.inputs, **row, "image": encoded.resize(row["image"], size, how)}


def read_ahead(
    read: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[tuple[Item, Result | BadImage]]:
    """Items in their order with what `read` gives for them, read by threads."""

    def outcome(item: Item) -> tuple[Item, Result | BadImage]:
        try:
            return item, read(item)
        except BadImage as error:
            return item, error

    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(outcome, item))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _source(place: int, image: Image, *, own: bool = True) -> Source:
    """One image of several; one that is not its `own` is copied at once."""
    if isinstance(image, str | os.PathLike):
        path = pathlib.Path(image)
        if path.is_dir():
            raise UserError(f"{path} is a folder among single images; pass it alone")
        return _from_file(path)
    name = f"image {place}"
    read = functools.partial(_pixels, image, name)
    return Source(name, read if own or _is_unread(image) else _copied(read))


def _is_unread(image: Any) -> bool:
    """Whether it is a Pillow image of one frame whose file waits to be read."""
    opened = isinstance(image, PIL.Image.Image) and getattr(image, "fp", None)
    return bool(opened) and not getattr(image, "is_animated", False)


def _from_file(path: pathlib.Path) -> Source:
    return Source(str(path), functools.partial(read_file, path))


def _copied(read: Callable[[], Mapping[str, np.ndarray]]) -> Callable[[], Any]:
    """Gives again what `read` gives now, be it a BadImage."""
    done: concurrent.futures.Future = concurrent.futures.Future()
    try:
        done.set_result({name: array.copy() for name, array in read().items()})
    except BadImage as error:
        done.set_exception(error)
    return done.result


def _pixels(image: Any, name: str) -> dict[str, np.ndarray]:
    if isinstance(image, PIL.Image.Image):
        return {"image": _of_pillow(image, name)}
    return {"image": _checked(np.asarray(image), dimensions=(3,))}


def _of_pillow(image: PIL.Image.Image, name: str) -> np.ndarray:
    """Upright RGB; 16 bits become 8 as OpenCV makes them of a file's: the upper ones.

    Raises:
      BadImage: a file that is cut off, or pixels whose range nobody knows.
    """
    try:
        upright = PIL.ImageOps.exif_transpose(image)
    except (OSError, ValueError, SyntaxError) as error:  # what is lazily read
        raise BadImage(f"{name} cannot be read: {error}") from error
    if upright.mode.startswith("I;16"):
        grey = (np.asarray(upright) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if upright.mode in ("I", "F"):
        raise BadImage(
            f"{name} is a Pillow image of mode {upright.mode}, whose pixels have no "
            "known range: make it L or RGB with values from 0 to 255"
        )
    return np.asarray(upright.convert("RGB"))


def _checked(array: np.ndarray, dimensions: tuple[int, ...] = (3, 4)) -> np.ndarray:
    """Raises UserError for an array that is no image, or not several."""
    if (
        array.dtype != np.uint8
        or array.ndim not in dimensions
        or array.shape[-1] != 3
        or not array.size
    ):
        raise UserError(
            "images are uint8 RGB arrays [H, W, 3], or [N, H, W, 3] of several; this "
            f"one is {array.dtype} {list(array.shape)}"
        )
    return array
