"""Image files: which of them can be used, and their bytes."""

import io
import zipfile
import zlib

import numpy as np
import PIL.Image

from data_pipelines.entries import File, bad_file

MIN_SIDE = 16
"""Images with a shorter side than a ViT patch are refused."""

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


def read_image(path: File) -> tuple[bytes, tuple[int, int]]:
    """The bytes of an image that decodes in full to three channels.

    A TIFF becomes a PNG of the same pixels, since the decoder that training uses
    cannot be relied on to read every TIFF; other formats stay as they are.

    Returns:
      The encoded image, and its height and width.

    Raises:
      UserError: it is damaged, of another kind or too small; the file is named.
    """
    try:
        data = path.read_bytes()
        if not data:
            raise ValueError("the file is empty")
        with PIL.Image.open(io.BytesIO(data)) as image:
            image.load()
    except _UNREADABLE as error:
        reason = _reason(error)
        raise bad_file(path, f"it cannot be read ({reason})", _AGAIN) from error
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
    if image.format == "TIFF":
        data = png(np.asarray(image))
    return data, (image.height, image.width)


def png(pixels: np.ndarray) -> bytes:
    """A PNG of uint8 `[H, W, 3]` or `[H, W]` pixels."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _reason(error: Exception) -> str:
    # Pillow's own message would print the address of a buffer.
    unknown = isinstance(error, PIL.UnidentifiedImageError)
    return "it is no image" if unknown else str(error)
