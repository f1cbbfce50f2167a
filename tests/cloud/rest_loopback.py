"""A real REST server on a free port, over table members; and a plain client of it."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from loopback import served
from loops import Loop
from strategies import one_hot, table_tier

from cloud.transports.rest_server import RestOptions, RestServer
from coe.cascade import Always, Cascade
from coe.cascade.types import Array
from coe.protocol.codec import DATATYPES, encode
from coe.protocol.core import InferenceCore

LENGTH = "Inference-Header-Content-Length"


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body, parse_constant=lambda text: f"not JSON: {text}")

    @property
    def error(self) -> str:
        message = self.json
        assert list(message) == ["error"], message
        return str(message["error"])

    def outputs(self) -> dict[str, Array]:
        """Every output, whichever form it came in; null is NaN."""
        length = self.headers.get(LENGTH.lower())
        at = len(self.body) if length is None else int(length)
        message = json.loads(self.body[:at])
        arrays = {}
        for output in message["outputs"]:
            dtype, size = DATATYPES[output["datatype"]], output.get("parameters", {}).get("binary_data_size")
            if size is None:
                array = np.array(output["data"], dtype)
            else:
                raw = self.body[at : at + size]
                array = _unpacked(raw) if dtype.hasobject else np.frombuffer(raw, dtype)
                at += size
            arrays[output["name"]] = array.reshape(output["shape"])
        assert at == len(self.body)
        return arrays


def _unpacked(raw: bytes) -> Array:
    elements, at = [], 0
    while at < len(raw):
        size = int.from_bytes(raw[at : at + 4], "little")
        elements.append(raw[at + 4 : at + 4 + size])
        at += 4 + size
    return np.array([*elements, None], dtype=object)[:-1]


class Client:
    """Calls the server at `port`, on a connection for each call."""

    def __init__(
        self, port: int, server: RestServer, core: InferenceCore, loop: Loop, tls: ssl.SSLContext | None = None
    ) -> None:
        self.port, self.server, self.core, self.loop, self.tls = port, server, core, loop, tls

    def connect(self) -> http.client.HTTPConnection:
        if self.tls is not None:
            return http.client.HTTPSConnection("localhost", self.port, timeout=10, context=self.tls)
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)

    def ask(self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Reply:
        connection = self.connect()
        try:
            connection.request(method, path, body, dict(headers or {}))
            return reply_of(connection)
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Reply:
        return self.ask("GET", path, headers=headers)

    def post(
        self, path: str, message: Any, tail: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """`message` as JSON, followed by `tail` as binary data."""
        head = message if isinstance(message, bytes) else json.dumps(message).encode()
        own = {"Content-Type": "application/json"}
        if tail is not None:
            own = {"Content-Type": "application/octet-stream", LENGTH: str(len(head))}
        return self.ask("POST", path, head + (tail or b""), own | dict(headers or {}))

    def infer(self, message: Any, tail: bytes | None = None, *, model: str = "table", **headers: str) -> Reply:
        return self.post(f"/v2/models/{model}/infer", message, tail, headers)

    def raw(self, sent: bytes, *, then_close: bool = False) -> bytes:
        """What comes back for bytes as they are, until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as wire:
            wire.sendall(sent)
            if then_close:
                wire.shutdown(socket.SHUT_WR)
            parts = []
            with suppress(ConnectionResetError):
                while part := wire.recv(65536):
                    parts.append(part)
        return b"".join(parts)


def reply_of(connection: http.client.HTTPConnection) -> Reply:
    response = connection.getresponse()
    headers = {name.lower(): ", ".join(response.headers.get_all(name, ())) for name in response.headers}
    return Reply(response.status, headers, response.read())


def table_core(n_rows: int = 4, **settings: Any) -> InferenceCore:
    """One model "table" of two tiers over row numbers; even rows leave at tier 1, odd ones at tier 2."""
    even = [0 if row % 2 == 0 else 1 for row in range(n_rows)]
    disagree = [one_hot([row % 3 for row in range(n_rows)]), one_hot([(row + odd) % 3 for row, odd in enumerate(even)])]
    last = table_tier([one_hot([2 - row % 3 for row in range(n_rows)])], Always(), "best")
    cascade = Cascade([table_tier(disagree, Fraction(1), "medium"), last])
    core = InferenceCore({"table": served("table", cascade, 3)}, **settings)
    core.accepts = True
    return core


@contextmanager
def open_rest(
    core: InferenceCore,
    *,
    host: str = "127.0.0.1",
    tls: ssl.SSLContext | None = None,
    client_tls: ssl.SSLContext | None = None,
    make_loop: Callable[[], Loop] = Loop,
    **settings: Any,
) -> Iterator[Client]:
    loop = make_loop()
    try:
        server = RestServer(core, RestOptions(**settings))
        port = server.bind(host, 0, tls)
        loop.run(server.start())
        try:
            yield Client(port, server, core, loop, client_tls)
        finally:
            loop.run(server.stop(0.2))
    finally:
        loop.close()


def rows_message(*rows: int, **fields: Any) -> dict[str, Any]:
    """A question about table rows, in JSON."""
    tensor = {"name": "input", "datatype": "INT64", "shape": [len(rows), 1], "data": list(rows)}
    return {"inputs": [tensor], **fields}


def binary_message(array: Array, **fields: Any) -> tuple[dict[str, Any], bytes]:
    """A question about one tensor, in binary."""
    tensor, raw = encode("input", array)
    told = {
        "name": "input",
        "datatype": tensor.datatype,
        "shape": list(tensor.shape),
        "parameters": {"binary_data_size": len(raw)},
    }
    return {"inputs": [told], **fields}, raw
