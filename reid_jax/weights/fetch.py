"""Weights by name: from a local cache, or from their public address into it."""

from __future__ import annotations

import dataclasses
import hashlib
import http.client
import os
import pathlib
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import BinaryIO

from etils import epath
from tqdm import tqdm

from reid_jax import storage
from reid_jax.errors import UserError
from reid_jax.weights import included

ATTEMPTS = 3
"""Connections in a row that may bring nothing before a download gives up."""

_CHUNK = 1 << 20
_PYTORCH_STARTS = (b"PK", b"\x80\x02")  # a zip archive; a pickle of protocol 2
_TIMEOUT = 30  # seconds without a byte
_PAUSE = 1.0  # seconds before the next connection


@dataclasses.dataclass(frozen=True)
class Source:
    """A public weight file.

    Attributes:
      url: its address.
      digest: algorithm and leading hex digits of the file's checksum; None where none
        was published: only the format can be checked then.
      grid: rows and columns of its position embedding.
      mean, std: of the channels of the images that it was trained with, in units of
        the full range.
    """

    url: str
    digest: tuple[str, str] | None
    grid: tuple[int, int] | None = None
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @property
    def file_name(self) -> str:
        """The file's name in the cache; it is the end of its address."""
        return _last_part(self.url)


def _last_part(url: str) -> str:
    """What an address ends with; behind a # where the address itself has no name."""
    return url.rpartition("#")[2].rsplit("/", 1)[-1]


_TIMM = "https://github.com/rwightman/pytorch-image-models/releases/download"
_DEIT = "https://dl.fbaipublicfiles.com/deit"
_IBN = "https://github.com/XingangPan/IBN-Net/releases/download"

_VIT = (14, 14)  # patches of 16 in 224 x 224
_HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # of Google's ViTs


def _osnet(name: str, identifier: str) -> Source:
    """An address on Google Drive, which has no names; torchreid calls the file so."""
    address = f"https://drive.google.com/uc?export=download&id={identifier}"
    return Source(f"{address}#{name}_imagenet.pth", None)


_OSNETS = {
    "osnet_x1_0": "1LaG1EJpHrxdAxKnSCJ_i0u-nbxSAeiFY",
    "osnet_x0_75": "1uwA9fElHOk3ZogwbeY5GkLI6QPTX70Hq",
    "osnet_x0_5": "16DGLbZukvVYgINws8u8deSaOqjybZ83i",
    "osnet_x0_25": "1rb8UN5ZzPKRc_xvtHlyDh-cSz88YX9hs",
    "osnet_ibn_x1_0": "1sr90V6irlYYDd4_4ISU2iruoRG8J__6l",
    "osnet_ain_x1_0": "1-CaioD9NaqbHK_kzSMW8VE4_3KcsRjEo",
}
"""As torchreid's model zoo has them."""

# PyTorch's convention: the file's name ends with the start of its SHA-256.
KNOWN = {
    "vit_base_patch16_224": Source(
        f"{_TIMM}/v0.1-vitjx/jx_vit_base_p16_224-80ecf9dd.pth",
        ("sha256", "80ecf9dd"),
        _VIT,
        **_HALF,
    ),
    "vit_large_patch16_224": Source(
        f"{_TIMM}/v0.1-vitjx/jx_vit_large_p16_224-4ee7a4dc.pth",
        ("sha256", "4ee7a4dc"),
        _VIT,
        **_HALF,
    ),
    "deit_small_patch16_224": Source(
        f"{_DEIT}/deit_small_patch16_224-cd65a155.pth", ("sha256", "cd65a155"), _VIT
    ),
    "deit_base_patch16_224": Source(
        f"{_DEIT}/deit_base_patch16_224-b5f2ef4d.pth", ("sha256", "b5f2ef4d"), _VIT
    ),
    "resnet50": Source(
        "https://download.pytorch.org/models/resnet50-19c8e357.pth",
        ("sha256", "19c8e357"),
    ),
    "resnet50_ibn_a": Source(
        f"{_IBN}/v1.0/resnet50_ibn_a-d9d0bb7b.pth", ("sha256", "d9d0bb7b")
    ),
    # The authors' own addresses are of file-sharing sites; this is an archived copy.
    "hrnet_w32": Source(
        "https://zenodo.org/records/10604211/files/hrnetv2_w32_imagenet_pretrained.pth",
        ("md5", "58ea12b0420aa3adaa2f74114c9f9721"),
    ),
    **{name: _osnet(name, identifier) for name, identifier in _OSNETS.items()},
}
"""Public weights by name."""


def cache_folder() -> pathlib.Path:
    """Where downloads lie: $REID_JAX_CACHE, or ~/.cache/reid_jax/weights."""
    chosen = os.environ.get("REID_JAX_CACHE")
    folder = pathlib.Path(chosen or "~/.cache/reid_jax/weights")
    return folder.expanduser()


def locate(path_or_name: str | os.PathLike[str]) -> pathlib.Path:
    """The file or folder that `config.pretrained` means.

    A known name is looked up in the cache, and downloaded into it where missing;
    `shipped/NAME` comes with the library. Both are checked every time; a file of the
    cache that is not what its name says is removed.

    Raises:
      UserError: neither a path nor a known name, or it cannot be had.
    """
    if not isinstance(path_or_name, str | os.PathLike):
        raise UserError(
            f"pretrained weights {path_or_name!r}: it must be a path or a known name"
        )
    text = os.fspath(path_or_name)
    if text in KNOWN:
        return fetch(KNOWN[text], cache_folder())
    if included.is_name(text):
        return included.locate(text)
    storage.check_reachable(text)
    try:
        path = epath.Path(text).expanduser()
        found = path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # NUL, too long, no user
        raise UserError(f"pretrained weights {text!r}: {error}") from error
    if not found:
        raise UserError(
            f"pretrained weights {text!r}: neither a file or folder that exists nor a "
            f"known name; known are: {', '.join((*included.names(), *KNOWN))}"
        )
    return path


def known_source(path_or_name: str | os.PathLike[str]) -> Source | None:
    """Of a known name, or a public file, whose own name holds its checksum."""
    text = os.fspath(path_or_name)
    if included.is_name(text):
        model = included.card(text)["config"]["model"]
        return Source(text, None, mean=tuple(model["mean"]), std=tuple(model["std"]))
    file_name = text.rstrip("/").rsplit("/", 1)[-1]
    return KNOWN.get(text) or next(
        (source for source in KNOWN.values() if source.file_name == file_name), None
    )


def known_grid(path: pathlib.Path) -> tuple[int, int] | None:
    """Rows and columns of a public file's position embedding."""
    source = known_source(path)
    return source.grid if source else None


def other_statistics(
    path_or_name: str | os.PathLike[str], mean: Sequence[float], std: Sequence[float]
) -> str:
    """What is said of images that are standardised otherwise than a file wants.

    Args:
      path_or_name: see `known_source`; of other files nothing is known.
      mean, std: what the images are standardised with.

    Returns:
      a note of one line, "" where there is nothing to say.
    """
    source = known_source(path_or_name)
    if source is None or (tuple(mean), tuple(std)) == (source.mean, source.std):
        return ""
    return (
        f"note: {source.file_name} was trained with mean {source.mean} and deviation "
        f"{source.std} of the channels, but config.model.mean is {tuple(mean)} and "
        f"config.model.std {tuple(std)}"
    )


def fetch(source: Source, folder: pathlib.Path) -> pathlib.Path:
    """The file of `source` in `folder`, downloaded if it is not there.

    What a broken connection has brought stays in a `.part` file, and the next call
    goes on from there. Calls in several processes wait for one another.

    Raises:
      UserError: no network, an address without the file, a connection that breaks
        again and again, or a wrong checksum.
    """
    target = folder / source.file_name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / f"{source.file_name}.lock").open("w")
    except OSError as error:
        raise UserError(
            f"cannot keep weights in {folder} ({error}); name another folder in the "
            "environment variable REID_JAX_CACHE"
        ) from error
    with lock:
        storage.lock(lock, wait=True)  # until it is closed
        if target.exists():
            _check(target, source)
            return target
        part = folder / f"{source.file_name}.part"
        _download(source, part, target)
        _check(part, source)
        part.replace(target)
    return target


def _check(path: pathlib.Path, source: Source) -> None:
    """Removes a file with a wrong checksum or format, and raises UserError."""
    if source.digest is None:
        _check_format(path, source)
        return
    algorithm, digits = source.digest
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, algorithm).hexdigest()
    if found.startswith(digits):
        return
    path.unlink()
    raise UserError(
        f"{path.name} is not the file that it should be: its {algorithm} checksum "
        f"starts with {found[: len(digits)]}, not with {digits}. It was removed from "
        f"{path.parent}; run the command again, or get {source.url} another way"
    )


def _check_format(path: pathlib.Path, source: Source) -> None:
    """The same of a file without a known checksum, which may be a page about it."""
    with path.open("rb") as stream:
        if stream.read(2) in _PYTORCH_STARTS:
            return
    path.unlink()
    raise UserError(
        f"what {source.url} has given is not a file of PyTorch's; it was removed. Get "
        f"{source.file_name} with a browser, and give its path"
    )


def _download(source: Source, part: pathlib.Path, target: pathlib.Path) -> None:
    """Brings `part` to full length, over as many connections as that takes."""
    problem: Exception | None = None
    longest = failures = 0
    while failures < ATTEMPTS:
        if problem is not None:
            time.sleep(_PAUSE)
        try:
            with part.open("ab") as stream:
                _receive(source.url, stream)
            return
        except urllib.error.HTTPError as error:
            problem = error
            if error.code < 500:
                break
        except (OSError, http.client.HTTPException) as error:
            problem = error
            if isinstance(error, urllib.error.URLError) and not longest:
                break  # not reached at all
        size = part.stat().st_size
        failures = 0 if size > longest else failures + 1
        longest = max(size, longest)
    size = part.stat().st_size
    if not size:
        part.unlink()
    kept = (
        f" {size:,} bytes are kept, and the next try goes on from there."
        if size
        else ""
    )
    reason = getattr(problem, "reason", None) or problem
    code = f"{problem.code} " if isinstance(problem, urllib.error.HTTPError) else ""
    raise UserError(
        f"cannot download {source.url}: {code}{reason}.{kept} Without network, get the "
        f"file on another machine and put it at {target}, or give its path as "
        "--config.pretrained=PATH"
    ) from problem


def _receive(url: str, stream: BinaryIO) -> None:
    """Appends what `stream` lacks of the file, or all of it to an emptied stream.

    Raises:
      OSError, http.client.HTTPException: a connection that failed or broke.
    """
    start = stream.seek(0, os.SEEK_END)
    headers = {"User-Agent": "reid_jax", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        return  # nothing is lacking; the checksum tells whether too much is there
    with response:
        resumed = (response.headers.get("Content-Range") or "").startswith(
            f"bytes {start}-"
        )
        if not resumed:
            start = 0
            stream.truncate(0)
        rest = response.headers.get("Content-Length")
        total = start + int(rest) if rest else None
        with tqdm(
            desc=_last_part(url),
            initial=start,
            total=total,
            unit="B",
            unit_scale=True,
        ) as bar:
            while chunk := response.read1(_CHUNK):
                stream.write(chunk)
                bar.update(len(chunk))
        if total is not None and bar.n < total:
            raise ConnectionError(f"broke off after {bar.n:,} of {total:,} bytes")
