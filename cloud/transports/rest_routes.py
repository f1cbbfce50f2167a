"""The REST protocol's routes and responses: who may call, which method answers, the security headers."""

from __future__ import annotations

import asyncio
import base64
import binascii
import gzip
import lzma
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request as HttpRequest
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from cloud.security.identity import bearer, one_header
from coe import __version__
from coe.cascade.errors import TierTimeout, TierUnavailable, Unauthenticated
from coe.protocol.core import Answer, InferenceCore, Request
from coe.protocol.servicer import EXTENSIONS, RepositoryExtension
from coe.protocol.status import NotOffered
from coe.protocol.trace_context import HEADERS as TRACE
from coe.status_page import SECURITY_HEADERS

from .http_server import PEER, BodyReader, ConnectionPeer
from .rest_messages import (
    LENGTH,
    HttpError,
    RequestLimits,
    metadata,
    parse,
    read_request,
    to_http,
    to_json,
    write_answer,
)
from .rest_server import Page, RestOptions

NO_PATH = "no such path"
JSON, BINARY = "application/json", "application/octet-stream"
SAFE = {name.lower(): value for name, value in SECURITY_HEADERS.items()}
PAGE = SAFE | {"content-security-policy": "default-src 'none'; frame-ancestors 'none'"}
FOLDER = SAFE | {
    "content-security-policy": "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; connect-src 'self'; worker-src 'self'; manifest-src 'self'; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
}
MEDIA_TYPES = {  # not this machine's own table: a browser runs nothing of another type
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
}
FOREVER = "public, max-age=31536000, immutable"
PACKED = {"br": ".br", "gzip": ".gz"}  # the smaller first
LEAST_PACKED, GZIP_LEVEL = 1024, 6  # bytes of a page below which it is not worth compressing it
HASHED = "assets/"  # the build names what is below it after its content


class StaticFolder(StaticFiles):
    """Static files, with a policy for pages that run models; compressed where FILE.br or FILE.gz lies beside FILE.

    An installed package has scripts and the models' runtime as FILE.xz alone: the first to ask waits until it is packed
    anew.
    """

    async def get_response(self, path: str, scope: Any) -> Response:
        path = "index.html" if path == "." else path
        packed = [name for name in PACKED if self.lookup_path(f"{path}{PACKED[name]}")[1] is not None]
        taken = _encodings(Headers(scope=scope))
        encoding = next((name for name in packed if name in taken), None)
        own = FOLDER | {"cache-control": FOREVER if path.startswith(HASHED) else "no-cache"}
        if encoding:
            found = await super().get_response(f"{path}{PACKED[encoding]}", scope)
            own["content-encoding"] = encoding
        elif self.lookup_path(f"{path}.xz")[1] is not None:
            content = await asyncio.to_thread(_repacked, self.lookup_path(f"{path}.xz")[0])
            packed, own["content-encoding"] = ["gzip"], "gzip"
            if "gzip" not in taken:
                content, own["content-encoding"] = await asyncio.to_thread(gzip.decompress, content), "identity"
            found = Response(content)
        else:
            found = await super().get_response(path, scope)
        if packed:
            own["vary"] = "accept-encoding"
        media_type = MEDIA_TYPES.get(PurePath(path).suffix, found.headers.get("content-type"))
        if media_type is not None:
            own["content-type"] = media_type
        found.headers.update(own)
        return found


@lru_cache(maxsize=16)
def _repacked(path: str) -> bytes:
    return gzip.compress(lzma.decompress(Path(path).read_bytes()), GZIP_LEVEL, mtime=0)


def _encodings(headers: Headers) -> set[str]:
    """What a caller takes a body compressed with."""
    accepted = headers.get("accept-encoding", "").split(",")
    return {
        encoding.partition(";")[0].strip() for encoding in accepted if not encoding.replace(" ", "").endswith(";q=0")
    }


def response(content: bytes, headers: Mapping[str, str] | None = None, status: int = 200) -> Response:
    """JSON, unless `headers` say otherwise."""
    return Response(content, status, {"content-type": JSON, **SAFE, **(headers or {})})


def of_json(message: Any, status: int = 200) -> Response:
    return response(to_json(message), {"cache-control": "no-store"}, status)


def of_page(page: Page) -> Callable[[HttpRequest, str], Awaitable[Response]]:
    """A method that answers with a page, whose own headers override the usual ones."""

    async def method(http: HttpRequest, caller: str) -> Response:
        found = page(http.headers.get("accept", ""))
        if found is None:
            raise HttpError(404, NO_PATH)
        body, headers = found
        own = PAGE | {name.lower(): value for name, value in headers.items()}
        if own.get("content-type", "").startswith(("text/", JSON)):
            own["vary"] = "accept, accept-encoding"
            if len(body) >= LEAST_PACKED and "gzip" in _encodings(http.headers):
                body, own["content-encoding"] = gzip.compress(body, GZIP_LEVEL, mtime=0), "gzip"
        return Response(body, headers=own)

    return method


def refusal(error: Exception) -> Response:
    status, headers, text = to_http(error)
    return response(to_json({"error": text}), headers, status)


async def no_route(http: HttpRequest, error: Exception) -> Response:
    """The response to a path or method that does not exist, which Starlette refuses by itself."""
    assert isinstance(error, HTTPException)
    texts = {404: NO_PATH, 405: f"expected another method than {http.method}"}
    return refusal(HttpError(error.status_code, texts.get(error.status_code, error.detail), error.headers))


Method = Callable[[HttpRequest, str], Awaitable[Response]]
ASK_PASSWORD = 'Basic realm="coe-cloud", charset="UTF-8"'  # a browser asks for it; the token is the password
SMALL_BODY = 64 * 1024


class Routes:
    """The REST protocol's methods, and the ASGI application that has them."""

    def __init__(self, core: InferenceCore, bodies: BodyReader, options: RestOptions) -> None:
        self.core = core
        self.bodies = bodies
        self.options = options
        max_json_bytes = min(options.max_json_bytes, options.max_message_bytes)
        self.limits = RequestLimits(core.max_rows, core.max_bytes, max_json_bytes)

    def app(self) -> Starlette:
        """The ASGI application: the protocol, and the options' pages, files and folders."""
        options = self.options
        routes: list[BaseRoute] = []
        for model in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
            routes += [
                self._route(f"{model}/infer", self.infer, "POST"),
                self._route(f"{model}/ready", self.model_ready, is_open=True),
                self._route(model, self.model_metadata),
            ]
        routes += [
            self._route("/v2/health/live", self.live, is_open=True),
            self._route("/v2/health/ready", self.ready, is_open=True),
            self._route("/v2", self.server_metadata),
            self._route("/v2/repository/index", self.repository_index, "POST"),
            self._route("/v2/repository/models/{name}/load", self.repository_load, "POST"),
            self._route("/v2/repository/models/{name}/unload", self.repository_unload, "POST"),
        ]
        for path, page in options.pages.items():
            routes.append(self._route(path, of_page(page), is_open=not options.pages_need_identity, is_page=True))
        for path, page in options.open_pages.items():
            routes.append(self._route(path, of_page(page), is_open=True))
        for path, file in options.files.items():  # ahead of the folder they may be in
            routes.append(self._route(path, of_page(file)))
        for path, folder in options.folders.items():
            routes += [Route(path, _slashed), Mount(path, StaticFolder(directory=folder, html=True))]
        cors = Middleware(
            CORSMiddleware,
            allow_origins=options.cors,
            allow_methods=("GET", "POST"),
            allow_headers=("authorization", "content-type", LENGTH, "request-timeout", *TRACE),
            expose_headers=(LENGTH, "retry-after"),
        )
        middleware = [cors] if options.cors else []
        app = Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: no_route})
        app.router.redirect_slashes = False  # it would trust the Host header
        return app

    async def infer(self, http: HttpRequest, caller: str) -> Response:
        started = time.monotonic()
        headers, json_length = http.headers, http.headers.get(LENGTH)
        content_type = headers.get("content-type")
        if content_type is not None and content_type.partition(";")[0].strip().lower() not in (JSON, BINARY):
            raise HttpError(415, f"content-type: expected {JSON} or {BINARY}, got {content_type[:64]!r}")
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise HttpError(415, "content-encoding: expected none, got a compressed body (send it as it is)")
        timeout_s = _timeout(headers.get("request-timeout"))
        most = self.limits.max_json_bytes if json_length is None else self.options.max_message_bytes
        async with self.bodies.body(http.receive, headers, most) as body:
            params = http.path_params
            request, formats = read_request(
                body, json_length, model=params["name"], version=params.get("version", ""), limits=self.limits
            )
            request.caller = caller
            request.trace = {name: headers[name] for name in TRACE if name in headers}
            timeouts = [timeout for timeout in (request.remaining_s, timeout_s) if timeout is not None]
            if timeouts:
                request.remaining_s = max(0.0, min(timeouts) - (time.monotonic() - started))
            answer = await self._infer(request, http.scope["state"][PEER])
        content, length = write_answer(answer, formats)
        self.options.sent(len(content))
        return response(content, {} if length is None else {"content-type": BINARY, LENGTH: str(length)})

    async def _infer(self, request: Request, peer: ConnectionPeer) -> Answer:
        """The core's answer, unless the request's time is over, or its caller gone, before it is ready."""
        peer.task = asyncio.current_task()
        try:
            async with asyncio.timeout(request.remaining_s):
                return await self.core.infer(request)
        except TimeoutError:
            raise TierTimeout(request.model[:64], "the request's time is over") from None
        finally:
            peer.task = None

    async def live(self, http: HttpRequest, caller: str) -> Response:
        return of_json({"live": True})

    async def ready(self, http: HttpRequest, caller: str) -> Response:
        is_ready = self.core.is_ready()
        return of_json({"ready": is_ready}, 200 if is_ready else 503)

    async def model_ready(self, http: HttpRequest, caller: str) -> Response:
        served = self.core.find(http.path_params["name"], http.path_params.get("version", ""))
        is_ready = self.core.is_ready(served.name)
        return of_json({"name": served.name, "ready": is_ready}, 200 if is_ready else 503)

    async def server_metadata(self, http: HttpRequest, caller: str) -> Response:
        extensions = EXTENSIONS if self.options.repository else EXTENSIONS[1:]
        return of_json({"name": "coe-cloud", "version": __version__, "extensions": list(extensions)})

    async def model_metadata(self, http: HttpRequest, caller: str) -> Response:
        return of_json(metadata(self.core.find(http.path_params["name"], http.path_params.get("version", ""))))

    async def repository_index(self, http: HttpRequest, caller: str) -> Response:
        repository, message = await self._repository(http)
        is_all, keys = message.get("ready") is not True, ("name", "version", "state", "reason")
        models = [model for model in repository.index() if is_all or model.state == "READY"]
        return of_json([{key: getattr(model, key) for key in keys} for model in models])

    async def repository_load(self, http: HttpRequest, caller: str) -> Response:
        repository, _ = await self._repository(http)
        await repository.load(http.path_params["name"])
        return of_json({})

    async def repository_unload(self, http: HttpRequest, caller: str) -> Response:
        repository, _ = await self._repository(http)
        await repository.unload(http.path_params["name"])
        return of_json({})

    async def _repository(self, http: HttpRequest) -> tuple[RepositoryExtension, dict[str, Any]]:
        """The extension, and what the request's body asks of it."""
        if self.options.repository is None:
            raise NotOffered("the model repository extension is not offered by this server")
        async with self.bodies.body(http.receive, http.headers, SMALL_BODY) as body:
            return self.options.repository, parse(body) if body.strip() else {}

    def _route(
        self, path: str, method: Method, verb: str = "GET", *, is_open: bool = False, is_page: bool = False
    ) -> Route:
        """A route whose endpoint finds out who calls, and turns every error into a status, by the one table."""

        async def endpoint(http: HttpRequest) -> Response:
            try:
                if verb == "POST":
                    self._check_origin(http)
                caller = "" if is_open or self.options.identify is None else self._caller(http, is_page)
                return await method(http, caller)
            except asyncio.CancelledError:  # the caller is gone, or the server's grace is over
                return refusal(TierUnavailable("http", "the server stops"))
            except Exception as error:  # noqa: BLE001 - the boundary
                refused = refusal(error)
                if is_page and isinstance(error, Unauthenticated):
                    refused.headers.append("www-authenticate", ASK_PASSWORD)
                return refused

        return Route(path, endpoint, methods=[verb])

    def _caller(self, http: HttpRequest, is_page: bool) -> str:
        assert self.options.identify is not None
        header = one_header(http.headers.getlist("authorization"))
        token = bearer(header)
        if token is None and header is not None and is_page:
            token = _password(header)
        peer: ConnectionPeer = http.scope["state"][PEER]
        return self.options.identify(peer.names, token)

    def _check_origin(self, http: HttpRequest) -> None:
        """A page of another site may make a browser send a POST, though it cannot read the answer."""
        origin = http.headers.get("origin")
        if origin is None or origin in self.options.cors or "*" in self.options.cors:
            return
        try:
            host = urlsplit(origin).netloc
        except ValueError:
            host = ""
        if not host or host != http.headers.get("host"):
            raise HttpError(403, f"origin {origin[:64]!r} is not allowed (set `server.cors`)")


async def _slashed(http: HttpRequest) -> Response:
    """A redirect to the folder's path with a slash, so that its pages' relative links are found below it."""
    return RedirectResponse(f"{http.url.path}/", headers=SAFE)


def _timeout(header: str | None) -> float | None:
    """The header's seconds."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise HttpError(400, f"request-timeout: expected seconds, over 0, got {header[:64]!r}")
    return seconds


def _password(header: str) -> str | None:
    kind, _, encoded = header.partition(" ")
    if kind.lower() != "basic":
        return None
    try:
        return base64.b64decode(encoded, validate=True).decode().partition(":")[2]
    except (binascii.Error, ValueError):
        return None
