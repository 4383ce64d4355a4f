"""The page for review, asked as a browser would ask it."""

import contextlib
import json
import socket
import struct
import zlib

import cv2
import numpy as np
import pytest

pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")
pytest.importorskip("uvicorn")
testclient = pytest.importorskip("starlette.testclient")

from reid_jax.errors import UserError  # noqa: E402
from reid_jax.search import gallery as galleries  # noqa: E402
from reid_jax.search import review, rows, web  # noqa: E402
from reid_jax.search.marks import Marks  # noqa: E402
from tests.search.test_command import (  # noqa: E402, F401
    brute_force,
    gallery,
    made,
    names,
    refused,
    said,
)

WRITES = {"X-Review": "1"}


@pytest.fixture(scope="module")
def opened(made):  # noqa: F811
    with galleries.existing(str(made)) as opened:
        yield opened


@pytest.fixture
def marks(tmp_path):
    kept = Marks(tmp_path / "marks")
    yield kept
    kept.close()


@pytest.fixture
def page(opened, extractors, marks):
    app = web.make(opened, extractors["toy"], marks)
    return testclient.TestClient(app, base_url="http://127.0.0.1")


def _id(photos, name):
    return rows.identity(str(photos / name))


def test_it_ranks_an_entry_and_an_upload(page, photos, extractors):
    query = photos / "2_c1.png"
    expected, distances = brute_force(extractors["toy"], query, photos)
    params = {"id": _id(photos, query.name), "top": "17"}
    found = page.post("/api/search", params=params, headers=WRITES).json()
    assert names(found["hits"]) == expected
    assert found["hits"][3]["distance"] == pytest.approx(distances[3], abs=1e-4)
    assert found["query"]["camera"] == "1"
    params |= {"camera": "0", "other_cameras": "1"}
    found = page.post("/api/search", params=params, headers=WRITES).json()
    assert names(found["hits"]) == [name for name in expected if "_c0" in name]
    found = page.post("/api/search", content=query.read_bytes(), headers=WRITES).json()
    assert names(found["hits"]) == [query.name, *expected]


def test_marks_become_a_table(page, photos, marks):
    query = photos / "2_c1.png"
    upload = page.post("/api/search", content=query.read_bytes(), headers=WRITES).json()
    pairs = [
        (upload["query"]["id"], _id(photos, "2_c2.png"), "same"),
        (_id(photos, "2_c2.png"), _id(photos, "2_c0.png"), "same"),
        (_id(photos, "2_c2.png"), _id(photos, "3_c0.png"), "different"),
    ]
    for one, other, mark in pairs:
        sent = {"query": one, "candidate": other, "mark": mark, "query_camera": "9"}
        answer = page.post("/api/mark", json=sent, headers=WRITES)
        assert answer.status_code == 200
    assert answer.json()["counts"] == {"same": 2, "different": 1, "unsure": 0}
    lines = (marks.folder / "table.csv").read_text().splitlines()
    persons = [line.split(",")[1] for line in lines[1:]]
    assert sorted(persons) == ["-1", "person 1", "person 1", "person 1"]
    kept = next((marks.folder / "images").iterdir())
    assert kept.read_bytes() == query.read_bytes()
    assert f"{kept},person 1,train,9" in lines
    params = {"id": _id(photos, "2_c2.png")}
    found = page.post("/api/search", params=params, headers=WRITES).json()
    said = {hit["path"].rsplit("/")[-1]: hit["mark"] for hit in found["hits"]}
    assert (said["2_c0.png"], said["3_c0.png"], said["4_c0.png"]) == (
        *("same", "different", None),
    )


def test_images_of_the_gallery_alone(page, photos):
    answer = page.get(f"/image/{_id(photos, '2_c1.png')}?height=30")
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.content.startswith(b"\xff\xd8")
    for path in (
        "/etc/passwd",
        str(photos / "2_c1.png"),
        "..%2f..%2fetc%2fpasswd",
        "x",
    ):
        assert page.get(f"/image/{path}").status_code == 404


def _png(width, height):
    """A PNG of such a header, without most of its pixels."""

    def chunk(name, data):
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))
    return b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(16_000, 16_000), (8000, 5001)])
def test_too_many_pixels_are_not_decoded(size, page, monkeypatch):
    monkeypatch.setattr(review.encoded, "decode", None)  # would be called
    answer = page.post("/api/search", content=_png(*size), headers=WRITES)
    assert answer.status_code == 400
    assert answer.json() == {"error": "an image has at most 40 million pixels"}


@pytest.mark.parametrize("shape", [(70_000, 1), (1, 70_000), (3000, 1500)])
def test_a_large_upload_is_kept_small(shape, page, photos, marks):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    data = cv2.imencode(".bmp", pixels)[1].tobytes()
    found = page.post("/api/search", content=data, headers=WRITES).json()
    key = found["query"]["id"]
    assert page.get(f"/image/{key}").content.startswith(b"\xff\xd8")
    sent = {"query": key, "candidate": _id(photos, "2_c2.png"), "mark": "same"}
    assert page.post("/api/mark", json=sent, headers=WRITES).status_code == 200
    (kept,) = (marks.folder / "images").iterdir()
    assert kept.suffix == ".png"
    expected = tuple(max(1, side * 1024 // max(shape)) for side in shape)
    assert cv2.imread(str(kept)).shape[:2] == expected


@pytest.mark.parametrize("moment", ["0001-01-01T00:00+05:00", "9999-12-31T23:59-05:00"])
def test_times_beyond_the_calendar(moment, page):
    answer = page.get("/api/images", params={"since": moment})
    assert answer.status_code == 400
    assert "is no time" in answer.json()["error"]


def test_odd_marks(page, photos, marks):
    one, other = _id(photos, "2_c1.png"), _id(photos, "2_c2.png")
    upload = page.post(
        "/api/search", content=(photos / "0_c0.png").read_bytes(), headers=WRITES
    ).json()["query"]["id"]
    for body, words in [
        ("[" * 200_000, "a mark is one of"),
        (_mark(one, one, "different"), "a pair is two images"),
        (_mark("x'] or id != '", other, "same"), "has no such image"),
        (_mark("\ud800", other, "same"), ""),
        (_mark(upload, other, "same", query_camera="\ud800"), "camera's name"),
        (_mark(upload, other, "same", query_camera=["a"]), "camera's name"),
    ]:
        answer = page.post("/api/mark", content=body, headers=WRITES)
        assert answer.status_code in (400, 404)
        assert words in answer.json()["error"]
    assert not (marks.folder / "marks.jsonl").exists()


def _mark(query, candidate, mark, **more):
    return json.dumps({"query": query, "candidate": candidate, "mark": mark, **more})


def test_what_it_refuses(page, photos):
    params = {"id": _id(photos, "2_c1.png")}
    assert page.post("/api/search", params=params).status_code == 403
    other = page.get("/api/about", headers={"Host": "evil.example"})
    assert other.status_code == 400
    for name in ("localhost:80", "[::1]:80", "127.0.0.1"):
        assert page.get("/api/about", headers={"Host": name}).status_code == 200
    for name in ("[::1", "[::2]", "evil.example:80", ""):
        assert page.get("/api/about", headers={"Host": name}).status_code == 400
    answer = page.post("/api/search", content=b"no image", headers=WRITES)
    assert answer.json() == {"error": "this is no image that can be read"}
    answer = page.post("/api/search?id=none", headers=WRITES)
    assert answer.json() == {"error": "the gallery has no such image"}
    answer = page.post("/api/search", params=params | {"since": "x"}, headers=WRITES)
    assert "'x' is no time" in answer.json()["error"]
    sent = {"query": "a", "candidate": "b", "mark": "perhaps"}
    answer = page.post("/api/mark", json=sent, headers=WRITES)
    assert answer.json() == {"error": "a mark is one of same, different, unsure"}
    answer = page.post("/api/mark", content=b"{", headers=WRITES)
    assert answer.status_code == 400


def test_a_token_is_asked_for_elsewhere(opened, extractors, marks, monkeypatch):
    app = web.make(opened, extractors["toy"], marks, host="0.0.0.0", token="secret")
    page = testclient.TestClient(app, base_url="http://some.where")
    for path in ("/", "/api/about", "/image/x"):
        assert page.get(path).status_code == 401
    assert page.get("/?token=wrong").status_code == 401
    assert page.get("/?token=\u20ac").status_code == 401
    assert page.get("/?token=secret").status_code == 200
    monkeypatch.setattr(review, "_ROWS", 2)
    about = page.get("/api/about").json()
    assert (about["images"], about["cameras"]) == (18, ["0", "1", "2"])


def test_the_page_runs_nothing_but_its_own(page):
    answer = page.get("/")
    policy = answer.headers["content-security-policy"]
    nonce = policy.split("script-src 'nonce-")[1].rstrip("'")
    assert f'<script nonce="{nonce}">' in answer.text
    assert "default-src 'none'" in policy
    assert "NONCE" not in answer.text
    assert answer.text.count("http://") == answer.text.count("https://") == 0


def test_serving(gallery, tmp_path, capsys, monkeypatch):  # noqa: F811
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = f"--port={taken.getsockname()[1]}"
        assert "cannot be served at" in refused(capsys, "serve", gallery, port)
    served = []
    monkeypatch.setattr(
        web.uvicorn.Server, "run", lambda self, sockets: served.append(1)
    )
    web_args = ["serve", gallery, f"--marks={tmp_path}/m"]
    printed = said(capsys, *web_args, "--port=0")
    assert "at http://127.0.0.1:" in printed
    assert ":0/" not in printed
    assert "?token=" in said(capsys, *web_args, "--port=0", "--host=0.0.0.0")
    with contextlib.suppress(SystemExit):  # a machine without IPv6
        assert "at http://[::1]:" in said(capsys, *web_args, "--port=0", "--host=::1")
    assert len(served) >= 2


def test_the_address_that_is_printed_is_listened_at():
    with web._bound("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(UserError, match="cannot be served at"):
            web._bound("127.0.0.1", port).close()
    for host, port in (("127.0.0.1", 70000), ("127.0.0.1", -1), ("x" * 300, 80)):
        with pytest.raises(UserError, match=f"--port={port}"):
            web._bound(host, port)


def test_marks_need_a_folder(gallery, tmp_path, capsys):  # noqa: F811
    (tmp_path / "afile").write_text("")
    message = refused(capsys, "serve", gallery, f"--marks={tmp_path}/afile")
    assert "afile (it is a file)" in message
    message = refused(capsys, "serve", gallery, "--marks=gs://bucket/marks")
    assert "gs://bucket/marks is in a bucket" in message
