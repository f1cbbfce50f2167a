"""A real TCP proxy on this machine, and what can go wrong on the way through it: one class for each fault.

In the way of Shopify's toxiproxy. A fault is switched on with `proxy.fault = Reset()`, off with `proxy.fault = None`.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import threading
import time
from contextlib import suppress
from queue import SimpleQueue

BLOCK = 65536
NOWHERE = struct.pack("H14x", socket.AF_UNSPEC)  # a TCP socket that connects there sends RST


class Fault:
    """No fault: what arrives is passed on."""

    def carry(self, pipe: Pipe, data: bytes, arrived: float) -> None:
        """Do with `data`, which arrived at that `time.monotonic()`, as the fault does."""
        pipe.to.sendall(data)


class BlackHole(Fault):
    """Swallows what is sent, and keeps the connection; what it lies in stays dead when the fault is over.

    Args:
        spares_new: only connections from before the fault are in it, as after a switch of networks.
    """

    def __init__(self, *, spares_new: bool = False) -> None:
        self.began = time.monotonic()
        self.spares_new = spares_new

    def carry(self, pipe: Pipe, data: bytes, arrived: float) -> None:
        if self.spares_new and pipe.opened > self.began:
            super().carry(pipe, data, arrived)
        else:
            pipe.is_dead = True


class Reset(Fault):
    """Answers whatever is sent with RST."""

    def carry(self, pipe: Pipe, data: bytes, arrived: float) -> None:
        pipe.end(reset=True)


class Slow(Fault):
    """Everything comes late, and at so many bytes a second, each way."""

    def __init__(self, delay_s: float, bytes_per_s: float = float("inf")) -> None:
        self.delay_s = delay_s
        self.bytes_per_s = bytes_per_s

    def carry(self, pipe: Pipe, data: bytes, arrived: float) -> None:
        left = arrived + self.delay_s + len(data) / self.bytes_per_s - time.monotonic()  # it may have waited already
        pipe.ended.wait(max(left, 0.0))
        super().carry(pipe, data, arrived)


class CutAfter(Fault):
    """Ends each connection after so many bytes in one direction."""

    def __init__(self, n_bytes: int) -> None:
        self.n_bytes = n_bytes

    def carry(self, pipe: Pipe, data: bytes, arrived: float) -> None:
        left = self.n_bytes - pipe.n_carried
        super().carry(pipe, data[: max(left, 0)], arrived)
        if len(data) >= left:
            pipe.end()


class Refuse(Fault):
    """Nobody listens any more, and the connections there were are gone."""

    def carry(self, pipe: Pipe, data: bytes, arrived: float) -> None:
        pipe.end()


class Pipe:
    """One direction of a connection."""

    def __init__(self, proxy: Proxy, of: socket.socket, to: socket.socket, opened: float) -> None:
        self.proxy = proxy
        self.of, self.to = of, to
        self.opened = opened
        self.ended = threading.Event()
        self.is_dead = False
        self.n_carried = 0
        self._arrived: SimpleQueue[tuple[bytes, float]] = SimpleQueue()
        self.threads = [threading.Thread(target=work, daemon=True) for work in (self._read, self._carry)]
        for thread in self.threads:
            thread.start()

    def end(self, *, reset: bool = False) -> None:
        """Both directions, with RST or FIN."""
        self.ended.set()
        for end in (self.of, self.to):
            with suppress(OSError):
                if reset:
                    ctypes.CDLL(None).connect(end.fileno(), NOWHERE, len(NOWHERE))
                else:
                    end.shutdown(socket.SHUT_RDWR)

    def _read(self) -> None:
        data = b"."
        while data:
            try:
                data = self.of.recv(BLOCK)
            except OSError:
                data = b""
            self._arrived.put((data, time.monotonic()))

    def _carry(self) -> None:
        while True:
            data, arrived = self._arrived.get()
            if not data and not self.is_dead:
                self.end()
            if not data:
                return
            if self.is_dead:
                continue
            with suppress(OSError):
                (self.proxy.fault or Fault()).carry(self, data, arrived)
                self.n_carried += len(data)


class Proxy:
    """Listens on a free port of this machine (`port`) and passes on to `upstream`, but for its `fault`.

    `n_connections`: so far.
    """

    def __init__(self, upstream: int, host: str = "127.0.0.1") -> None:
        self.upstream = upstream
        self.n_connections = 0
        self._fault: Fault | None = None
        self._pipes: list[Pipe] = []
        self._listener = socket.create_server((host, 0))
        self.host, self.port = self._listener.getsockname()[:2]
        self._thread = self._listen()

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def fault(self) -> Fault | None:
        return self._fault

    @fault.setter
    def fault(self, fault: Fault | None) -> None:
        before, self._fault = self._fault, fault
        if isinstance(fault, Refuse):
            self._close_listener()
            for pipe in self._pipes:
                pipe.end()
        elif isinstance(before, Refuse):
            self._listener = socket.create_server((self.host, self.port))
            self._thread = self._listen()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._close_listener()
        for pipe in self._pipes:
            pipe.end()
        for pipe in self._pipes:
            for thread in pipe.threads:
                thread.join(10)
            for end in (pipe.of, pipe.to):
                end.close()

    def _listen(self) -> threading.Thread:
        thread = threading.Thread(target=self._accept, args=(self._listener,), daemon=True)
        thread.start()
        return thread

    def _close_listener(self) -> None:
        with suppress(OSError):  # it is closed already
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self.n_connections += 1
            try:
                server = socket.create_connection(("127.0.0.1", self.upstream), timeout=5)
                server.settimeout(None)
            except OSError:
                client.close()
                continue
            opened = time.monotonic()
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._pipes += [Pipe(self, client, server, opened), Pipe(self, server, client, opened)]
