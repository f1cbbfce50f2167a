"""Real handshakes: who is turned away, and what is served after the files change."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from pki import Clock, Pki, call, echoing

from cloud.security.config import Security
from cloud.security.identity import identity_of_call
from cloud.security.tls import grpc_credentials, http_context
from coe.cascade.errors import ConfigError


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "pki")


@pytest.fixture
def clock() -> Clock:
    return Clock()


def security_of(pki: Pki, *, mutual: bool = False) -> Security:
    client_ca = pki["ca.pem"] if mutual else None
    return Security(pki["server.pem"], pki["server.key"], client_ca, reload_s=30)


def served_serial(address: str) -> int:
    """Of the certificate a gRPC server shows, whoever asks."""
    host, port = address.split(":")
    return int(x509.load_pem_x509_certificate(_shown(host, int(port))).serial_number)


def _shown(host: str, port: int) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    with socket.create_connection((host, port), timeout=5) as raw, context.wrap_socket(raw) as wrapped:
        der = wrapped.getpeercert(binary_form=True)
    assert der is not None
    return ssl.DER_cert_to_PEM_cert(der).encode()


def turned_away(address: str, credentials: grpc.ChannelCredentials) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        call(address, credentials)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_client_that_knows_the_ca_is_answered(pki: Pki):
    with echoing(grpc_credentials(security_of(pki)), lambda context: "hello") as address:
        assert call(address, pki.credentials()) == "hello"


def test_a_client_does_not_believe_a_server_of_a_stranger(pki: Pki, tmp_path: Path):
    stranger = Pki(tmp_path / "stranger")
    with echoing(grpc_credentials(security_of(stranger))) as address:
        turned_away(address, pki.credentials())


def test_a_client_does_not_believe_a_server_of_another_name(pki: Pki):
    pki.server("elsewhere.example")
    with echoing(grpc_credentials(security_of(pki))) as address:
        turned_away(address, pki.credentials())


def test_a_client_does_not_believe_a_device_that_serves(pki: Pki):
    pki.device("localhost")
    security = Security(pki["localhost.pem"], pki["localhost.key"])
    with echoing(grpc_credentials(security)) as address:
        turned_away(address, pki.credentials())


def test_under_mutual_tls_a_device_is_known_by_its_name(pki: Pki):
    pki.device("pi-1")
    with echoing(
        grpc_credentials(security_of(pki, mutual=True)), lambda context: identity_of_call(context)[0]
    ) as address:
        assert call(address, pki.credentials("pi-1")) == "('pi-1',)"


def test_under_mutual_tls_a_client_without_a_certificate_is_turned_away(pki: Pki):
    with echoing(grpc_credentials(security_of(pki, mutual=True))) as address:
        turned_away(address, pki.credentials())


def test_under_mutual_tls_a_device_of_a_stranger_is_turned_away(pki: Pki, tmp_path: Path):
    stranger = Pki(tmp_path / "stranger")
    stranger.device("pi-1")
    shown = grpc.ssl_channel_credentials(pki.bytes("ca.pem"), stranger.bytes("pi-1.key"), stranger.bytes("pi-1.pem"))
    with echoing(grpc_credentials(security_of(pki, mutual=True))) as address:
        turned_away(address, shown)


def test_under_mutual_tls_a_device_whose_certificate_has_expired_is_turned_away(pki: Pki):
    pki.device("pi-1", days=5, made_days_ago=10)
    with echoing(grpc_credentials(security_of(pki, mutual=True))) as address:
        turned_away(address, pki.credentials("pi-1"))


def test_under_mutual_tls_a_server_certificate_names_no_device(pki: Pki):
    with echoing(grpc_credentials(security_of(pki, mutual=True))) as address:
        turned_away(address, pki.credentials("server"))


def test_under_mutual_tls_what_a_device_has_signed_is_worth_nothing(pki: Pki, tmp_path: Path):
    from cloud.security import authority

    pki.device("pi-1")
    device = authority.KeyPair(
        x509.load_pem_x509_certificate(pki.bytes("pi-1.pem")),
        authority.read_authority(_as_authority(pki, tmp_path)).key,
    )
    authority.make_device(device, "pi-2", 30).write(pki.folder, "pi-2", force=True)
    pki["pi-2.pem"].write_bytes(pki.bytes("pi-2.pem") + pki.bytes("pi-1.pem"))
    with echoing(grpc_credentials(security_of(pki, mutual=True))) as address:
        turned_away(address, pki.credentials("pi-2"))


def _as_authority(pki: Pki, folder: Path) -> Path:
    (folder / "ca.pem").write_bytes(pki.bytes("pi-1.pem"))
    (folder / "ca.key").write_bytes(pki.bytes("pi-1.key"))
    return folder


def test_a_new_certificate_is_served_without_a_restart(pki: Pki, clock: Clock):
    with echoing(grpc_credentials(security_of(pki), clock), lambda context: "hello") as address:
        first = served_serial(address)
        second = pki.server()
        assert served_serial(address) == first  # looked at every 30 s
        clock.now += 31
        assert served_serial(address) == second != first
        assert call(address, pki.credentials()) == "hello"


def test_an_open_connection_lives_through_a_new_certificate(pki: Pki, clock: Clock):
    with echoing(grpc_credentials(security_of(pki), clock), lambda context: "hello") as address:
        with grpc.secure_channel(address, pki.credentials()) as channel:
            ask = channel.unary_unary("/test.Echo/Echo")
            assert ask(b"", timeout=5) == b"hello"
            serial = pki.server()
            clock.now += 31
            assert served_serial(address) == serial
            assert ask(b"", timeout=5) == b"hello"


def test_a_new_client_ca_is_asked_for_without_a_restart(pki: Pki, clock: Clock, tmp_path: Path):
    new = Pki(tmp_path / "new")
    for one in (pki, new):
        one.device("pi-1")
    shown = grpc.ssl_channel_credentials(pki.bytes("ca.pem"), new.bytes("pi-1.key"), new.bytes("pi-1.pem"))
    old = pki.credentials("pi-1")
    with echoing(grpc_credentials(security_of(pki, mutual=True), clock), lambda context: "hello") as address:
        assert call(address, old) == "hello"
        turned_away(address, shown)
        pki["ca.pem"].write_bytes(new.bytes("ca.pem"))
        clock.now += 31
        assert call(address, shown) == "hello"
        turned_away(address, old)


@pytest.mark.parametrize("spoil", ["half", "key", "expired", "gone"])
def test_a_bad_new_file_leaves_the_old_one_and_one_line_in_the_log(pki: Pki, clock: Clock, caplog, spoil: str):
    with echoing(grpc_credentials(security_of(pki), clock)) as address:
        first = served_serial(address)
        if spoil == "half":
            pki["server.pem"].write_bytes(pki.bytes("server.pem")[:200])
        elif spoil == "key":
            pki.device("other")
            os.replace(pki["other.key"], pki["server.key"])
        elif spoil == "expired":
            pki.server(days=5, made_days_ago=10)
        else:
            pki["server.key"].unlink()
        with caplog.at_level(logging.INFO):
            for _ in range(3):
                clock.now += 31
                assert served_serial(address) == first
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert "the one before stays in use" in record.getMessage()
        assert "\n" not in record.getMessage()
        mended = pki.server()
        clock.now += 31
        assert served_serial(address) == mended


def test_the_files_are_not_looked_at_in_each_handshake(pki: Pki, clock: Clock, monkeypatch):
    looks = []
    stat = Path.stat
    with echoing(grpc_credentials(security_of(pki), clock)) as address:
        monkeypatch.setattr(Path, "stat", lambda path, **how: (looks.append(path), stat(path, **how))[1])
        for _ in range(5):
            served_serial(address)
        assert [path for path in looks if path.suffix == ".pem"] == []


def test_credentials_of_files_that_cannot_be_served_with_are_refused(pki: Pki):
    pki["server.key"].unlink()
    with pytest.raises(ConfigError, match="key: expected a readable file"):
        grpc_credentials(security_of(pki))
    with pytest.raises(ConfigError, match=r"security\.tls: expected certificate and key"):
        http_context(Security())


def handshakes(pki: Pki, port: int, alpn: str, between: Callable[[], object]) -> list[bool]:
    """Whether pi-1 is let in, and once more with the session of the first time after what happens `between`."""
    context = ssl.create_default_context(cafile=str(pki["ca.pem"]))
    context.load_cert_chain(pki["pi-1.pem"], pki["pi-1.key"])
    context.set_alpn_protocols([alpn])
    session, let_in = None, []
    for step in (lambda: None, between):
        step()
        with socket.create_connection(("127.0.0.1", port), timeout=5) as raw:
            with context.wrap_socket(raw, server_hostname="localhost", session=session) as wrapped:
                try:
                    let_in.append(bool(wrapped.recv(1000)))  # gRPC: its settings
                except (ssl.SSLError, ConnectionError):
                    let_in.append(False)
                session = wrapped.session
    return let_in


@pytest.mark.parametrize("server", ["gRPC", "HTTP"])
def test_a_session_does_not_outlive_the_client_ca_that_allowed_it(pki: Pki, clock: Clock, tmp_path: Path, server: str):
    new, clients = Pki(tmp_path / "new"), tmp_path / "clients.pem"
    pki.device("pi-1")
    clients.write_bytes(pki.bytes("ca.pem"))
    security = Security(pki["server.pem"], pki["server.key"], clients)

    def change() -> None:
        clients.write_bytes(new.bytes("ca.pem"))
        clock.now += 31

    if server == "gRPC":
        with echoing(grpc_credentials(security, clock)) as address:
            assert handshakes(pki, int(address.split(":")[1]), "h2", lambda: None) == [True, True]
            assert handshakes(pki, int(address.split(":")[1]), "h2", change) == [True, False]
    else:
        with listening(http_context(security, clock)) as port:
            assert handshakes(pki, port, "http/1.1", lambda: None) == [True, True]
            assert handshakes(pki, port, "http/1.1", change) == [True, False]


@contextmanager
def listening(context: ssl.SSLContext) -> Iterator[int]:
    """An asyncio server as an ASGI server starts it: it answers with the names in the client's certificate."""
    ports: list[int] = []
    ended: list[Callable[[], object]] = []
    ready = threading.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peercert") or {}
        writer.write(repr(peer.get("subjectAltName", ())).encode())
        await writer.drain()
        writer.close()

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: None)  # failed handshakes are what is tested
        stop = asyncio.Event()
        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
        ports.append(server.sockets[0].getsockname()[1])
        ended.append(lambda: loop.call_soon_threadsafe(stop.set))
        ready.set()
        async with server:
            await stop.wait()
        await asyncio.sleep(0.05)  # connections that were turned away are closed by the loop

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(10)
    try:
        yield ports[0]
    finally:
        ended[0]()
        thread.join()


def get(port: int, pki: Pki, device: str | None = None, name: str | None = "localhost", **settings: Any) -> str:
    context = ssl.create_default_context(cafile=str(pki["ca.pem"]))
    if name is None:
        context.check_hostname = False
    for key, value in settings.items():
        setattr(context, key, value)
    if device is not None:
        context.load_cert_chain(pki[f"{device}.pem"], pki[f"{device}.key"])
    with socket.create_connection(("127.0.0.1", port), timeout=5) as raw:
        with context.wrap_socket(raw, server_hostname=name) as wrapped:
            answer = wrapped.recv(1000).decode()
    if not answer:  # TLS 1.3: the client believes to be connected before the server has seen its certificate
        raise ConnectionError("closed without an answer")
    return answer


def http_serial(port: int) -> int:
    return int(x509.load_pem_x509_certificate(_shown("127.0.0.1", port)).serial_number)


def test_the_http_port_serves_a_new_certificate_without_a_restart(pki: Pki, clock: Clock):
    with listening(http_context(security_of(pki), clock)) as port:
        first = http_serial(port)
        second = pki.server()
        assert http_serial(port) == first
        clock.now += 31
        assert http_serial(port) == second
        assert get(port, pki) == "()"
        assert get(port, pki, name=None) == "()"  # a client that names no server


def test_the_http_port_takes_no_old_tls(pki: Pki):
    with listening(http_context(security_of(pki))) as port:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            get(port, pki, maximum_version=ssl.TLSVersion.TLSv1_2)


def test_the_http_port_under_mutual_tls_turns_strangers_away(pki: Pki, tmp_path: Path):
    stranger = Pki(tmp_path / "stranger")
    pki.device("pi-1")
    pki.device("pi-2", days=5, made_days_ago=10)
    stranger.device("pi-3")
    for suffix in ("pem", "key"):
        pki[f"pi-3.{suffix}"].write_bytes(stranger.bytes(f"pi-3.{suffix}"))
    with listening(http_context(security_of(pki, mutual=True))) as port:
        assert get(port, pki, "pi-1") == "(('DNS', 'pi-1'),)"
        for device in (None, "pi-2", "pi-3"):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                get(port, pki, device)


def test_the_http_port_forgets_a_client_ca_without_a_restart(pki: Pki, clock: Clock, tmp_path: Path):
    new = Pki(tmp_path / "new")
    pki.device("pi-1")
    new.device("pi-2")
    both = pki.bytes("ca.pem")
    for suffix in ("pem", "key"):
        pki[f"pi-2.{suffix}"].write_bytes(new.bytes(f"pi-2.{suffix}"))
    security = Security(pki["server.pem"], pki["server.key"], tmp_path / "clients.pem")
    (tmp_path / "clients.pem").write_bytes(both)
    with listening(http_context(security, clock)) as port:
        assert get(port, pki, "pi-1") == "(('DNS', 'pi-1'),)"
        (tmp_path / "clients.pem").write_bytes(new.bytes("ca.pem"))
        clock.now += 31
        assert get(port, pki, "pi-2") == "(('DNS', 'pi-2'),)"
        with pytest.raises((ssl.SSLError, ConnectionError)):
            get(port, pki, "pi-1")
