"""uvicorn with limits on connections, request heads and bodies, in an event loop that others use too.

Beyond what uvicorn does, a connection is closed when its headers do not arrive in time or are too large, or when it
goes on sending after it was refused; and the application gets to know who is at its other end.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cloud.security.identity import peer_names
from coe.cascade.errors import ConfigError, TierOverloaded

from .rest_messages import HttpError
from .rest_server import RestOptions

Receive = Callable[[], Awaitable[Any]]
BODY_RETRY_S = 1.0


class BodyReader:
    """Reads bodies within limits of time and memory.

    Args:
        max_held_bytes: of all bodies read or being read whose requests are not answered yet.
        body_s: longest that a body may take to arrive.
    """

    def __init__(self, max_held_bytes: int, body_s: float) -> None:
        self.max_held_bytes = max_held_bytes
        self.body_s = body_s
        self.n_held_bytes = 0

    @asynccontextmanager
    async def body(self, receive: Receive, headers: Mapping[str, str], most: int) -> AsyncIterator[bytes]:
        """The body, counted as held while the block runs.

        Raises:
            HttpError: it is larger than `most`, or did not arrive in time, or not in full.
            TierOverloaded: bodies hold too much memory already.
        """
        declared = headers.get("content-length")
        if declared is not None and int(declared) > most:  # digits: the HTTP parser has checked that
            raise _too_large(most, declared)
        held = 0
        parts: list[bytes] = []
        try:
            try:
                async with asyncio.timeout(self.body_s):
                    more = True
                    while more:
                        message = await receive()
                        if message["type"] == "http.disconnect":
                            raise HttpError(400, "body: expected as many bytes as its Content-Length says, got fewer")
                        part, more = message.get("body", b""), message.get("more_body", False)
                        held += len(part)
                        self.n_held_bytes += len(part)
                        if held > most:
                            raise _too_large(most, "more")
                        if self.n_held_bytes > self.max_held_bytes:
                            raise TierOverloaded("http", "too many bodies at once", retry_after_s=BODY_RETRY_S)
                        parts.append(part)
            except TimeoutError:
                late = f"body: expected all of it within {self.body_s:g} s, got {held} bytes"
                raise HttpError(408, late, {"connection": "close"}) from None
            yield parts[0] if len(parts) == 1 else b"".join(parts)
        finally:
            self.n_held_bytes -= held


def _too_large(most: int, got: str) -> HttpError:
    return HttpError(413, f"body: expected at most {most} bytes, got {got} (send fewer rows in each request)")


BACKLOG = 1024
KEEP_ALIVE_S = 30
LAST_WORD_S = 1.0
MAX_HEAD_BYTES = 64 * 1024  # of a request's headers
PEER = "peer"  # where in a request's scope["state"] the ConnectionPeer is


@dataclass(eq=False, slots=True)
class ConnectionPeer:
    """The other end of a connection.

    Args:
        names: in its TLS certificate, which the handshake has verified.
        task: answers a request of its now, where that is to end when the connection does.
    """

    names: tuple[str, ...]
    task: asyncio.Task[Any] | None = None


class Connection(HttpToolsProtocol):
    """One connection: uvicorn's, with limits."""

    config: HttpServerConfig

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._limits = self.config.options
        self._due: asyncio.TimerHandle | None = None
        self._n_head_bytes = self._n_dropped = 0
        self._is_in_head = self._is_dropping = False
        self._peer = ConnectionPeer(peer_names(transport.get_extra_info("peercert") or {}))
        self.app_state = {**self.app_state, PEER: self._peer}
        if len(self.connections) > self._limits.max_connections:
            transport.abort()
            return
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_nothing()
        super().connection_lost(exc)
        if self._peer.task is not None:
            self._peer.task.cancel()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not (self._is_in_head or self._is_dropping):
            self._expect_nothing()
            return
        if self._is_in_head:
            self._n_head_bytes += len(data)
            if self._n_head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self._refuse(431, f"expected at most {MAX_HEAD_BYTES} bytes of headers, got more")
        if self._due is None:
            self._expect()

    def on_message_begin(self) -> None:
        self._is_in_head = True
        self._n_head_bytes = self._n_dropped = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self.cycle.response_complete:  # refused, and still sending: so that it can read the answer, for a while
            self._is_dropping = True
            self._n_dropped += len(body)
            if self._n_dropped > self._limits.max_message_bytes:
                self.transport.abort()
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_dropping = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "expected a request of HTTP/1.1, got something else")

    def _refuse(self, status: int, text: str) -> None:
        """Answer what never became a request, and close."""
        body = json.dumps({"error": text}).encode()
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nx-content-type-options: nosniff\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _expect(self) -> None:
        """A request's head, or the end of what is dropped, within `head_s`."""
        self._due = self.loop.call_later(self._limits.head_s, self.transport.abort)

    def _expect_nothing(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None


class HttpServerConfig(uvicorn.Config):
    """Uvicorn's settings, and a connection's limits."""

    def __init__(self, app: Any, options: RestOptions, tls: ssl.SSLContext | None) -> None:
        super().__init__(
            app,
            http=Connection,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="error",  # at a lower level, strangers could fill the log
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            reset_contextvars=True,  # else a request may begin in the trace of the one before it on its connection
            ssl_context_factory=None if tls is None else lambda *_: tls,
        )
        self.options = options


class HttpServer(uvicorn.Server):
    """Runs as a task of a shared event loop; signals are left to its owner."""

    def __init__(self, config: HttpServerConfig) -> None:
        super().__init__(config)
        self.is_up = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_up.set()

    async def abort(self) -> None:
        """After the grace: answer the requests that were cancelled, then cut off every connection that is left."""
        if tasks := set(self.server_state.tasks):
            await asyncio.wait(tasks, timeout=LAST_WORD_S)
        for connection in tuple(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen on every address `host` stands for, all on one port; port 0 takes a free one.

    Raises:
        ConfigError: there is no such address, or the port is taken.
    """
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    sockets: list[socket.socket] = []
    with contextlib.ExitStack() as opened:
        try:
            found = socket.getaddrinfo(bare or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            missing: OSError | None = None
            for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
                try:
                    one = opened.enter_context(socket.socket(family, socket.SOCK_STREAM))
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # free once its last owner has gone
                    one.bind((address[0], port, *address[2:]))
                except OSError as error:
                    if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                        raise
                    missing = error  # such as IPv6's loopback, on a machine without IPv6
                    continue
                one.listen(BACKLOG)
                one.setblocking(False)
                sockets.append(one)
                port = sockets[0].getsockname()[1]
            if not sockets and missing is not None:
                raise missing
        except OSError as error:
            what = "an address of this machine" if isinstance(error, socket.gaierror) else "a free port"
            reason = f"{host}:{port} which cannot be bound: {error.strerror} (set --http-port)"
            raise ConfigError([f"expected {what}, got {reason}"]) from None
        opened.pop_all()
    return sockets
