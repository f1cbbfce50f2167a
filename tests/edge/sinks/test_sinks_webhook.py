"""Decisions by POST to a real HTTP server: one that takes them, refuses, hangs, goes away and comes back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import until
from outcomes import LABELS, outcome, record
from receiver import FINE, Receiver

from coe.cascade import ConfigError
from edge.sinks import Sinks, open_sinks
from edge.sinks.config import SinkConfig, WebhookConfig
from edge.sinks.delivery import BufferedSink, PermanentFailure
from edge.sinks.webhook import RetryLater, WebhookTransport


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        yield server


def hook(receiver: Receiver, **options: Any) -> WebhookTransport:
    return WebhookTransport(WebhookConfig(receiver.url, is_local=True, **options))


def queued(transport: WebhookTransport, **options: Any) -> BufferedSink:
    return BufferedSink(transport, first_wait_s=0.01, **options)


def test_a_record_by_itself_is_an_object(receiver):
    sinks = open_sinks([SinkConfig("webhook", webhook=WebhookConfig(receiver.url, is_local=True))], LABELS)
    sinks.write(outcome("a"))
    sinks.close()
    ((headers, body),) = receiver.requests
    assert body == record("a")
    assert headers["Content-Type"] == "application/json"
    assert headers["User-Agent"].startswith("coe-edge/")
    assert len(headers["Idempotency-Key"]) == 32


def test_several_go_together_as_an_array(receiver):
    writer = queued(hook(receiver, batch=10, gather_s=20.0))
    for number in range(25):
        writer.write({"id": number})
    writer.close()
    assert [[told["id"] for told in body] for body in receiver.bodies] == [
        list(range(10)),
        list(range(10, 20)),
        list(range(20, 25)),
    ]


def test_headers_and_a_token_go_along_and_a_new_token_is_taken(receiver, tmp_path):
    token = tmp_path / "token"
    token.write_text("first\n")
    transport = hook(receiver, headers=(("X-Site", "roof"),), token_file=token)
    transport.send([{"id": "a"}])
    token.write_text("second\n")
    transport.send([{"id": "b"}])
    headers = [told for told, _ in receiver.requests]
    assert [told["Authorization"] for told in headers] == ["Bearer first", "Bearer second"]
    assert headers[0]["X-Site"] == "roof"
    assert headers[0]["Idempotency-Key"] != headers[1]["Idempotency-Key"]


def test_a_token_that_cannot_be_read_is_a_config_error(receiver, tmp_path):
    with pytest.raises(ConfigError, match=r"sink\.token_file: .*nothing cannot be read: No such file"):
        hook(receiver, token_file=tmp_path / "nothing")


@pytest.mark.parametrize("status", [500, 503, 429, 408, 401, 404])
def test_what_the_server_cannot_take_now_is_sent_again_with_the_same_key(receiver, status):
    receiver.answer = lambda number: (status, {}, b"") if number < 2 else FINE
    writer = queued(hook(receiver))
    writer.write({"id": "a"})
    writer.close()
    assert receiver.bodies == [{"id": "a"}] * 3
    assert len({headers["Idempotency-Key"] for headers, _ in receiver.requests}) == 1
    assert (writer.written, writer.dropped) == (1, 0)


def test_the_server_says_when_to_come_again(receiver):
    receiver.answer = lambda number: (503, {"Retry-After": "7"}, b"")
    with pytest.raises(RetryLater, match="HTTP 503") as caught:
        hook(receiver).send([{"id": "a"}])
    assert caught.value.retry_after_s == 7.0


@pytest.mark.parametrize("status", [400, 405, 413, 422])
def test_what_the_server_refuses_is_dropped_and_told(receiver, status, logged):
    receiver.answer = lambda number: (status, {}, b"no such field: id") if number == 0 else FINE
    sinks = Sinks([queued(hook(receiver))], LABELS)
    sinks.write(outcome("bad"))
    sinks.write(outcome("good"))
    sinks.close()
    assert [body["id"] for body in receiver.bodies] == ["bad", "good"]
    assert logged[0].startswith(f"warning: sink webhook http://127.0.0.1:{receiver.port} fails: HTTP {status} ")
    assert logged[0].endswith(": no such field: id")
    assert (sinks.health()[0].written, sinks.health()[0].dropped) == (1, 1)


def test_a_redirect_is_not_followed_as_its_records_would_be_lost(receiver):
    receiver.answer = lambda number: (302, {"Location": "/elsewhere"}, b"")
    with pytest.raises(PermanentFailure, match=r"HTTP 302 Found, to /elsewhere \(set `url:` to where it leads\)"):
        hook(receiver).send([{"id": "a"}])
    assert receiver.bodies == [{"id": "a"}]  # and no GET


def test_a_server_that_says_nothing_is_asked_again(receiver):
    receiver.answer = lambda number: (0, {}, b"") if number == 0 else FINE
    writer = queued(hook(receiver))
    writer.write({"id": "a"})
    writer.close()
    assert len(receiver.bodies) == 2
    assert "closed connection" in writer.last_error


def test_a_server_that_hangs_holds_up_no_decision(receiver, logged):
    receiver.gate.clear()
    sinks = Sinks([queued(hook(receiver, timeout_s=0.1), flush_s=20.0)], LABELS)
    started = time.perf_counter()
    for number in range(50):
        sinks.write(outcome(f"x{number}"))
    assert time.perf_counter() - started < 5.0
    until(lambda: logged)
    assert "timed out" in logged[0]
    receiver.gate.set()
    sinks.close()
    assert {body["id"] for body in receiver.bodies} == {f"x{number}" for number in range(50)}
    assert sinks.health()[0].dropped == 0


def test_a_server_that_comes_back_gets_all_that_waited():
    with Receiver() as first:
        writer = queued(hook(first), flush_s=20.0)
        writer.write({"id": "before"})
        until(lambda: writer.written == 1)
        port = first.port
    for number in range(20):
        writer.write({"id": number})
    until(lambda: writer.failing_since is not None)
    assert writer.last_error == "Connection refused"
    with Receiver(port) as second:
        writer.close()
        assert [body["id"] for body in second.bodies] == list(range(20))


def test_https_believes_the_ca_it_is_given_and_no_other(tmp_path):
    import ssl
    import sys

    sys.path.insert(0, str(Path(__file__).parent.parent.parent))
    from pki import Pki

    pki = Pki(tmp_path / "pki")
    with Receiver() as receiver:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pki["server.pem"], pki["server.key"])
        receiver._server.socket = context.wrap_socket(receiver._server.socket, server_side=True)
        url = f"https://127.0.0.1:{receiver.port}/"
        WebhookTransport(WebhookConfig(url, ca=pki["ca.pem"], is_local=True)).send([{"id": "a"}])
        with pytest.raises(RetryLater, match="certificate verify failed"):
            WebhookTransport(WebhookConfig(url, is_local=True)).send([{"id": "b"}])
        assert receiver.bodies == [{"id": "a"}]
    with pytest.raises(ConfigError, match=r"sink\.ca: .* cannot be used: No such file"):
        WebhookTransport(WebhookConfig(url, ca=tmp_path / "nothing"))
