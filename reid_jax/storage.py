"""Paths that a user gives, on a disk or in a bucket (`gs://bucket/folder`).

`etils.epath` reads and writes both, buckets through gcsfs, which only they need. There
an object is written whole or not at all, cannot be appended to, and cannot be locked;
folders are no more than the beginnings of names.

Whatever a user gives becomes a path by `absolute`, so that `~` and characters such as
`[` mean the same everywhere.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import importlib.util
import logging
import os
import pathlib
import sys
import tempfile
import uuid
from collections.abc import Iterator
from typing import IO

import fsspec
from etils import epath

from reid_jax.errors import UserError, first_line

BUCKET = "gs://"

PathLike = str | os.PathLike[str]

# TensorStore writes behind gcsfs's back: a listing that was kept would lack its files.
fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)


def in_bucket(path: PathLike) -> bool:
    """Whether a path lies in a bucket.

    Raises:
      UserError: if it is an address of any other kind, or no path at all.
    """
    text = os.fspath(path)
    if "\0" in text:
        raise UserError(f"{text!r} is no path: it holds a NUL character")
    if "://" in text and not text.startswith(BUCKET):
        raise UserError(f"{text}: of addresses, only {BUCKET}BUCKET/FOLDER is known")
    return text.startswith(BUCKET)


class _LiteralPath(type(epath.Path("/"))):
    """A path whose own characters are no pattern in `glob`: `runs/lr[1e-3]`.

    epath searches for the whole path joined with the pattern; and so does Orbax, which
    keeps the class of the paths that it is given.
    """

    def glob(self, pattern: str) -> Iterator[epath.Path]:
        """What matches `pattern` below this very path."""
        for found in epath.Path(glob.escape(os.fspath(self))).glob(pattern):
            yield type(self)(found)


def absolute(path: PathLike) -> epath.Path:
    """The path from its root, `~` expanded; what is in a bucket is that already."""
    if in_bucket(path):
        return _LiteralPath(path)
    return _LiteralPath(expanded(path).resolve())


def expanded(path: PathLike) -> pathlib.Path:
    """A path on a disk with `~` and `~user` expanded.

    Raises:
      UserError: if it lies in a bucket, or there is no such user.
    """
    if in_bucket(path):
        raise UserError(
            f"{os.fspath(path)} is in a bucket, and this is read and written on a disk "
            "alone: name a path there"
        )
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{os.fspath(path)}: there is no such user's home") from error


def check_reachable(path: PathLike) -> None:
    """Does nothing for a path on a disk.

    Raises:
      UserError: if the bucket cannot be asked; says what to do.
    """
    if in_bucket(path):
        with _understood(path, "read"):
            # `exists` would take a bucket that is not there for an absent file.
            next(absolute(path).glob("*"), None)


def check_writable(path: PathLike) -> None:
    """Makes a folder, where it is on a disk.

    Raises:
      UserError: if nothing can be written there.
    """
    if in_bucket(path):
        with _understood(path, "write to"):
            probe = absolute(path) / f".writable-{uuid.uuid4().hex}"
            probe.write_text("")
            probe.unlink()
        return
    try:
        absolute(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=absolute(path)):
            pass
    except OSError as error:
        taken = isinstance(error, FileExistsError)
        reason = "it is a file" if taken else error.strerror
        raise UserError(
            f"cannot write to {path} ({reason}); name another folder"
        ) from error


@contextlib.contextmanager
def _understood(path: PathLike, action: str) -> Iterator[None]:
    """Turns what a bucket's first use raises into one message."""
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(f"{path} is in a bucket, which needs: pip install gcsfs")
    # It logs every failure, with tracebacks, before it raises.
    logger = logging.getLogger("gcsfs")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    except Exception as error:  # gcsfs, google-auth and aiohttp raise many kinds.
        raise UserError(
            f"cannot {action} {path} ({type(error).__name__}: {first_line(error)}). "
            "Is the bucket's name right, and may you use it? Credentials come from "
            "'gcloud auth application-default login', from the file that "
            "GOOGLE_APPLICATION_CREDENTIALS names, or from the VM's service account"
        ) from error
    finally:
        logger.setLevel(level)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


@contextlib.contextmanager
def written(folder: PathLike) -> Iterator[None]:
    """Inside, a disk that fails while a folder is written is one message.

    Raises:
      UserError: no room, no right, or no folder any more; says what to do.
    """
    try:
        yield
    except Exception as error:  # Orbax and TensorStore raise what the system said.
        code = disk_error(error)
        place = getattr(error, "filename", None) or ""
        if code is None or (code in _GONE and _is_there(folder, str(place))):
            raise
        if code in _FULL:
            remedy = "Make room there, or name another folder"
        elif code in _CLOSED:
            remedy = "Was it mounted anew, or were its permissions changed?"
        else:
            remedy = "Was it moved, removed or unmounted? Put it back"
        raise UserError(
            f"{_failed(folder, error, str(place))} ({os.strerror(code)}"
            f"{f': {place}' if place else ''}). {remedy}; then give the same command "
            "again. What was saved before is as it was"
        ) from error


def _failed(folder: PathLike, error: Exception, place: str) -> str:
    """What could not be done, as far as the error tells."""
    if place and disk_error(error) in _CLOSED and _lies_elsewhere(folder, place):
        return "cannot read or write a file"
    if not isinstance(error, OSError):  # of a library that has a file of its own
        return f"cannot write to {folder}, or read its data, any more"
    return f"cannot write to {folder} any more"


def disk_error(error: Exception) -> int | None:
    """The system's number for a failure of a disk, None for anything else.

    Libraries that write by themselves raise errors of other kinds, in whose text the
    system's words are.
    """
    if isinstance(error, UserError):
        return None
    codes = (*_FULL, *_CLOSED, *_GONE)
    if isinstance(error, OSError):
        return error.errno if error.errno in codes else None
    return next((code for code in codes if os.strerror(code) in str(error)), None)


def check_in_place(path: PathLike, known: os.stat_result) -> None:
    """Raises UserError if a path of a disk is not what it was: its folder has moved.

    Args:
      path: of a file or folder that this process began.
      known: `os.stat` of it then.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if os.path.samestat(os.stat(path), known):
            return
    raise UserError(
        f"{path} is no longer what this run began: the work folder was moved, renamed "
        "or removed meanwhile. The run stops, so that nothing is written in two "
        "places; from where the folder is now, or put back, it goes on from its last "
        "checkpoint"
    )


def _is_there(folder: PathLike, place: str) -> bool:
    """Whether a folder stands, and what was not found lay elsewhere."""
    return absolute(folder).exists() and _lies_elsewhere(folder, place)


def _lies_elsewhere(folder: PathLike, place: str) -> bool:
    return not pathlib.PurePath(place).is_relative_to(os.fspath(absolute(folder)))


_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def lock(file: IO, *, wait: bool = False, certain: bool = False) -> bool:
    """Locks an open file until it is closed, or its process has died.

    Where the file system knows no locks (some network disks), it says so, and the
    caller goes on as if it held one.

    Args:
      file: open for writing.
      wait: until others have let go of it.
      certain: raises OSError instead of going on without locks.

    Returns:
      whether it is ours now; False if another process holds it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if certain or error.errno not in _NO_LOCKS:
            raise
        print(
            f"note: {file.name} cannot be locked ({error.strerror}): nothing keeps two "
            "processes from writing there at once",
            file=sys.stderr,
        )
    return True


def write_bytes(path: PathLike, data: bytes) -> None:
    """Writes a file in one step: readers see the old content or the new, whole."""
    path = absolute(path)
    if in_bucket(path):
        path.write_bytes(data)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not `tempfile`, whose files are their owner's alone: who may read is the umask's.
    temporary = pathlib.Path(path.parent, f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def files_below(folder: PathLike) -> list[epath.Path]:
    """Every file below a folder, in the order of their paths."""
    # Not `walk`: epath 1.15 loses gs:// in it.
    files = []
    for path in sorted(absolute(folder).iterdir()):
        files += files_below(path) if path.is_dir() else [path]
    return files


def copy_below(source: PathLike, target: PathLike) -> None:
    """Copies every file below a folder to the same place below another."""
    source, target = absolute(source), absolute(target)
    for file in files_below(source):
        write_bytes(target / file.relative_to(source), file.read_bytes())
