"""A bucket on this machine, in place of Google's: the part of the JSON API that gcsfs,
google-cloud-storage and TensorStore use, with objects and generations in memory."""

import contextlib
import email
import http.server
import itertools
import json
import os
import re
import threading
import urllib.parse

# What sends all three clients here, without credentials, and without asking Google's
# servers what kind of bucket it is.
_ENVIRONMENT = {
    "STORAGE_EMULATOR_HOST": "http://localhost:{port}",
    "TENSORSTORE_GCS_HTTP_URL": "http://localhost:{port}",
    "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    "NO_GCE_CHECK": "true",
}
_TIME = "2026-01-01T00:00:00.{:06}Z"


@contextlib.contextmanager
def emulated(name="bucket"):
    """Serves an empty bucket until the context ends; yields its address."""
    server = http.server.ThreadingHTTPServer(("localhost", 0), _Handler)
    server.daemon_threads = True
    # Clients that no longer wait for an answer are no news.
    server.handle_error = lambda *_: None
    server.bucket, server.objects, server.uploads = name, {}, {}
    server.generations, server.lock = itertools.count(1), threading.RLock()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        key: value.format(port=server.server_port)
        for key, value in _ENVIRONMENT.items()
    }
    try:
        os.environ.update(environment)
        yield f"gs://{name}"
    finally:
        for key in environment:
            del os.environ[key]
        server.shutdown()
        server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body in one packet: a second one waits for the first's receipt.
    wbufsize = -1

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._respond("GET", self.path, b"")

    def do_POST(self):
        length = int(self.headers.get("Content-Length", 0))
        self._respond("POST", self.path, self.rfile.read(length))

    do_PUT = do_POST

    def do_DELETE(self):
        self._respond("DELETE", self.path, b"")

    def _respond(self, method, path, body):
        with self.server.lock:
            status, content, headers = self._answer(method, path, body)
        if not isinstance(content, bytes):
            content, headers = (
                json.dumps(content).encode(),
                {
                    **headers,
                    "Content-Type": "application/json",
                },
            )
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if status not in (204, 304):
            self.wfile.write(content)

    def _answer(self, method, path, body):
        """Status, content and headers."""
        url = urllib.parse.urlsplit(path)
        query = dict(urllib.parse.parse_qsl(url.query))
        if url.path.startswith("/batch"):
            return self._batch(body)
        match = re.fullmatch(r"(/\w+)?/storage/v1/b/([^/]+)(/o(?:/(.+))?)?", url.path)
        kind, bucket, objects, name = match.groups()
        if bucket != self.server.bucket:
            return 404, {"error": {"message": "no such bucket"}}, {}
        if kind == "/upload":
            return self._upload(query, body)
        if objects is None:
            return 200, {"name": bucket, "kind": "storage#bucket"}, {}
        if name is None:
            return 200, self._list(query), {}
        name = urllib.parse.unquote(name)
        if method == "DELETE":
            return self._delete(name, query)
        return self._get(name, query)

    def _get(self, name, query):
        data, generation = self.server.objects.get(name, (None, 0))
        if _differs(query, "ifGenerationMatch", generation):
            return 412, {}, {}
        if data is None:
            return 404, {"error": {"message": f"no such object: {name}"}}, {}
        if query.get("ifGenerationNotMatch") == str(generation):
            return 304, b"", {}
        if query.get("alt") != "media":
            return 200, self._about(name), {}
        headers = {"x-goog-generation": str(generation)}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return 200, data, headers
        start, end = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
        if start >= len(data):
            return 416, b"", headers
        headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        return 206, data[start : end + 1], headers

    def _delete(self, name, query):
        _, generation = self.server.objects.get(name, (None, 0))
        if _differs(query, "ifGenerationMatch", generation):
            return 412, {}, {}
        found = self.server.objects.pop(name, None)
        return (204, b"", {}) if found else (404, {}, {})

    def _upload(self, query, body):
        name, kind = query.get("name"), query["uploadType"]
        if kind == "multipart":
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            about, content = email.message_from_bytes(head + body).get_payload()
            name = name or json.loads(about.get_payload())["name"]
            body = content.get_payload(decode=True)
        elif kind == "resumable" and "upload_id" not in query:
            name = name or json.loads(body)["name"]
            upload = str(next(self.server.generations))
            self.server.uploads[upload] = name, b""
            place = f"http://{self.headers['Host']}{self.path}&upload_id={upload}"
            return 200, {}, {"Location": place}
        elif kind == "resumable":
            name, before = self.server.uploads[query["upload_id"]]
            body = before + body
            if self.headers["Content-Range"].endswith("/*"):
                self.server.uploads[query["upload_id"]] = name, body
                return 308, b"", {"Range": f"bytes=0-{len(body) - 1}"}
        _, generation = self.server.objects.get(name, (None, 0))
        if _differs(query, "ifGenerationMatch", generation):
            return 412, {}, {}
        self.server.objects[name] = body, next(self.server.generations)
        return 200, self._about(name), {}

    def _list(self, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, folders = [], {}
        for name in sorted(n for n in self.server.objects if n.startswith(prefix)):
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                folders[prefix + rest.split(delimiter)[0] + delimiter] = None
            else:
                items.append(self._about(name))
        return {"items": items, "prefixes": list(folders)}

    def _about(self, name):
        data, generation = self.server.objects[name]
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": self.server.bucket,
            "generation": str(generation),
            "size": str(len(data)),
            "updated": _TIME.format(generation),
            "timeCreated": _TIME.format(generation),
        }

    def _batch(self, body):
        """Several deletions in one request."""
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        parts = []
        for number, part in enumerate(email.message_from_bytes(head + body).walk()):
            found = re.match(r"DELETE (\S+)", str(part.get_payload()))
            if found:
                path = urllib.parse.urlsplit(found[1]).path
                status, _, _ = self._answer("DELETE", path, b"")
                parts.append(
                    "--x\r\nContent-Type: application/http\r\n"
                    f"Content-ID: <response-{number}>\r\n\r\n"
                    f"HTTP/1.1 {status} -\r\nContent-Length: 0\r\n\r\n\r\n"
                )
        content = ("".join(parts) + "--x--\r\n").encode()
        return 200, content, {"Content-Type": "multipart/mixed; boundary=x"}


def _differs(query, condition, generation):
    return condition in query and query[condition] != str(generation)
