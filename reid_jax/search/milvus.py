"""The connection to Milvus: a file (Milvus Lite) or a server, by the URI alone.

What the engine objects to becomes one `UserError`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import socket
import urllib.parse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from reid_jax import storage
from reid_jax.errors import UserError

if TYPE_CHECKING:
    from pymilvus import MilvusClient

TOKEN = "MILVUS_TOKEN"
"""Variable of the environment with the user and password, or key, of a server."""

_SECONDS = 10.0
# Milvus Lite hangs up on a client that pings more often than every five minutes, in the
# middle of a long build of an index; pymilvus would every ten seconds.
_OPTIONS = {"grpc_options": {"grpc.keepalive_time_ms": 600_000}}
_PORT = 19530
_ESCAPES = str.maketrans(
    {"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "\t": r"\t"}
)
"""All that filters know; other characters stand in them as they are."""


class NoGallery(UserError):
    """There is no such file or collection."""


def is_server(uri: str) -> bool:
    """Whether a URI names a server; otherwise it is the path of a file."""
    return "://" in uri


def connect(uri: str, *, new: bool = False) -> MilvusClient:
    """A client, which whoever asks for it closes.

    Args:
      uri: of a server, `http://HOST:PORT`, or the path of a file, `NAME.db`.
      new: a file that is not there is made.

    Raises:
      UserError: pymilvus is not installed, no server answers, there is no such file, it
        is none of Milvus Lite, or another process has it open.
    """
    _check_installed()
    if is_server(uri):
        return _to_server(uri)
    path = storage.expanded(uri).absolute()
    _check_file(uri, path, new=new)
    if new:
        storage.check_writable(path.parent)
    from pymilvus import MilvusClient, MilvusException

    _quiet()
    try:
        return MilvusClient(str(path), **_OPTIONS)
    except MilvusException as error:
        raise UserError(
            f"--gallery={uri} cannot be opened: another process has it open (one at a "
            "time; end that one, a page for review too), or it is no file of Milvus "
            "Lite 3. For several at once: milvus-lite server, and --gallery=http://..."
        ) from error


@contextlib.contextmanager
def answered(uri: str) -> Iterator[None]:
    """Inside, what the engine objects to is a `UserError`."""
    from pymilvus import MilvusException

    try:
        yield
    except MilvusException as error:
        said = " ".join((error.message or str(error)).split())
        raise UserError(f"--gallery={uri}: Milvus answers: {said[:400]}") from error


def quoted(text: str) -> str:
    """A text as a filter expression has it."""
    return f'"{text.translate(_ESCAPES)}"'


def _check_installed() -> None:
    try:
        import milvus_lite  # noqa: F401
        import pymilvus  # noqa: F401
    except ImportError as error:
        raise UserError(
            "searching needs pymilvus and milvus-lite. Install them with: pip install "
            "'reid_jax[search]'; in a checkout: pip install '.[search]'"
        ) from error


def _check_file(uri: str, path: pathlib.Path, *, new: bool) -> None:
    if path.suffix != ".db":
        raise UserError(
            f"--gallery={uri} is neither a file NAME.db nor a server http://HOST:{_PORT}"
        )
    if path.exists() and not (path.is_dir() and (path / "LOCK").exists()):
        raise UserError(f"--gallery={uri} is there, and no file of Milvus Lite 3")
    if not new and not path.exists():
        raise NoGallery(
            f"there is no gallery {uri}. Make one with: reid-jax search add "
            f"--gallery={uri} --model=... IMAGES"
        )


def _to_server(uri: str) -> MilvusClient:
    from pymilvus import MilvusClient, MilvusException

    place = urllib.parse.urlsplit(uri)
    try:
        # gRPC would try for long, and tell a closed port from a wrong host by nothing.
        address = place.hostname or "", place.port or _PORT
        socket.create_connection(address, timeout=_SECONDS).close()
        _quiet()
        token = os.environ.get(TOKEN, "")
        return MilvusClient(uri, token=token, timeout=_SECONDS, **_OPTIONS)
    except (OSError, ValueError, MilvusException) as error:
        raise UserError(
            f"no Milvus answers at --gallery={uri} ({error}). Start one, such as: "
            f"milvus-lite server --data-dir DIR --port {_PORT}; {TOKEN} holds the "
            "token of one that asks for it"
        ) from error


def _quiet() -> None:
    """Errors are raised; logged with a traceback, too, they would be said twice."""
    for name in ("pymilvus", "milvus_lite", "grpc"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(("pymilvus.", "milvus_lite.", "grpc.")):
            logging.getLogger(name).setLevel(logging.NOTSET)
