"""Certificates for tests, made as `coe-cloud certs` makes them, and real handshakes with them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc

from cloud.security import authority

ECHO = "/test.Echo/Echo"


class Pki:
    """A CA in a folder, with what it signs beside it; `ca.pem`, `server.pem`, `NAME.pem` and their keys."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.authority = authority.make_authority("test CA")
        self.authority.write(folder, "ca", force=True)
        self.server()

    def __getitem__(self, name: str) -> Path:
        return self.folder / name

    def bytes(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def server(self, *hosts: str, days: int = 365, made_days_ago: int = 0, name: str = "server") -> int:
        """A new server certificate in place of the one before; its serial number."""
        pair = authority.make_server(self.authority, hosts or ["localhost", "127.0.0.1"], days, _ago(made_days_ago))
        pair.write(self.folder, name, force=True)
        return pair.certificate.serial_number

    def device(self, name: str, days: int = 365, made_days_ago: int = 0) -> None:
        authority.make_device(self.authority, name, days, _ago(made_days_ago)).write(self.folder, name, force=True)

    def credentials(self, device: str | None = None) -> grpc.ChannelCredentials:
        """Of a client that believes this CA and shows a device's certificate."""
        key, certificate = (
            (None, None) if device is None else (self.bytes(f"{device}.key"), self.bytes(f"{device}.pem"))
        )
        return grpc.ssl_channel_credentials(self.bytes("ca.pem"), key, certificate)


def _ago(days: int) -> datetime:
    return datetime.now(UTC) - timedelta(days=days)


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def echoing(
    credentials: grpc.ServerCredentials | None, identify: Callable[[Any], object] = lambda context: ""
) -> Iterator[str]:
    """A real grpc.aio server: it answers with what `identify` makes of a call. The address "localhost:port"."""
    started: list[int] = []
    ready = threading.Event()
    ended: list[Callable[[], object]] = []

    class Echo(grpc.GenericRpcHandler):
        def service(self, call: Any) -> Any:
            async def answer(request: bytes, context: Any) -> bytes:
                return str(identify(context)).encode()

            return grpc.unary_unary_rpc_method_handler(answer)

    async def serve() -> None:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((Echo(),))
        address = "127.0.0.1:0"
        if credentials is None:
            started.append(server.add_insecure_port(address))
        else:
            started.append(server.add_secure_port(address, credentials))
        await server.start()
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        ended.append(lambda: loop.call_soon_threadsafe(stop.set))
        ready.set()
        await stop.wait()
        await server.stop(0)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(10)
    try:
        yield f"localhost:{started[0]}"
    finally:
        ended[0]()
        thread.join()


def call(address: str, credentials: grpc.ChannelCredentials, metadata: Any = None) -> str:
    """One call on a connection of its own. Raises grpc.RpcError."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    with grpc.secure_channel(address, credentials, options) as channel:
        answer: bytes = channel.unary_unary(ECHO)(b"", timeout=60, metadata=metadata)
    return answer.decode()
