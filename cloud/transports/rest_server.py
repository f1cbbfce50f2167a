"""The REST door: the protocol's twin for those who have only HTTP, and the pages for those who watch.

It runs in the server's own event loop. Starlette and uvicorn are imported when a door is made, not before.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coe.models.loading import import_runtime
from coe.protocol.core import InferenceCore
from coe.protocol.service import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    import socket

    from coe.protocol.servicer import RepositoryExtension

    from .http_server import HttpServer
    from .rest_routes import Identify, Page


MAX_JSON_BYTES = 16 * 2**20  # Python's objects take some twenty times as much as the JSON they were read from
HELD = 4  # bodies of the largest size that may be held at once
HEAD_S, BODY_S = 10.0, 60.0


class RestServer:
    """The server's HTTP side.

    Args:
        identify: who calls, by the names in its certificate and its token; raises Unauthenticated or NotAllowed.
            None: nobody is asked. Health is told to everybody.
        repository: answers the model repository extension; None: it is not offered.
        pages: by path, such as "/", "/status.json" and "/metrics"; each is called with the request's Accept header,
            and gives body and headers, or None where there is no such page.
        folders: of static files, by path; open to everybody.
        handouts: by path as well, for known callers alone: what the pages in those folders fetch.
        watch_needs_identity: whether pages are for known callers alone.
        cors: origins whose pages may call from a browser; "*": any.
        max_message_bytes: largest body; max_json_bytes: of it, the most that may be JSON.
        max_connections: open at once; further ones are closed.
        head_s, body_s: longest a request's headers, and its body, may take to come.
    Raises:
        RuntimeMissing: no starlette, uvicorn or httptools.
    """

    def __init__(
        self,
        plane: InferenceCore,
        *,
        identify: Identify | None = None,
        repository: RepositoryExtension | None = None,
        pages: Mapping[str, Page] | None = None,
        folders: Mapping[str, Path] | None = None,
        handouts: Mapping[str, Page] | None = None,
        watch_needs_identity: bool = True,
        cors: Sequence[str] = (),
        sent: Callable[[int], None] = lambda n_bytes: None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        max_json_bytes: int = MAX_JSON_BYTES,
        max_connections: int = 1000,
        head_s: float = HEAD_S,
        body_s: float = BODY_S,
    ) -> None:
        for module in ("starlette", "uvicorn", "httptools"):
            import_runtime(module, "HTTP", "pip install 'coe-cascade[cloud]'")
        from .http_server import BodyReader, ConnectionLimits
        from .rest_messages import RequestLimits
        from .rest_routes import Routes

        self.intake = BodyReader(HELD * max_message_bytes, body_s)
        routes = Routes(
            plane,
            self.intake,
            RequestLimits(plane.max_rows, plane.max_bytes, min(max_json_bytes, max_message_bytes)),
            max_message_bytes=max_message_bytes,
            identify=identify,
            repository=repository,
            origins=cors,
            sent=sent,
        )
        self.app: Any = routes.app(
            pages or {}, folders or {}, handouts or {}, watch_needs_identity=watch_needs_identity
        )
        self._limits = ConnectionLimits(max_connections, head_s=head_s, max_dropped_bytes=max_message_bytes)
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

        self._server = HttpServer(HttpServerConfig(self.app, self._limits, self._tls))
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
