"""Encoded images: decoding and resizing them, and which files can be used as one.

Preparing, training and inspecting decode by the same function, so that what was stored
can be read.
"""

import dataclasses
import io
import zipfile
import zlib
from collections.abc import Callable

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps

from data_pipelines.entries import File, bad_file

MIN_SIDE = 16
"""Images with a shorter side than a ViT patch are refused."""

BILINEAR = "bilinear"
_PILLOW = {
    "pil-bilinear": PIL.Image.Resampling.BILINEAR,
    "pil-bicubic": PIL.Image.Resampling.BICUBIC,
}
RESIZES = (BILINEAR, *_PILLOW)
"""Ways of resizing. OpenCV's looks at the nearest pixels; Pillow's, which torchvision
applies to pictures from files, weighs all pixels of the area that becomes one."""

_FORMATS = {"JPEG", "MPO", "PNG", "TIFF"}
_AGAIN = "Copy or download it again, or remove it"
# What Pillow and zipfile raise on damaged, encrypted and unsupported files.
_UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
    PIL.Image.DecompressionBombError,
)
_ORIENTATION = 0x0112
_TURNS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what brings the pixels of the file upright."""
_EXIF = (b"Exif\0\0", b"eXIf")
"""What JPEG and PNG files with EXIF data hold."""

# Grain runs several readers; OpenCV's own threads would only compete with them.
cv2.setNumThreads(0)


@dataclasses.dataclass(frozen=True)
class Encoded:
    """An image that can be stored.

    Attributes:
      data: JPEG or PNG.
      height, width: as `decode` gives it, upright.
      orientation: EXIF's, 1 to 8: how the pixels of the file lie.
    """

    data: bytes
    height: int
    width: int
    orientation: int = 1

    def labels(self, make: Callable[[int, int], bytes]) -> bytes:
        """Part labels, made for the pixels of the file and turned as they are.

        Args:
          make: gives a PNG of one channel for the height and width of the file.
        """
        sideways = self.orientation >= 5
        size = (self.width, self.height) if sideways else (self.height, self.width)
        made = make(*size)
        if self.orientation == 1:
            return made
        return png(_upright(decode_parts(made), self.orientation))


def decode(encoded: bytes) -> np.ndarray:
    """Decodes a JPEG or PNG to RGB, uint8 [H, W, 3], upright as its EXIF data say.

    Raises:
      ValueError: the bytes are not a whole image.
    """
    return _decode(encoded, cv2.IMREAD_COLOR_RGB)


def decode_parts(encoded: bytes) -> np.ndarray:
    """Decodes a part-label PNG, uint8 [H, W].

    Raises:
      ValueError: the bytes are not a whole image of one channel.
    """
    parts = _decode(encoded, cv2.IMREAD_UNCHANGED)
    if parts.ndim != 2 or parts.dtype != np.uint8:
        raise ValueError(f"part labels of shape {parts.shape}, type {parts.dtype}")
    return parts


def resize(image: np.ndarray, size: tuple[int, int], how: str = BILINEAR) -> np.ndarray:
    """Resizes uint8 [H, W, 3] to (height, width) by one of `RESIZES`."""
    if how in _PILLOW:
        return np.asarray(PIL.Image.fromarray(image).resize(size[::-1], _PILLOW[how]))
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def resize_parts(parts: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest resize of uint8 [H, W] labels to (height, width)."""
    return cv2.resize(parts, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def _decode(encoded: bytes, flags: int) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    except cv2.error as error:  # An empty buffer raises where a broken one does not.
        raise ValueError("not a whole image") from error
    if image is None:
        raise ValueError("not a whole image")
    return image


def read_image(path: File) -> Encoded:
    """An image that decodes to three channels.

    In full, but for a JPEG whose data are damaged in the middle: of it the decoder
    makes what it can, and its warning names no file.

    A TIFF becomes a PNG of the same pixels, since `decode` cannot be relied on to read
    every TIFF; other formats stay as they are.

    Raises:
      BadFile: it is damaged, of another kind or too small; the file is named.
    """
    try:
        data = path.read_bytes()
        if not data:
            raise ValueError("the file is empty")
        with PIL.Image.open(io.BytesIO(data)) as image:
            _check_kind(path, image)
            if image.format == "TIFF":
                return _from_tiff(image)
        pixels = decode(data)
    except _UNREADABLE as error:
        raise bad_file(path, f"it cannot be read ({_reason(error)})", _AGAIN) from error
    return Encoded(data, *pixels.shape[:2], _orientation(data, pixels))


def png(pixels: np.ndarray) -> bytes:
    """A PNG of uint8 `[H, W, 3]` or `[H, W]` pixels."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _check_kind(path: File, image: PIL.Image.Image) -> None:
    """Refuses, by its header, what is no colour photograph of a person's size."""
    if image.format not in _FORMATS:
        raise bad_file(path, f"it is a {image.format} file", "Save it as JPEG")
    if image.mode != "RGB":
        raise bad_file(
            path,
            f"it is not an RGB image of 3 channels but has mode {image.mode}",
            "Save it as an RGB JPEG",
        )
    if min(image.size) < MIN_SIDE:
        raise bad_file(
            path,
            f"{image.width} x {image.height} pixels are less than a patch "
            f"({MIN_SIDE} x {MIN_SIDE})",
            "Remove it",
        )


def _from_tiff(image: PIL.Image.Image) -> Encoded:
    orientation = image.getexif().get(_ORIENTATION, 1)
    image.load()
    # Pillow has turned it while loading, or does so now.
    pixels = np.asarray(PIL.ImageOps.exif_transpose(image))
    known = orientation if orientation in _TURNS else 1
    return Encoded(png(pixels), *pixels.shape[:2], known)


def _orientation(data: bytes, upright: np.ndarray) -> int:
    """How `decode` has turned an image: it is asked, as readers of EXIF differ."""
    if not any(mark in data for mark in _EXIF):
        return 1
    lying = _decode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    turned = (n for n in (1, *_TURNS) if np.array_equal(_upright(lying, n), upright))
    return next(turned)


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    if orientation == 1:
        return pixels
    return np.asarray(PIL.Image.fromarray(pixels).transpose(_TURNS[orientation]))


def _reason(error: Exception) -> str:
    # Pillow's own message would print the address of a buffer.
    unknown = isinstance(error, PIL.UnidentifiedImageError)
    return "it is no image" if unknown else str(error)
