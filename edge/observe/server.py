"""The HTTP server of the status page, its JSON, thumbnails and metrics; it answers GET and HEAD alone."""

from __future__ import annotations

import http.server
import json
import logging
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from coe.cascade.errors import NotUsableNow
from coe.status_page import SECURITY_HEADERS, status_page

from .config import ObserveConfig
from .metrics import CONTENT_TYPE, exposition
from .status import AgentView, status

log = logging.getLogger(__name__)

Reply = tuple[int, bytes, dict[str, str]]
SAFE = {"Cache-Control": "no-cache", **SECURITY_HEADERS}
TEXT = {"Content-Type": "text/plain; charset=utf-8", **SAFE}
LOCAL = ("127.0.0.1", "localhost", "::1")
READ_S = 10.0  # for a request's head


def page() -> tuple[bytes, dict[str, str]]:
    """The status page and its HTTP headers."""
    return status_page("coe-edge", "edge.observe", links=("metrics",), images="'self' data:")


class ObserveServer:
    """Serves on threads of its own until it is closed.

    Raises:
        ConfigError: the address is taken, or not one of this device.
    """

    def __init__(self, config: ObserveConfig, view: AgentView) -> None:
        hosts = LOCAL if config.host in LOCAL else None  # against DNS rebinding: a foreign name that resolves to here

        class Handler(http.server.BaseHTTPRequestHandler):
            server_version, sys_version = "coe-edge", ""
            protocol_version = "HTTP/1.1"
            timeout = READ_S

            def do_GET(self) -> None:
                code, body, headers = _answer(routes, self.path, self.headers.get("Host", ""), hosts)
                self.send_response(code)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815 - the library's own naming

            def log_message(self, format: str, *arguments: Any) -> None:
                log.debug(format, *arguments)

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                log.debug("a page's connection from %s ended", client_address, exc_info=True)

        if ":" in config.host:
            Server.address_family = http.server.socketserver.socket.AF_INET6  # type: ignore[attr-defined]
        try:
            self._server = Server((config.host, config.port), Handler)
        except OSError as error:
            address = f"{config.host}:{config.port}"
            raise NotUsableNow([f"watch.address: {address} cannot be used: {error.strerror}"]) from None
        routes = _Routes(view)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="coe-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Routes:
    def __init__(self, view: AgentView) -> None:
        self._view = view
        self._metrics = exposition(lambda: status(view), view.recent)

    def find(self, path: str) -> Callable[[], Reply] | None:
        if path in ("/", "/index.html"):
            return lambda: (200, *page())
        if path == "/status.json":
            return self._status
        if path == "/metrics":
            return lambda: (200, self._metrics(), {"Content-Type": CONTENT_TYPE, **SAFE})
        if path.startswith("/thumbnails/") and path.removeprefix("/thumbnails/").isdecimal():
            return lambda: self._thumbnail(int(path.removeprefix("/thumbnails/")))
        return None

    def _status(self) -> Reply:
        content = status(self._view) | {"recent": self._view.recent.newest()}
        return 200, json.dumps(content).encode(), {"Content-Type": "application/json", **SAFE}

    def _thumbnail(self, number: int) -> Reply:
        found = self._view.recent.thumbnail(number)
        if found is None:
            return 404, b"no longer here\n", TEXT
        return 200, found[0], {"Content-Type": found[1], **SAFE}


def _answer(routes: _Routes, target: str, host: str, hosts: tuple[str, ...] | None) -> Reply:
    name = urlsplit(f"//{host}").hostname or ""
    if hosts is not None and name not in hosts:
        return 403, b"the Host header does not name this device\n", TEXT
    route = routes.find(urlsplit(target).path)
    if route is None:
        return 404, b"nothing here; there are /, /status.json and /metrics\n", TEXT
    return route()
