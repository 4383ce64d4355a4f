"""What the page for review asks for: images to choose from, rankings, marks.

What is served are images of the gallery, by the ids of its entries, decoded and encoded
again; no path of a request is opened.
"""

from __future__ import annotations

import collections
import json
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
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

_MOST_BYTES = 32 << 20
_UPLOADS = 32
_CAMERAS, _CHOICE = 200, 60
_THUMB = 256
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
        except ValueError:
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
            known = self._gallery.rows(
                "camera is not null", fields=["camera"], limit=10_000
            )
            return {
                "gallery": self._gallery.uri,
                "images": self._gallery.count(),
                "method": self._gallery.about.method.rsplit(".", 1)[-1],
                "cameras": sorted({row["camera"] for row in known})[:_CAMERAS],
                "counts": self._marks.counts(),
                "marks": str(self._marks.folder / "table.csv"),
            }

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
        source = Source("the image", lambda: {"image": _decoded(data)})
        _, embedding = next(self._extractor.stream([source]))
        key = rows.digest(data)
        self._uploads[key] = data
        self._uploads.move_to_end(key)
        while len(self._uploads) > _UPLOADS:
            self._uploads.popitem(last=False)
        camera = params.get("query_camera") or None
        return Asked(self._place(key), embedding, id=key, camera=camera)

    def _place(self, key: str) -> str:
        """Where an upload lies, once it is marked."""
        return self._marks.place(key, _suffix(self._uploads[key]) or ".png")

    def _mark(self, given: Mapping[str, Any]) -> None:
        images = [
            self._marked(str(given.get(name, "")), given.get("query_camera"))
            for name in ("query", "candidate")
        ]
        self._marks.mark(*images, given["mark"], at=rows.now())

    def _marked(self, key: str, camera: Any) -> Marked:
        if key in self._uploads:
            path, data = self._place(key), self._uploads[key]
            # `prepare` takes JPEG and PNG; the page any format that can be decoded.
            self._marks.keep(
                path, data if _suffix(data) else encoded.png(_decoded(data))
            )
            return Marked(path, str(camera) if camera else None)
        row = self._row(key)
        return Marked(row["path"], row["camera"])

    def _jpeg(self, key: str, height: int) -> bytes:
        if key in self._uploads:
            pixels = _decoded(self._uploads[key])
        else:
            try:
                pixels = imaging.read_file(self._row(key)["path"])["image"]
            except BadImage as error:
                raise HTTPException(404, "the image is no longer there") from error
        height = max(16, min(height, 2048))
        width = max(1, round(pixels.shape[1] * height / pixels.shape[0]))
        if pixels.shape[0] > height:
            pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
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
    try:
        return encoded.decode(data)
    except ValueError as error:
        raise UserError("this is no image that can be read") from error


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
