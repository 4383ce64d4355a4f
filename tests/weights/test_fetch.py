"""Downloads, against a server on loopback that misbehaves on request."""

import contextlib
import hashlib
import http.server
import threading

import numpy as np
import pytest

from reid_jax import weights
from reid_jax.errors import UserError
from reid_jax.weights import fetch

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` at any address.

    Attributes:
      ranges: whether it honours Range.
      cuts: bytes after which it drops the connection, for one request after another.
      status: answers every request with this error if set.
      requests: the Range header, or None, of every request.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.ranges = CONTENT, True
        self.cuts: list[int] = []
        self.status = None
        self.requests: list[str | None] = []

    def source(self, digest=("sha256", SHA[:8])):
        return fetch.Source(f"http://127.0.0.1:{self.server_port}/w.pth", digest)


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        wanted = self.headers["Range"]
        self.server.requests.append(wanted)
        content, start = self.server.content, 0
        if self.server.status is not None:
            self.send_error(self.server.status)
            return
        if wanted and self.server.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            last = len(content) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(content)}")
        else:
            self.send_response(200)
        rest = content[start:]
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if self.server.cuts:
            rest = rest[: self.server.cuts.pop(0)]
        with contextlib.suppress(OSError):
            self.wfile.write(rest)
        self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(fetch, "_PAUSE", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def files_in(folder):
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock")


def test_downloads_once(server, tmp_path, capsys):
    path = fetch.fetch(server.source(), tmp_path / "cache")
    assert path == tmp_path / "cache" / "w.pth"
    assert path.read_bytes() == CONTENT
    assert "w.pth" in capsys.readouterr().err  # the bar
    assert fetch.fetch(server.source(), tmp_path / "cache") == path
    assert server.requests == [None]
    assert files_in(tmp_path / "cache") == ["w.pth"]


def test_a_cut_connection_goes_on_where_it_was(server, tmp_path):
    server.cuts = [100_000, 50_000]
    path = fetch.fetch(server.source(), tmp_path)
    assert path.read_bytes() == CONTENT
    assert server.requests == [None, "bytes=100000-", "bytes=150000-"]


def test_a_later_run_goes_on_where_an_earlier_was(server, tmp_path):
    server.cuts = [100_000, 0, 0, 0]
    with pytest.raises(UserError, match="100,000 bytes are kept") as error:
        fetch.fetch(server.source(), tmp_path)
    assert "broke off after 100,000 of 300,000 bytes" in str(error.value)
    assert files_in(tmp_path) == ["w.pth.part"]
    assert len(server.requests) == 1 + fetch.ATTEMPTS
    server.requests.clear()
    assert fetch.fetch(server.source(), tmp_path).read_bytes() == CONTENT
    assert server.requests == ["bytes=100000-"]
    assert files_in(tmp_path) == ["w.pth"]


def test_a_server_without_ranges_starts_over(server, tmp_path):
    server.ranges, server.cuts = False, [100_000]
    assert fetch.fetch(server.source(), tmp_path).read_bytes() == CONTENT
    assert server.requests == [None, "bytes=100000-"]
    server.cuts = [100_000] * 50  # always at the same place: not for ever
    (tmp_path / "w.pth").unlink()
    server.requests.clear()
    with pytest.raises(UserError, match="100,000 bytes are kept"):
        fetch.fetch(server.source(), tmp_path)
    assert len(server.requests) == 1 + fetch.ATTEMPTS


def test_a_part_that_is_already_whole(server, tmp_path):
    (tmp_path / "w.pth.part").write_bytes(CONTENT)
    assert fetch.fetch(server.source(), tmp_path).read_bytes() == CONTENT
    assert server.requests == ["bytes=300000-"]


@pytest.mark.parametrize("given", [b"x", b"x" * 400_000])
def test_a_part_of_another_file_is_removed(server, tmp_path, given):
    (tmp_path / "w.pth.part").write_bytes(given)
    with pytest.raises(UserError, match="is not the file that it should be"):
        fetch.fetch(server.source(), tmp_path)
    assert files_in(tmp_path) == []
    assert fetch.fetch(server.source(), tmp_path).read_bytes() == CONTENT


def test_wrong_checksum(server, tmp_path):
    server.content = b"<html>sorry</html>"
    with pytest.raises(UserError, match=f"not with {SHA[:8]}. It was removed from"):
        fetch.fetch(server.source(), tmp_path)
    assert files_in(tmp_path) == []


def test_a_wrong_file_in_the_cache(server, tmp_path):
    (tmp_path / "w.pth").write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match=r"w\.pth is not the file that it should be"):
        fetch.fetch(server.source(), tmp_path)
    assert files_in(tmp_path) == []
    assert server.requests == []


def test_other_checksums(server, tmp_path):
    digest = hashlib.md5(CONTENT).hexdigest()
    assert fetch.fetch(server.source(("md5", digest)), tmp_path).exists()


def test_a_page_in_place_of_a_file_without_a_checksum(server, tmp_path):
    server.content = b"<html>too many downloads</html>"
    with pytest.raises(UserError, match=r"not a file of PyTorch's; it was removed"):
        fetch.fetch(server.source(None), tmp_path)
    assert files_in(tmp_path) == []
    server.content = b"PK" + CONTENT
    assert fetch.fetch(server.source(None), tmp_path).read_bytes() == server.content


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (503, fetch.ATTEMPTS)])
def test_an_address_without_the_file(server, tmp_path, status, requests):
    server.status = status
    with pytest.raises(UserError, match=rf"/w\.pth: {status} .* put it at .*w\.pth,"):
        fetch.fetch(server.source(), tmp_path)
    assert len(server.requests) == requests
    assert files_in(tmp_path) == []


def test_no_network(server, tmp_path):
    source = server.source()
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match=r"cannot download http.*refused") as error:
        fetch.fetch(source, tmp_path)
    assert f"put it at {tmp_path / 'w.pth'}" in str(error.value)
    assert "--config.pretrained=PATH" in str(error.value)


def test_a_cache_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot keep weights in .*REID_JAX_CACHE"):
        fetch.fetch(server.source(), tmp_path / "file" / "cache")


def test_processes_wait_for_one_another(server, tmp_path):
    paths = []
    threads = [
        threading.Thread(
            target=lambda: paths.append(fetch.fetch(server.source(), tmp_path))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert paths == [tmp_path / "w.pth"] * 4
    assert server.requests == [None]


def test_names_paths_and_the_cache(server, tmp_path, monkeypatch):
    monkeypatch.setitem(fetch.KNOWN, "net", server.source())
    monkeypatch.setenv("REID_JAX_CACHE", str(tmp_path / "cache"))
    assert weights.locate("net") == tmp_path / "cache" / "w.pth"
    assert weights.locate(str(tmp_path / "cache")) == tmp_path / "cache"
    monkeypatch.delenv("REID_JAX_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetch.cache_folder() == tmp_path / ".cache" / "reid_jax" / "weights"
    with pytest.raises(UserError, match=r"'nothing': neither .* known are: .*resnet50"):
        weights.locate("nothing")


def test_checksums_are_those_of_the_names():
    """PyTorch's files carry the start of their SHA-256 in their names."""
    for name, source in fetch.KNOWN.items():
        assert source.url.startswith("https://")
        assert source.file_name.endswith(".pth")
        if name.startswith("osnet_"):  # torchreid publishes none
            assert (source.file_name, source.digest) == (f"{name}_imagenet.pth", None)
            continue
        algorithm, digits = source.digest
        if algorithm == "sha256":
            assert source.file_name.endswith(f"-{digits}.pth")


def test_public_files_say_what_images_they_want():
    """Google's ViTs 0.5 (big_vision: `value_range(-1, 1)`); all others ImageNet's."""
    half, imagenet = (0.5,) * 3, ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    for name, source in fetch.KNOWN.items():
        wanted = (half, half) if name.startswith("vit_") else imagenet
        assert (source.mean, source.std) == wanted
        assert not fetch.other_statistics(name, *wanted)
        assert not fetch.other_statistics(f"~/downloads/{source.file_name}", *wanted)
    deit = fetch.KNOWN["deit_base_patch16_224"].file_name
    for name in ("deit_base_patch16_224", f"gs://bucket/{deit}"):
        note = fetch.other_statistics(name, half, half)
        assert note.startswith(f"note: {deit} was trained with mean (0.485, 0.456")
        assert "config.model.std (0.5, 0.5, 0.5)" in note
    assert not fetch.other_statistics("runs/mine", half, half)
