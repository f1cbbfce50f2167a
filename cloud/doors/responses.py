"""HTTP responses, each with the headers that keep a browser from doing more with it than was meant."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

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
    "content-security-policy": "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}


class Folder(StaticFiles):
    """Static files, with a policy for pages that run models by themselves."""

    async def get_response(self, path: str, scope: Any) -> Response:
        found = await super().get_response(path, scope)
        found.headers.update(FOLDER)
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
