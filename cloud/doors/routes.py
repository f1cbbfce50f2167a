"""The REST protocol's routes: who may ask, what is asked, and the answer. Below them is the plane alone."""

from __future__ import annotations

import asyncio
import base64
import binascii
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request as HttpRequest
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from cloud.security.identity import bearer
from coe import __version__
from coe.cascade.errors import TierTimeout, TierUnavailable, Unauthenticated
from coe.wire.plane import Answer, Plane, Request
from coe.wire.servicer import EXTENSIONS, NotOffered, Repository
from coe.wire.trace import HEADERS as TRACE

from .http_errors import HttpError
from .http_server import PEER, Peer
from .intake import Intake
from .messages import LENGTH, Limits, metadata, parse, read_request, write_answer
from .responses import BINARY, JSON, SAFE, Folder, Page, no_route, of_json, of_page, refusal, response

Identify = Callable[[Sequence[str], str | None], str]
Method = Callable[[HttpRequest, str], Awaitable[Response]]

ASK_PASSWORD = 'Basic realm="coe-cloud", charset="UTF-8"'  # a browser asks for it; the token is the password
SMALL_BODY = 64 * 1024


class Routes:
    """What the door answers.

    Args:
        identify: who calls, by the names in its certificate and its token; None: nobody is asked.
        repository: answers the model repository extension; None: it is not offered.
        max_message_bytes: most bytes of one body; limits: of what is in it.
    """

    def __init__(
        self,
        plane: Plane,
        intake: Intake,
        limits: Limits,
        *,
        max_message_bytes: int,
        identify: Identify | None = None,
        repository: Repository | None = None,
        origins: Sequence[str] = (),
        sent: Callable[[int], None] = lambda n_bytes: None,
    ) -> None:
        self.plane = plane
        self.sent = sent
        self.intake = intake
        self.limits = limits
        self.max_message_bytes = max_message_bytes
        self.identify = identify
        self.repository = repository
        self.origins = tuple(origins)

    def app(
        self,
        pages: Mapping[str, Page],
        folders: Mapping[str, Any],
        handouts: Mapping[str, Page],
        *,
        watch_needs_identity: bool,
    ) -> Starlette:
        """The ASGI application; pages, folders and handouts by path, beside the protocol."""
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
        for path, page in pages.items():
            routes.append(self._route(path, of_page(page), is_open=not watch_needs_identity, is_page=True))
        for path, handout in handouts.items():  # ahead of the folder they may be in
            routes.append(self._route(path, of_page(handout)))
        for path, folder in folders.items():
            routes += [Route(path, _slashed), Mount(path, Folder(directory=folder, html=True))]
        cors = Middleware(
            CORSMiddleware,
            allow_origins=self.origins,
            allow_methods=("GET", "POST"),
            allow_headers=("authorization", "content-type", LENGTH, "request-timeout", *TRACE),
            expose_headers=(LENGTH, "retry-after"),
        )
        app = Starlette(
            routes=routes, middleware=[cors] if self.origins else [], exception_handlers={HTTPException: no_route}
        )
        app.router.redirect_slashes = False  # it would believe the Host header
        return app

    async def infer(self, http: HttpRequest, caller: str) -> Response:
        started = time.monotonic()
        headers, told_length = http.headers, http.headers.get(LENGTH)
        content_type = headers.get("content-type")
        if content_type is not None and content_type.partition(";")[0].strip().lower() not in (JSON, BINARY):
            raise HttpError(415, f"content-type: expected {JSON} or {BINARY}, got {content_type[:64]!r}")
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise HttpError(415, "content-encoding: expected none, got a compressed body (send it as it is)")
        timeout_s = _timeout(headers.get("request-timeout"))
        most = self.limits.max_json_bytes if told_length is None else self.max_message_bytes
        async with self.intake.body(http.receive, headers, min(most, self.max_message_bytes)) as body:
            params = http.path_params
            request, asked = read_request(
                body, told_length, model=params["name"], version=params.get("version", ""), limits=self.limits
            )
            request.caller = caller
            request.trace = {name: headers[name] for name in TRACE if name in headers}
            request.remaining_s = _remaining(request.remaining_s, timeout_s, started)
            answer = await self._asked(request, http.scope["state"][PEER])
        content, length = write_answer(answer, asked)
        self.sent(len(content))
        if length is None:
            return response(content)
        return response(content, {"content-type": BINARY, LENGTH: str(length)})

    async def _asked(self, request: Request, peer: Peer) -> Answer:
        """The plane's answer, unless the request's time is over, or its caller gone, before it comes."""
        peer.task = asyncio.current_task()
        try:
            async with asyncio.timeout(request.remaining_s):
                return await self.plane.infer(request)
        except TimeoutError:
            raise TierTimeout(request.model[:64], "the request's time is over") from None
        finally:
            peer.task = None

    async def live(self, http: HttpRequest, caller: str) -> Response:
        return of_json({"live": True})

    async def ready(self, http: HttpRequest, caller: str) -> Response:
        is_ready = self.plane.is_ready()
        return of_json({"ready": is_ready}, 200 if is_ready else 503)

    async def model_ready(self, http: HttpRequest, caller: str) -> Response:
        served = self.plane.find(http.path_params["name"], http.path_params.get("version", ""))
        is_ready = self.plane.is_ready(served.name)
        return of_json({"name": served.name, "ready": is_ready}, 200 if is_ready else 503)

    async def server_metadata(self, http: HttpRequest, caller: str) -> Response:
        extensions = EXTENSIONS if self.repository else EXTENSIONS[1:]
        return of_json({"name": "coe-cloud", "version": __version__, "extensions": list(extensions)})

    async def model_metadata(self, http: HttpRequest, caller: str) -> Response:
        return of_json(metadata(self.plane.find(http.path_params["name"], http.path_params.get("version", ""))))

    async def repository_index(self, http: HttpRequest, caller: str) -> Response:
        repository, asked = self._repository(), await self._small_body(http)
        models = [
            {"name": model.name, "version": model.version, "state": model.state, "reason": model.reason}
            for model in repository.index()
            if model.state == "READY" or asked.get("ready") is not True
        ]
        return of_json(models)

    async def repository_load(self, http: HttpRequest, caller: str) -> Response:
        repository, _ = self._repository(), await self._small_body(http)
        await repository.load(http.path_params["name"])
        return of_json({})

    async def repository_unload(self, http: HttpRequest, caller: str) -> Response:
        repository, _ = self._repository(), await self._small_body(http)
        await repository.unload(http.path_params["name"])
        return of_json({})

    def _repository(self) -> Repository:
        if self.repository is None:
            raise NotOffered("the model repository extension is not offered by this server")
        return self.repository

    async def _small_body(self, http: HttpRequest) -> dict[str, Any]:
        async with self.intake.body(http.receive, http.headers, SMALL_BODY) as body:
            return parse(body) if body.strip() else {}

    def _route(
        self, path: str, method: Method, verb: str = "GET", *, is_open: bool = False, is_page: bool = False
    ) -> Route:
        """The boundary: who calls is found out here, and any error leaves as a status, by the one table."""

        async def endpoint(http: HttpRequest) -> Response:
            try:
                if verb == "POST":
                    self._check_origin(http)
                caller = "" if is_open or self.identify is None else self._caller(http, is_page)
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
        assert self.identify is not None
        shown = http.headers.getlist("authorization")
        if len(shown) > 1:
            raise Unauthenticated(f"expected one `authorization`, got {len(shown)}")
        token = bearer(shown[0]) if shown else None
        if token is None and shown and is_page:
            token = _password(shown[0])
        peer: Peer = http.scope["state"][PEER]
        return self.identify(peer.names, token)

    def _check_origin(self, http: HttpRequest) -> None:
        """A page of another site may make a browser send a POST, though it cannot read the answer."""
        origin = http.headers.get("origin")
        if origin is None or origin in self.origins or "*" in self.origins:
            return
        try:
            host = urlsplit(origin).netloc
        except ValueError:
            host = ""
        if not host or host != http.headers.get("host"):
            raise HttpError(403, f"origin {origin[:64]!r} is not allowed (set `server.cors`)")


async def _slashed(http: HttpRequest) -> Response:
    """A folder's own path, so that what its pages name is found below it."""
    return RedirectResponse(f"{http.url.path}/", headers=SAFE)


def _timeout(header: str | None) -> float | None:
    """Seconds."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise HttpError(400, f"request-timeout: expected seconds, over 0, got {header[:64]!r}")
    return seconds


def _remaining(first: float | None, second: float | None, started: float) -> float | None:
    """Of the shorter one, what is left."""
    given = [timeout for timeout in (first, second) if timeout is not None]
    return max(0.0, min(given) - (time.monotonic() - started)) if given else None


def _password(header: str) -> str | None:
    kind, _, encoded = header.partition(" ")
    if kind.lower() != "basic":
        return None
    try:
        return base64.b64decode(encoded, validate=True).decode().partition(":")[2]
    except (binascii.Error, ValueError):
        return None
