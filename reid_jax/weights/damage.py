"""What a damaged, hostile or oversized weight file ends in: one message.

A file's numbers are claims. Nothing is allocated, looped over or unpacked by such a
number before it is compared with what the file's own size can hold.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator

from reid_jax.errors import UserError

ERRORS = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    zlib.error,
    tokenize.TokenError,
    SyntaxError,
    EOFError,
    OSError,
    LookupError,
    ArithmeticError,
    AttributeError,
    TypeError,
    ValueError,
    RuntimeError,
    MemoryError,
)
"""What a damaged pickle, archive or header raises, whatever is wrong with it."""

_GROWTH, _FREE = 10, 64 << 20


def capacity(size: int) -> int:
    """Bytes that a file may unpack to: ten times its own, and 64 MiB.

    Deflated weights shrink by less than a third, and those of half precision that are
    stored in single by two thirds; a bomb grows a thousandfold.
    """
    return _GROWTH * size + _FREE


class Refused(Exception):
    """A pickle asks for something that is neither a tensor nor plain data."""


@contextlib.contextmanager
def explained(path: os.PathLike[str]) -> Iterator[None]:
    """Turns what a damaged or dangerous file raises into a message.

    Raises:
      UserError: instead of `ERRORS` and `Refused`.
    """
    try:
        yield
    except Refused as error:
        raise UserError(
            f"{path} asks for {shown(str(error))}, which is neither a tensor nor a "
            "dictionary. Nothing of it was run. If you trust the file, load it "
            "with PyTorch and save only the network's state_dict()"
        ) from None
    except ERRORS as error:
        raise UserError(
            f"{path} is cut off or damaged: get the file again "
            f"({type(error).__name__}: {shown(str(error))})"
        ) from error


def shown(text: str) -> str:
    """Text from a file, short and harmless enough for a message."""
    text = text if len(text) <= 200 else f"{text[:200]}..."
    return text if text.isprintable() else ascii(text)
