"""The page for review: choose an image, see its ranking, mark pairs.

Starlette and uvicorn serve one page of plain HTML: Gradio would bring forty packages,
file routes of its own to be kept shut, and a look that has to be bent to small crops.
"""

from __future__ import annotations

import base64
import hmac
import importlib.resources
import ipaddress
import secrets
import socket
import urllib.parse
from typing import TYPE_CHECKING, Any

from reid_jax.errors import UserError
from reid_jax.search.gallery import Gallery
from reid_jax.search.marks import Marks

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import (
        HTMLResponse,
        JSONResponse,
        RedirectResponse,
        Response,
    )
    from starlette.routing import Route

    from reid_jax.search import review
except ImportError as error:
    raise UserError(
        "the page for review needs starlette and uvicorn. Install them with: pip "
        "install 'reid_jax[web]'; in a checkout: pip install '.[web]'"
    ) from error

if TYPE_CHECKING:
    from reid_jax.extractor.extractor import Extractor

_COOKIE = "reid_jax_review"
_HEADER = "x-review"
"""No other site can send it: that takes leave, which is never given."""


def serve(
    gallery: Gallery, extractor: Extractor, *, host: str, port: int, marks: str
) -> None:
    """Serves the page until Ctrl-C.

    Args:
      gallery: to be searched.
      extractor: the gallery's network.
      host: name or address to bind to; beyond this machine, a token is asked for.
      port: of it.
      marks: folder that marks are kept in.

    Raises:
      UserError: the port cannot be had, or the folder is another process'.
    """
    token = "" if _is_local(host) else secrets.token_urlsafe(18)
    listening = _bound(host, port)
    kept = Marks(marks)
    try:
        name = f"[{host}]" if ":" in host else host
        port = listening.getsockname()[1]  # of --port=0, any that is free
        place = f"http://{name}:{port}/" + (f"?token={token}" if token else "")
        print(f"reviewing {gallery.uri} at {place}", flush=True)
        print(f"marks go to {kept.folder}; Ctrl-C ends", flush=True)
        app = make(gallery, extractor, kept, host=host, token=token)
        config = uvicorn.Config(app, log_level="warning", server_header=False)
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        listening.close()
        kept.close()


def make(
    gallery: Gallery,
    extractor: Extractor,
    marks: Marks,
    *,
    host: str = "127.0.0.1",
    token: str = "",
) -> Starlette:
    """The application, see `serve`."""
    pages = review.Review(gallery, extractor, marks)
    routes = [
        Route("/", _page),
        Route("/api/about", pages.about),
        Route("/api/images", pages.images),
        Route("/api/search", pages.search, methods=["POST"]),
        Route("/api/mark", pages.mark, methods=["POST"]),
        Route("/image/{id}", pages.image),
    ]
    guards = [Middleware(_Guard, host=host, token=token)]
    handlers = {UserError: _refused, HTTPException: _refused}
    return Starlette(routes=routes, middleware=guards, exception_handlers=handlers)


class _Guard:
    """Asks for the token, or else for this machine's name: another may lead here, too.

    And for our own header of what writes.
    """

    def __init__(self, app: Any, host: str, token: str) -> None:
        self._app, self._token = app, token
        self._names = {host.lower(), "localhost", "127.0.0.1", "::1"}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        response = self._answer(Request(scope))
        await (response or self._app)(scope, receive, send)

    def _answer(self, request: Request) -> Response | None:
        """What is said instead of letting a request through."""
        if not self._token and _hostname(request) not in self._names:
            return JSONResponse({"error": "this page has another address"}, 400)
        given = request.query_params.get("token")
        if self._is_token(given) and request.url.path == "/":
            response = RedirectResponse("/", status_code=303)
            options = {"httponly": True, "samesite": "strict"}
            response.set_cookie(_COOKIE, self._token, **options)
            return response
        if self._token and not self._is_token(request.cookies.get(_COOKIE)):
            said = "open the address with ?token=... that was printed at the start"
            return JSONResponse({"error": said}, status_code=401)
        if request.method == "POST" and _HEADER not in request.headers:
            return JSONResponse({"error": "only the page may do this"}, 403)
        return None

    def _is_token(self, given: str | None) -> bool:
        said = (given or "").encode(errors="replace")
        return bool(self._token) and hmac.compare_digest(said, self._token.encode())


def _hostname(request: Request) -> str | None:
    """The name or address, without brackets, that a request calls this machine."""
    try:
        return urllib.parse.urlsplit(f"//{request.headers.get('host', '')}").hostname
    except ValueError:
        return None


async def _page(request: Request) -> Response:
    nonce = base64.b64encode(secrets.token_bytes(16)).decode()
    text = importlib.resources.files(__package__).joinpath("page.html").read_text()
    policy = (
        "default-src 'none'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        f"style-src 'nonce-{nonce}'; "
        f"script-src 'nonce-{nonce}'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return HTMLResponse(text.replace("NONCE", nonce), headers=headers)


async def _refused(request: Request, error: Exception) -> Response:
    code = error.status_code if isinstance(error, HTTPException) else 400
    said = error.detail if isinstance(error, HTTPException) else str(error)
    return JSONResponse({"error": said}, status_code=code)


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bound(host: str, port: int) -> socket.socket:
    if not 0 <= port < 2**16:
        raise UserError(f"--port={port}: a port is a number from 0 to {2**16 - 1}")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family[0], socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(family[4])
        listening.listen(64)
    except (OSError, UnicodeError) as error:  # of names that cannot be one's
        raise UserError(
            f"--host={host} --port={port} cannot be served at ({error}); choose "
            "another port, or end the program that has it"
        ) from error
    return listening
