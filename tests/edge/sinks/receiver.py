"""A real HTTP server that takes webhooks, or refuses, hangs, or goes away, as a test says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Told = tuple[int, dict[str, str], bytes]  # status, headers, body
FINE: Told = (204, {}, b"")


class Receiver:
    """Listens on loopback in a `with` block; `answer` says what each request is told."""

    def __init__(self, port: int = 0) -> None:
        self.requests: list[tuple[Mapping[str, str], Any]] = []
        self.answer: Callable[[int], Told] = lambda number: FINE  # by how many came before
        self.gate = threading.Event()
        self.gate.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                number = len(receiver.requests)
                receiver.requests.append((dict(self.headers), json.loads(content)))
                receiver.gate.wait(20)
                status, headers, body = receiver.answer(number)
                if status == 0:  # not a word
                    self.close_connection = True
                    return
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self) -> None:
                receiver.requests.append((dict(self.headers), "GET"))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass  # a client that gave up

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/decisions"

    @property
    def bodies(self) -> list[Any]:
        return [body for _, body in self.requests]

    def __enter__(self) -> Receiver:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
