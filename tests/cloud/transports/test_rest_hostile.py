"""The REST server among strangers: what they may ask and send, and that it goes on after whatever they did."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rest_loopback import LENGTH, Client, Reply, binary_message, open_rest, reply_of, rows_message, table_core

from coe.cascade.errors import NotAllowed, Unauthenticated

MOST, MOST_JSON = 200_000, 20_000
INFER = "/v2/models/table/infer"


@pytest.fixture(scope="module")
def server() -> Iterator[Client]:
    core = table_core(100, max_rows=100, max_bytes=100_000)
    with open_rest(core, max_message_bytes=MOST, max_json_bytes=MOST_JSON, body_s=0.5) as client:
        yield client


@pytest.fixture(autouse=True)
def goes_on(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test the server answers as before, and holds nothing."""
    yield
    if "server" in request.fixturenames:
        client: Client = request.getfixturevalue("server")
        assert client.infer(rows_message(1)).outputs()["label"].tolist() == [1]
        assert client.server.bodies.n_held_bytes == 0


def answers(received: bytes) -> list[tuple[int, dict[str, str], bytes]]:
    """Every response in what came."""
    found = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in lines[1:])}
        size = int(headers.get("content-length", "0"))
        found.append((int(lines[0].split()[1]), headers, rest[:size]))
        received = rest[size:]
    return found


def sent(body: bytes, *headers: str, path: str = INFER) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", "Connection: close", *headers, "", ""]).encode() + body


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "multipart/form-data; x=y"])
def test_another_content_type_is_refused(server: Client, kind: str):
    reply = server.infer(rows_message(0), **{"Content-Type": kind})
    assert (reply.status, "application/json" in reply.error) == (415, True)


def test_a_content_type_may_have_a_charset_or_be_left_out(server: Client):
    assert server.infer(rows_message(0), **{"Content-Type": "Application/JSON; charset=utf-8"}).status == 200
    assert server.ask("POST", INFER, json.dumps(rows_message(0)).encode()).status == 200


def test_a_compressed_body_is_refused(server: Client):
    assert server.infer(rows_message(0), **{"Content-Encoding": "gzip"}).status == 415


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff", b"[" * 15_000, b'{"inputs": 7}', b"{}"], ids=repr)
def test_a_body_that_is_no_message_is_a_400(server: Client, body: bytes):
    reply = server.infer(body)
    assert (reply.status, "expected" in reply.error) == (400, True)


def test_more_rows_than_may_be_are_a_400(server: Client):
    reply = server.infer(rows_message(*range(101)))
    assert (reply.status, "at most 100 rows" in reply.error) == (400, True)


def test_a_shape_that_lies_is_a_400(server: Client):
    message, tail = binary_message(np.zeros((4, 1), np.int64))
    message["inputs"][0]["shape"] = [100, 10**9]
    reply = server.infer(message, tail)
    assert (reply.status, "fits in" in reply.error) == (400, True)


def test_a_body_that_says_it_is_too_large_is_refused_before_it_comes(server: Client):
    received = server.raw(sent(b"", f"Content-Length: {MOST + 1}", f"{LENGTH}: 2"))
    ((status, _, body),) = answers(received)
    assert (status, str(MOST) in json.loads(body)["error"]) == (413, True)


def test_a_client_that_waits_for_a_word_never_sends_a_body_that_is_too_large(server: Client):
    received = server.raw(sent(b"", f"Content-Length: {MOST + 1}", "Expect: 100-continue"))
    assert [status for status, _, _ in answers(received)] == [413]


def test_json_alone_has_a_limit_of_its_own(server: Client):
    reply = server.infer(b"{" + b" " * MOST_JSON + b"}")
    assert (reply.status, str(MOST_JSON) in reply.error) == (413, True)


def test_a_body_without_a_length_is_refused_as_soon_as_it_is_too_large(server: Client):
    """Endless, in chunks: what is over the limit is never kept, and the connection is not there for ever."""
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n{LENGTH}: 2\r\n\r\n"
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as wire:
        wire.sendall(head.encode() + chunk * 4)
        assert b" 413 " in wire.recv(65536)
        assert _is_cut_off(wire, chunk, 100)


def test_a_body_that_comes_too_slowly_is_given_up(server: Client):
    started = time.monotonic()
    received = server.raw(sent(b"{", "Content-Length: 100"))
    ((status, headers, body),) = answers(received)
    assert (status, headers["connection"]) == (408, "close")
    assert "0.5 s" in json.loads(body)["error"]
    assert time.monotonic() - started < 5


def test_a_body_shorter_than_it_says_is_nobodys_question(server: Client):
    assert server.raw(sent(b"{", "Content-Length: 100"), then_close=True) == b""


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: ten"],
        ["Content-Length: -1"],
        ["Content-Length: 2", "Content-Length: 3"],
        ["Content-Length: 2", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked, gzip"],
        ["No colon"],
        ["Bad\0: 1"],
    ],
    ids=str,
)
def test_headers_that_contradict_each_other_are_a_400(server: Client, lines: list[str]):
    status, headers, body = answers(server.raw(sent(b"{}", *lines)))[-1]
    assert status in (400, 408), body
    assert "error" in json.loads(body)
    assert headers["x-content-type-options"] == "nosniff"


NO_HTTP = (
    b"\r\n\r\n\r\n",
    b"GET\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01",
    b"GET /\xff HTTP/1.1\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
)


@pytest.mark.parametrize("data", NO_HTTP, ids=repr)
def test_what_is_no_http_is_a_400_or_nothing(server: Client, data: bytes):
    assert [status for status, _, _ in answers(server.raw(data, then_close=True))] in ([400], [])


def test_a_header_length_beyond_the_body_is_a_400(server: Client):
    reply = server.infer(rows_message(0), **{LENGTH: "5000"})
    assert (reply.status, LENGTH.lower() in reply.error) == (400, True)


def test_headers_without_end_are_cut_off(server: Client):
    received = server.raw(b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 400_000)
    assert [status for status, _, _ in answers(received)] in ([431], [])


@pytest.mark.parametrize("said", [b"", b"GET / HT", b"GET /v2 HTTP/1.1\r\nHost: x\r\n"])
def test_a_connection_that_says_nothing_is_closed(said: bytes):
    with open_rest(table_core(), head_s=0.2) as client:
        started = time.monotonic()
        with suppress(ConnectionResetError):
            assert client.raw(said) == b""
        assert 0.1 < time.monotonic() - started < 3


def test_who_sends_on_slowly_after_a_refusal_is_cut_off():
    with open_rest(table_core(), head_s=0.3, identify=known) as client:
        with socket.create_connection(("127.0.0.1", client.port), timeout=10) as wire:
            wire.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n".encode())
            assert b" 401 " in wire.recv(65536)
            started = time.monotonic()
            assert _is_cut_off(wire, b"x", 100, every_s=0.05)
            assert time.monotonic() - started < 3


def test_more_connections_than_may_be_are_closed():
    with open_rest(table_core(), max_connections=2) as client:
        first, second = client.connect(), client.connect()
        for connection in (first, second):
            connection.request("GET", "/v2/health/live")
            assert reply_of(connection).status == 200
        with pytest.raises(OSError):
            client.get("/v2/health/live")
        first.close()
        second.close()
        _eventually(lambda: client.get("/v2/health/live").status == 200)


def test_bodies_that_are_held_have_a_budget_together():
    """Four clients stall with most of a largest body sent; the fifth is told to come again."""
    with open_rest(table_core(), max_message_bytes=100_000) as client:
        wires = []
        for _ in range(4):
            wire = socket.create_connection(("127.0.0.1", client.port), timeout=10)
            wire.sendall(sent(b"x" * 99_000, "Content-Length: 99999", f"{LENGTH}: 2"))
            wires.append(wire)
        message, tail = binary_message(np.zeros((1000, 1), np.int64))
        _eventually(lambda: client.infer(message, tail).status == 429)
        reply = client.infer(message, tail)
        assert reply.headers["retry-after"] == "1"
        for wire in wires:
            wire.close()
        _eventually(lambda: client.infer(rows_message(0)).status == 200)
        assert client.infer(message, tail).status == 200


def test_pages_of_other_sites_cannot_post(server: Client):
    ask = rows_message(0)
    for origin in ("https://evil.example", "null", "http://[", f"http://localhost:{server.port + 1}"):
        assert server.infer(ask, Origin=origin).status == 403
    own = server.infer(ask, Origin=f"http://127.0.0.1:{server.port}")
    assert (own.status, "access-control-allow-origin" in own.headers) == (200, False)


def test_origins_that_are_allowed_may_call_from_a_browser():
    with open_rest(table_core(), cors=["https://app.example"]) as client:
        asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
        allowed = client.ask("OPTIONS", INFER, headers=asked | {"Access-Control-Request-Headers": "content-type"})
        assert (allowed.status, allowed.headers["access-control-allow-origin"]) == (200, "https://app.example")
        reply = client.infer(rows_message(0), Origin="https://app.example")
        assert (reply.status, reply.headers["access-control-allow-origin"]) == (200, "https://app.example")
        assert client.infer(rows_message(0), Origin="https://evil.example").status == 403


def known(names: Any, token: str | None) -> str:
    if token is None:
        raise Unauthenticated("expected a token, got none")
    if token != "sesame":
        raise NotAllowed("not you")
    return "pi-1"


def _page(accept: str) -> tuple[bytes, Mapping[str, str]]:
    return f"<p>{accept}".encode(), {"Content-Type": "text/html; charset=utf-8"}


BEARER = {"Authorization": "Bearer sesame"}
PASSWORD = {"Authorization": "Basic YW55Ym9keTpzZXNhbWU="}  # anybody:sesame


def test_strangers_are_told_of_health_alone():
    callers: list[str] = []

    class Notes:
        def enter(self, request: Any) -> None:
            callers.append(request.caller)

        def leave(self, request: Any) -> None: ...

    with open_rest(table_core(gates=[Notes()]), identify=known, pages={"/": _page, "/metrics": _page}) as client:
        for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/table/ready"):
            assert client.get(path).status == 200
        for path in ("/v2", "/v2/models/table", "/v2/models/none", "/", "/metrics"):
            reply = client.get(path)
            assert (reply.status, "token" in reply.error) == (401, True)
            assert reply.headers["www-authenticate"].startswith("Bearer")
            assert client.get(path, Authorization="Bearer other").status == 403
        assert client.infer(b"{" * 10_000).status == 401  # before the body is looked at
        assert client.post("/v2/repository/models/table/unload", {}).status == 401
        assert client.infer(rows_message(0), **BEARER).status == 200
        assert client.infer(rows_message(0), **PASSWORD).status == 401  # browsers send it by themselves
        assert callers == ["pi-1"]


def test_a_person_may_give_the_token_as_a_password_for_a_page():
    with open_rest(table_core(), identify=known, pages={"/": _page}) as client:
        assert "Basic" in client.get("/").headers["www-authenticate"]
        assert client.get("/", **PASSWORD).status == 200
        assert client.get("/", Authorization="Basic %%%").status == 401


def test_two_authorizations_are_one_too_many():
    with open_rest(table_core(), identify=known) as client:
        two = "Authorization: Bearer other\r\nAuthorization: Bearer sesame"
        received = client.raw(f"GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{two}\r\n\r\n".encode())
        assert [status for status, _, _ in answers(received)] == [401]


def test_pages_may_be_open_where_the_rest_is_not():
    metrics = (b"a 1\n", {"Content-Type": "text/plain"})
    pages = {"/": _page, "/metrics": lambda accept: metrics, "/status.json": lambda accept: None}
    with open_rest(table_core(), identify=known, pages=pages, pages_need_identity=False) as client:
        page = client.get("/", Accept="text/html")
        assert (page.status, page.body) == (200, b"<p>text/html")
        assert page.headers["content-security-policy"].startswith("default-src 'none'")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert client.get("/metrics").body == b"a 1\n"
        assert client.get("/status.json").status == 404
        assert client.get("/v2").status == 401


def test_a_page_s_own_policy_stands():
    page = (b"<p>", {"Content-Security-Policy": "default-src 'self'"})
    with open_rest(table_core(), pages={"/": lambda accept: page}) as client:
        assert client.get("/").headers["content-security-policy"] == "default-src 'self'"


def test_a_folder_of_static_files_is_served_and_nothing_beside_it(tmp_path: Path):
    (tmp_path / "secret.txt").write_text("secret")
    folder = tmp_path / "device"
    folder.mkdir()
    (folder / "index.html").write_text("<p>hello")
    (folder / "app.js").write_text("1")
    with open_rest(table_core(), folders={"/device": folder}) as client:
        assert client.get("/device/").body == b"<p>hello"
        assert client.get("/device").headers["location"] == "/device/"
        script = client.get("/device/app.js")
        assert (script.status, script.headers["x-content-type-options"]) == (200, "nosniff")
        assert "wasm-unsafe-eval" in script.headers["content-security-policy"]
        for path in ("/device/../secret.txt", "/device/%2e%2e/secret.txt", "/device//etc/passwd", "/device/none"):
            assert client.get(path).status == 404


def test_every_answer_says_that_it_is_what_it_says(server: Client):
    replies: list[Reply] = [server.get("/v2"), server.get("/none"), server.infer(b"{"), server.infer(rows_message(0))]
    assert {reply.headers["x-content-type-options"] for reply in replies} == {"nosniff"}
    assert not any("server" in reply.headers or "access-control-allow-origin" in reply.headers for reply in replies)


def _is_cut_off(wire: socket.socket, part: bytes, times: int, every_s: float = 0.0) -> bool:
    """Whether the other end closes while `part` is sent over and over."""
    try:
        for _ in range(times):
            wire.sendall(part)
            time.sleep(every_s)
    except (BrokenPipeError, ConnectionResetError):
        return True
    return False


def _eventually(holds: Any) -> None:
    until = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < until, "it did not come to hold"
        time.sleep(0.02)
