"""What the page for review asks for: images to choose from, rankings, marks.

What is served are images of the gallery, by the ids of its entries, decoded and encoded
again; no path of a request is opened.
"""

from __future__ import annotations

import collections
import functools
import io
import json
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import PIL.Image
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from data_pipelines import images as encoded
from reid_jax.errors import UserError
from reid_jax.extractor import images as imaging
from reid_jax.extractor.images import BadImage, Source
from reid_jax.search import layout, milvus, query, rows
from reid_jax.search.gallery import Gallery
from reid_jax.search.marks import MARKS, Marked, Marks
from reid_jax.search.query import Asked, Options

if TYPE_CHECKING:
    from reid_jax.extractor.extractor import Extractor

_MOST_BYTES, _MOST_PIXELS = 32 << 20, 40_000_000
_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
_UPLOADS, _KEPT_SIDE = 32, 1024
_CAMERAS, _ROWS, _CHOICE = 200, 10_000, 60
_THUMB, _LARGE = 256, 2048
_SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg"}


class Review:
    """What the page asks for."""

    def __init__(self, gallery: Gallery, extractor: Extractor, marks: Marks) -> None:
        self._gallery, self._extractor, self._marks = gallery, extractor, marks
        self._uploads: collections.OrderedDict[str, bytes] = collections.OrderedDict()
        self._alone = threading.Lock()  # one network, one client

    async def about(self, request: Request) -> Response:
        """The gallery, its cameras, and the marks so far."""
        return JSONResponse(await run_in_threadpool(self._about))

    async def images(self, request: Request) -> Response:
        """Entries to choose a query from."""
        where = _filter(request.query_params)
        skip = _number(request.query_params, "skip", 0)
        with_lock = self._locked(self._gallery.rows, limit=_CHOICE, offset=skip)
        return JSONResponse(await run_in_threadpool(with_lock, where))

    async def search(self, request: Request) -> Response:
        """The ranking of an entry, by `id`, or of the image in the body."""
        params = request.query_params
        options = Options(
            top=min(_number(params, "top", 30), 200),
            where=_filter(params),
            other_cameras=params.get("other_cameras") == "1",
        )
        key = params.get("id", "")
        data = b"" if key else await _body(request)
        found = self._locked(self._search)
        return JSONResponse(await run_in_threadpool(found, key, data, params, options))

    async def mark(self, request: Request) -> Response:
        """Keeps "same", "different" or "unsure" of a pair."""
        try:
            given = json.loads(await _body(request))
        except (ValueError, RecursionError):
            given = None
        if not isinstance(given, dict) or given.get("mark") not in MARKS:
            raise UserError(f"a mark is one of {', '.join(MARKS)}")
        await run_in_threadpool(self._locked(self._mark), given)
        return JSONResponse({"counts": self._marks.counts()})

    async def image(self, request: Request) -> Response:
        """An image by the id of its entry, as JPEG."""
        height = _number(request.query_params, "height", _THUMB)
        key = request.path_params["id"]
        data = await run_in_threadpool(self._locked(self._jpeg), key, height)
        return Response(data, media_type="image/jpeg")

    def _locked(self, work: Any, **options: Any) -> Any:
        def locked(*args: Any) -> Any:
            with self._alone:
                return work(*args, **options)

        return locked

    def _about(self) -> dict[str, Any]:
        with self._alone:
            return {
                "gallery": self._gallery.uri,
                "images": self._gallery.count(),
                "method": self._gallery.about.method.rsplit(".", 1)[-1],
                "cameras": self._cameras,
                "counts": self._marks.counts(),
                "marks": str(self._marks.folder / "table.csv"),
            }

    @functools.cached_property
    def _cameras(self) -> list[str]:
        """Those of all entries at the first look, or as many as one can choose from."""
        found: set[str] = set()
        some = where = "camera is not null"
        while some and len(found) < _CAMERAS:
            some = self._gallery.rows(where, fields=["camera"], limit=_ROWS)
            found |= {row["camera"] for row in some}
            others = ", ".join(map(milvus.quoted, sorted(found)))
            where = f"camera is not null and camera not in [{others}]"
        return sorted(found)[:_CAMERAS]

    def _search(
        self, key: str, data: bytes, params: Mapping[str, str], options: Options
    ) -> dict[str, Any]:
        asked = self._entry(key) if key else self._uploaded(data, params)
        hits = query.answers(self._gallery, self._extractor.distance, [asked], options)
        path = asked.name
        return {
            "query": {"id": asked.id, "camera": asked.camera, "person": asked.person},
            "hits": [
                {
                    **hit.facts,
                    "distance": hit.distance,
                    "mark": self._marks.of(path, hit.facts["path"]),
                }
                for hit in hits[0]
            ],
        }

    def _entry(self, key: str) -> Asked:
        row = self._row(key, fields=("*",))
        return Asked(
            name=row["path"],
            embedding=layout.decoded(self._gallery.about, [row]),
            id=key,
            camera=row["camera"],
            person=row["person"],
        )

    def _uploaded(self, data: bytes, params: Mapping[str, str]) -> Asked:
        camera = _camera(params.get("query_camera"))
        pixels = _decoded(data)
        source = Source("the image", lambda: {"image": pixels})
        _, embedding = next(self._extractor.stream([source]))
        key = rows.digest(data)
        self._uploads[key] = _small(data, pixels)
        self._uploads.move_to_end(key)
        while len(self._uploads) > _UPLOADS:
            self._uploads.popitem(last=False)
        return Asked(self._place(key), embedding, id=key, camera=camera)

    def _place(self, key: str) -> str:
        """Where an upload lies, once it is marked."""
        return self._marks.place(key, _suffix(self._uploads[key]))

    def _mark(self, given: Mapping[str, Any]) -> None:
        images = [
            self._marked(str(given.get(name, "")), given.get("query_camera"))
            for name in ("query", "candidate")
        ]
        if images[0].path == images[1].path:
            raise UserError("a pair is two images, and this is one")
        self._marks.mark(*images, given["mark"], at=rows.now())

    def _marked(self, key: str, camera: Any) -> Marked:
        if key in self._uploads:
            path, known = self._place(key), _camera(camera)
            self._marks.keep(path, self._uploads[key])
            return Marked(path, known)
        row = self._row(key)
        return Marked(row["path"], row["camera"])

    def _jpeg(self, key: str, height: int) -> bytes:
        if key in self._uploads:
            pixels = encoded.decode(self._uploads[key])
        else:
            try:
                pixels = imaging.read_file(self._row(key)["path"])["image"]
            except BadImage as error:
                raise HTTPException(404, "the image is no longer there") from error
        pixels = _within(pixels, max(16, min(height, _LARGE)), _LARGE)
        bgr = np.ascontiguousarray(pixels[..., ::-1])
        return cv2.imencode(".jpg", bgr)[1].tobytes()

    def _row(self, key: str, **options: Any) -> dict[str, Any]:
        found = self._gallery.get([key], **options)
        if not found:
            raise HTTPException(404, "the gallery has no such image")
        return found[0]


async def _body(request: Request) -> bytes:
    data = bytearray()
    async for block in request.stream():
        data += block
        if len(data) > _MOST_BYTES:
            raise HTTPException(413, f"an image has at most {_MOST_BYTES >> 20} MiB")
    return bytes(data)


def _suffix(data: bytes) -> str:
    """Of a JPEG or PNG, by what it begins with; "" for another kind."""
    return next((s for head, s in _SUFFIXES.items() if data.startswith(head)), "")


def _decoded(data: bytes) -> np.ndarray:
    """The pixels of an upload, whose header is asked first how many these are."""
    too_many = UserError(f"an image has at most {_MOST_PIXELS // 10**6} million pixels")
    try:
        with PIL.Image.open(io.BytesIO(data), formats=_FORMATS) as header:
            width, height = header.size
        if width * height > _MOST_PIXELS:
            raise too_many
        return encoded.decode(data)
    except PIL.Image.DecompressionBombError as error:
        raise too_many from error
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError("this is no image that can be read") from error


def _small(data: bytes, pixels: np.ndarray) -> bytes:
    """What is kept of an upload, JPEG or PNG: it as it is, unless it is large."""
    small = _within(pixels, _KEPT_SIDE, _KEPT_SIDE)
    if small is pixels and _suffix(data) and len(data) <= _KEPT_SIDE**2:
        return data
    return encoded.png(small)


def _within(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """An image shrunk to at most this height and width; a smaller one as it is."""
    scale = min(height / pixels.shape[0], width / pixels.shape[1])
    if scale >= 1:
        return pixels
    size = [max(1, round(scale * side)) for side in pixels.shape[1::-1]]
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def _camera(said: Any) -> str | None:
    """The camera that the page says an upload is of; None for "" and nothing."""
    if said and not (isinstance(said, str) and said.isprintable()):
        raise UserError("a camera's name is plain text")
    return said or None


def _filter(params: Mapping[str, str]) -> str:
    """The filter in Milvus' words of what the page lets choose."""
    parts = []
    if camera := params.get("camera"):
        parts.append(f"camera == {milvus.quoted(camera)}")
    for name, sign in (("since", ">="), ("until", "<=")):
        try:
            moment = rows.moment(params.get(name))
        except ValueError as error:
            raise UserError(f"{name}: {params[name]!r} is no time") from error
        if moment:
            parts.append(f"time {sign} {milvus.quoted(moment)}")
    return " and ".join(parts)


def _number(params: Mapping[str, str], name: str, default: int) -> int:
    text = params.get(name, "")
    return int(text) if text.isdecimal() and len(text) < 9 else default
