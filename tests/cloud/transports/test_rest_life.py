"""The REST server's life: it binds, starts beside others in one loop, drains, stops; and what it knows of who calls."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from loops import Loop
from pki import Pki
from rest_loopback import Client, open_rest, rows_message, table_core

from cloud.security.config import Security
from cloud.security.tls import http_context
from cloud.transports.rest_server import RestOptions, RestServer
from coe.cascade.errors import ConfigError, NotAllowed, RuntimeMissing
from coe.protocol.core import InferenceCore


class Slow:
    """A core whose model answers after `seconds`; what was asked of it, and what was given up."""

    def __init__(self, seconds: float) -> None:
        self.asked, self.given_up = threading.Event(), threading.Event()
        model = table_core().models["table"]

        async def decide(batch: Any) -> Any:
            self.asked.set()
            try:
                await asyncio.sleep(seconds)
            except asyncio.CancelledError:
                await asyncio.sleep(0.1)  # it has to put things in order
                self.given_up.set()
                raise
            return await model.decide(batch)

        self.core = InferenceCore({"table": replace(model, decide=decide)})
        self.core.accepts = True


def closed(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_taken_port_is_said_to_be_the_settings_fault():
    with open_rest(table_core()) as client, pytest.raises(ConfigError, match=f":{client.port} .*--http-port"):
        RestServer(table_core(), RestOptions()).bind("127.0.0.1", client.port)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
def test_an_address_of_another_machine_is_said_to_be_the_settings_fault(host: str):
    with pytest.raises(ConfigError, match="--http-port"):
        RestServer(table_core(), RestOptions()).bind(host, 0)


@pytest.mark.parametrize("host", ["localhost", "0.0.0.0"])
def test_a_name_or_any_address_may_be_listened_on(host: str):
    with open_rest(table_core(), host=host) as client:
        assert client.get("/v2/health/live").status == 200


def test_without_its_packages_the_mend_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(RuntimeMissing, match=r"pip install 'coe-cascade\[cloud\]'"):
        RestServer(table_core(), RestOptions())


def test_signals_stay_the_owner_s():
    async def run() -> list[Any]:
        server = RestServer(table_core(), RestOptions())
        server.bind("127.0.0.1", 0)
        await server.start()
        during = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        await server.stop(0)
        return during

    expected = [signal.default_int_handler, signal.getsignal(signal.SIGTERM)]
    with asyncio.Runner() as runner:
        assert runner.run(_without_sigint(run())) == expected


async def _without_sigint(work: Any) -> Any:
    """The runner has a SIGINT handler of its own."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return await work


def test_stopping_lets_those_under_way_finish():
    slow = Slow(0.5)
    with open_rest(slow.core) as client, ThreadPoolExecutor() as pool:
        reply = pool.submit(client.infer, rows_message(1))
        assert slow.asked.wait(5)
        stopped = pool.submit(client.loop.run, client.server.stop(5))
        while not closed(client.port):
            time.sleep(0.01)
        assert not reply.done(), "it was refused before those under way had finished"
        assert reply.result(5).status == 200
        stopped.result(5)


def test_stopping_cuts_off_those_that_take_longer_than_its_grace():
    slow = Slow(60)
    with open_rest(slow.core) as client, ThreadPoolExecutor() as pool:
        reply = pool.submit(client.infer, rows_message(1))
        assert slow.asked.wait(5)
        started = time.monotonic()
        client.loop.run(client.server.stop(0.2))
        assert time.monotonic() - started < 3
        assert (reply.result(5).status, slow.given_up.is_set()) == (503, True)


def test_stopping_does_not_wait_for_idle_connections():
    with open_rest(table_core()) as client:
        idle, silent = client.connect(), socket.create_connection(("127.0.0.1", client.port))
        idle.request("GET", "/v2/health/live")
        assert idle.getresponse().read()
        started = time.monotonic()
        client.loop.run(client.server.stop(30))
        assert time.monotonic() - started < 3
        idle.close()
        silent.close()


def test_stopping_twice_and_without_a_start_is_fine():
    async def run() -> int:
        server = RestServer(table_core(), RestOptions())
        port = server.bind("127.0.0.1", 0)
        await server.stop(1)
        await server.stop(1)
        return port

    assert closed(asyncio.run(run()))


def test_who_hangs_up_is_not_computed_for():
    slow = Slow(60)
    with open_rest(slow.core) as client:
        connection = client.connect()
        connection.request("POST", "/v2/models/table/infer", json.dumps(rows_message(0)).encode())
        assert slow.asked.wait(5)
        connection.close()
        assert slow.given_up.wait(5)
        assert client.get("/v2/health/ready").status == 200


def test_a_request_knows_nothing_of_the_one_before_it_on_its_connection():
    """What a gate notes in the context, such as a trace, ends with the request, though the next one waits already."""
    note: ContextVar[str] = ContextVar("note", default="")
    found: list[tuple[str, dict[str, str]]] = []

    class Notes:
        def enter(self, request: Any) -> None:
            found.append((note.get(), dict(request.trace)))
            note.set("the first's")

        def leave(self, request: Any) -> None: ...

    trace = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "vendor=1"}
    body = json.dumps(rows_message(0)).encode()
    both = b""
    for headers in (trace, {"Connection": "close"}):
        lines = [f"{name}: {value}" for name, value in {"Host": "x", "Content-Length": len(body), **headers}.items()]
        both += "\r\n".join(["POST /v2/models/table/infer HTTP/1.1", *lines, "", ""]).encode() + body
    with open_rest(table_core(gates=[Notes()])) as client:
        assert client.raw(both).count(b"HTTP/1.1 200 OK") == 2
    assert found == [("", trace), ("", {})]


class UvLoop(Loop):
    """The same on uvloop."""

    def __init__(self) -> None:
        uvloop = pytest.importorskip("uvloop")
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="test-loop", daemon=True)
        self._thread.start()


@pytest.mark.parametrize("make_loop", [Loop, UvLoop])
def test_a_device_is_known_by_its_certificate(tmp_path: Path, make_loop: Callable[[], Loop]):
    pki = Pki(tmp_path)
    pki.device("pi-1")
    seen: list[tuple[tuple[str, ...], str | None]] = []

    def identify(names: Sequence[str], token: str | None) -> str:
        seen.append((tuple(names), token))
        if "pi-1" not in names:
            raise NotAllowed("not you")
        return names[0]

    tls = http_context(Security(pki["server.pem"], pki["server.key"], pki["ca.pem"]))
    shown = ssl.create_default_context(cafile=pki["ca.pem"])
    shown.load_cert_chain(pki["pi-1.pem"], pki["pi-1.key"])
    settings: dict[str, Any] = {"tls": tls, "client_tls": shown, "make_loop": make_loop, "identify": identify}
    with open_rest(table_core(), **settings) as client:
        assert client.infer(rows_message(0)).status == 200
        assert client.get("/v2", Authorization="bearer sesame").status == 200
        assert seen == [(("pi-1",), None), (("pi-1",), "sesame")]
        stranger = Client(
            client.port, client.server, client.core, client.loop, ssl.create_default_context(cafile=pki["ca.pem"])
        )
        with pytest.raises(OSError, match=r"certificate required|EOF|reset|closed"):
            stranger.get("/v2/health/live")


def test_without_tls_nobody_has_a_name():
    seen: list[Sequence[str]] = []
    with open_rest(table_core(), identify=lambda names, token: str(seen.append(names))) as client:
        assert client.get("/v2").status == 200
    assert seen == [()]
