"""The REST server, in the gRPC server's event loop: the protocol for HTTP clients, and the pages for browsers.

Starlette and uvicorn are imported when a server is made, not before.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coe.models.loading import import_runtime
from coe.protocol.core import InferenceCore
from coe.protocol.service import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    import socket

    from coe.protocol.servicer import RepositoryExtension

    from .http_server import HttpServer


# A page, from the Accept header: body and headers; None: there is none.
Page = Callable[[str], tuple[bytes, Mapping[str, str]] | None]
Identify = Callable[[Sequence[str], str | None], str]

MAX_HELD = 4  # bodies of the largest size in memory at once


@dataclass(frozen=True, kw_only=True)
class RestOptions:
    """What the REST server offers, to whom, and its limits.

    Args:
        identify: the caller's name, from the names in its certificate and its token; raises Unauthenticated or
            NotAllowed. None: callers are anonymous. Health is open to everybody.
        repository: answers the model repository extension; None: it is not offered.
        pages: by path, such as "/", "/status.json" and "/metrics".
        folders: of static files, by path; open to everybody.
        files: by path, for known callers alone: what the pages in those folders fetch.
        open_pages: by path, for everybody.
        pages_need_identity: True if `pages` are for known callers alone.
        cors: origins whose pages may call from a browser; "*": any.
        sent: called with the bytes of each inference response.
        max_message_bytes: largest body, and the most that is read after a refusal; max_json_bytes: the most of it that
            may be JSON, whose Python objects take some twenty times as much memory.
        max_connections: open at once; further ones are closed.
        head_s, body_s: longest that a request's headers, and its body, may take to arrive.
    """

    identify: Identify | None = None
    repository: RepositoryExtension | None = None
    pages: Mapping[str, Page] = field(default_factory=dict)
    folders: Mapping[str, Path] = field(default_factory=dict)
    files: Mapping[str, Page] = field(default_factory=dict)
    open_pages: Mapping[str, Page] = field(default_factory=dict)
    pages_need_identity: bool = True
    cors: Sequence[str] = ()
    sent: Callable[[int], None] = lambda n_bytes: None
    max_message_bytes: int = MAX_MESSAGE_BYTES
    max_json_bytes: int = 16 * 2**20
    max_connections: int = 1000
    head_s: float = 10.0
    body_s: float = 60.0


class RestServer:
    """The server's HTTP side.

    Raises:
        RuntimeMissing: no starlette, uvicorn or httptools.
    """

    def __init__(self, core: InferenceCore, options: RestOptions) -> None:
        for module in ("starlette", "uvicorn", "httptools"):
            import_runtime(module, "HTTP", "pip install 'coe-cascade[cloud]'")
        from .http_server import BodyReader
        from .rest_routes import Routes

        self.bodies = BodyReader(MAX_HELD * options.max_message_bytes, options.body_s)
        self.app: Any = Routes(core, self.bodies, options).app()
        self._options = options
        self._sockets: list[socket.socket] = []
        self._tls: ssl.SSLContext | None = None
        self._server: HttpServer | None = None
        self._task: asyncio.Task[None] | None = None

    def bind(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> int:
        """The port it listens on; port 0 takes a free one.

        Raises:
            ConfigError: it is taken, or `host` is no address of this machine.
        """
        from .http_server import listen

        self._sockets = listen(host, port)
        self._tls = tls
        bound: int = self._sockets[0].getsockname()[1]
        return bound

    async def start(self) -> None:
        from .http_server import HttpServer, HttpServerConfig

        self._server = HttpServer(HttpServerConfig(self.app, self._options, self._tls))
        self._task = asyncio.create_task(self._server.serve(self._sockets), name="http")
        is_up = asyncio.create_task(self._server.is_up.wait())
        await asyncio.wait({self._task, is_up}, return_when=asyncio.FIRST_COMPLETED)
        is_up.cancel()
        if self._task.done():
            await self._task  # raises what kept it from starting

    async def stop(self, grace_s: float) -> None:
        """No new requests; those under way may finish within `grace_s`. Twice is fine."""
        server, task = self._server, self._task
        self._server = self._task = None
        for one in self._sockets if server is None else ():
            one.close()
        if server is None or task is None:
            return
        server.config.timeout_graceful_shutdown = grace_s  # type: ignore[assignment] # it takes fractions as well
        server.should_exit = True
        await asyncio.wait({task})
        await server.abort()
