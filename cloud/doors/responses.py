"""HTTP responses, each with the headers that keep a browser from doing more with it than was meant."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import PurePath
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from .http_errors import HttpError, to_http
from .messages import to_json

# A page, from the Accept header: body and headers; None: there is none.
Page = Callable[[str], tuple[bytes, Mapping[str, str]] | None]

NO_PATH = "no such path"
JSON, BINARY = "application/json", "application/octet-stream"
SAFE = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}
PAGE = SAFE | {"content-security-policy": "default-src 'none'; frame-ancestors 'none'"}
FOLDER = SAFE | {
    "content-security-policy": "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; connect-src 'self'; worker-src 'self'; manifest-src 'self'; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
}
MEDIA_TYPES = {  # whatever this machine's own table says: a browser runs nothing of another type
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
}
FOREVER = "public, max-age=31536000, immutable"
PACKED = {"br": ".br", "gzip": ".gz"}  # the smaller first
HASHED = "assets/"  # the build names what is below it after its content


class Folder(StaticFiles):
    """Static files, with a policy for pages that run models; compressed where FILE.br or FILE.gz lies beside FILE."""

    async def get_response(self, path: str, scope: Any) -> Response:
        found = await super().get_response(path, scope)
        own = FOLDER | {"cache-control": FOREVER if path.startswith(HASHED) else "no-cache"}
        suffix = ".html" if path == "." else PurePath(path).suffix
        media_type = MEDIA_TYPES.get(suffix, found.headers.get("content-type"))
        packed = [name for name in PACKED if self.lookup_path(f"{path}{PACKED[name]}")[1] is not None]
        if packed and found.status_code == 200:
            own["vary"] = "accept-encoding"
            told = Headers(scope=scope).get("accept-encoding", "").split(",")
            taken = {encoding.partition(";")[0].strip() for encoding in told}
            if encoding := next((name for name in packed if name in taken), None):
                found = await super().get_response(f"{path}{PACKED[encoding]}", scope)
                own["content-encoding"] = encoding
        if media_type is not None:
            own["content-type"] = media_type
        found.headers.update(own)
        return found


def response(content: bytes, headers: Mapping[str, str] | None = None, status: int = 200) -> Response:
    """JSON, unless `headers` say otherwise."""
    return Response(content, status, {"content-type": JSON, **SAFE, **(headers or {})})


def of_json(message: Any, status: int = 200) -> Response:
    return response(to_json(message), {"cache-control": "no-store"}, status)


def of_page(page: Page) -> Callable[[HttpRequest, str], Awaitable[Response]]:
    """What answers with a page; the page's own headers go before the usual ones."""

    async def method(http: HttpRequest, caller: str) -> Response:
        found = page(http.headers.get("accept", ""))
        if found is None:
            raise HttpError(404, NO_PATH)
        body, headers = found
        return Response(body, headers=PAGE | {name.lower(): value for name, value in headers.items()})

    return method


def refusal(error: Exception) -> Response:
    status, headers, text = to_http(error)
    return response(to_json({"error": text}), headers, status)


async def no_route(http: HttpRequest, error: Exception) -> Response:
    """What starlette refuses by itself: paths and methods there are none of."""
    assert isinstance(error, HTTPException)
    texts = {404: NO_PATH, 405: f"expected another method than {http.method}"}
    return refusal(HttpError(error.status_code, texts.get(error.status_code, error.detail), error.headers))
