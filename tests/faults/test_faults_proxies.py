"""The proxy itself: each fault does what it says, on sockets alone."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from proxies import BlackHole, CutAfter, Proxy, Refuse, Reset, Slow


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """In front of a server that sends back what it gets."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def echo(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                while data := connection.recv(1000):
                    connection.sendall(data)

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=echo, args=(connection,), daemon=True).start()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with Proxy(listener.getsockname()[1]) as opened:
                yield opened
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection((proxy.host, proxy.port), timeout=10)


def told(connection: socket.socket, data: bytes) -> bytes:
    connection.sendall(data)
    return connection.recv(1000)


def test_without_a_fault_everything_passes(proxy):
    with connect(proxy) as a, connect(proxy) as b:
        assert [told(a, b"1"), told(b, b"2"), told(a, b"3")] == [b"1", b"2", b"3"]
    assert proxy.n_connections == 2


def test_a_black_hole_swallows_and_keeps_what_lay_in_it(proxy):
    with connect(proxy) as old:
        told(old, b"1")
        proxy.fault = BlackHole(spares_new=True)
        old.settimeout(0.1)
        with pytest.raises(TimeoutError):
            told(old, b"2")
        with connect(proxy) as new:
            assert told(new, b"3") == b"3"
            proxy.fault = None
            with pytest.raises(TimeoutError):
                told(old, b"4")
            proxy.fault = BlackHole()
            new.settimeout(0.1)
            with pytest.raises(TimeoutError):
                told(new, b"5")


def test_a_reset_is_one(proxy):
    with connect(proxy) as connection:
        told(connection, b"1")
        proxy.fault = Reset()
        with pytest.raises(ConnectionResetError):
            told(connection, b"2")


def test_what_is_slow_comes_late_by_so_much_and_not_by_more_for_each_piece(proxy):
    proxy.fault = Slow(0.1)
    with connect(proxy) as connection:
        started = time.monotonic()
        for _ in range(5):
            connection.sendall(b"1")
        got = b""
        while len(got) < 5:
            got += connection.recv(1000)
        took = time.monotonic() - started
    assert 0.2 <= took < 0.2 + 5 * 0.1  # there and back; one after another it would be a second


def test_a_connection_is_cut_after_so_many_bytes(proxy):
    proxy.fault = CutAfter(3)
    with connect(proxy) as connection:
        connection.sendall(b"12345")
        got = b""
        with suppress(ConnectionResetError):
            while data := connection.recv(1000):
                got += data
    assert len(got) <= 3
    assert b"12345".startswith(got)


def test_a_refused_connection_is_so_until_the_fault_is_over_on_the_same_port(proxy):
    with connect(proxy) as old:
        told(old, b"1")
        proxy.fault = Refuse()
        assert old.recv(1000) == b""
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
        proxy.fault = None
        with connect(proxy) as new:
            assert told(new, b"2") == b"2"
