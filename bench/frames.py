"""gRPC calls for next to nothing: one HTTP/2 connection that sends frames built beforehand.

A flood must cost less than what it floods, and a whole gRPC client in Python costs about as much a call as a server.
This is just enough of HTTP/2 (RFC 9113) to make unary calls on a socket: preface, settings, pings, flow control,
headers without compression in our direction and, by a table of size 0, with none to remember in the other.
It keeps to the protocol's rules, so the server sees a client like others.
"""

from __future__ import annotations

import re
import socket
import struct
import time
from collections import deque
from dataclasses import dataclass

DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
TABLE_SIZE, MAX_STREAMS, WINDOW_SIZE = 1, 3, 4  # settings
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FIRST_WINDOW = 65535
MOST_IN_A_FRAME = 16384
OUR_WINDOW = 2**30
CANCEL = 8
UNREADABLE = -1  # a status that is none
OF_RESET = {7: 14, 8: 1, 11: 8}  # what gRPC makes of a reset's reason: UNAVAILABLE, CANCELLED, RESOURCE_EXHAUSTED

_STATUS = re.compile(rb"grpc-status[\x01\x02](\d{1,2})")
_WORDS = re.compile(rb"grpc-message[\x01-\x7e]([ -~]+)")
_PUSH_BACK = re.compile(rb"grpc-retry-pushback-ms[\x01-\x0b](-?\d{1,10})")


@dataclass(slots=True)
class Call:
    """One call under way.

    Args:
        due: when it was to be sent, by its schedule, on the monotonic clock.
        device: who it is of.
        message: the request; let go once sent.
        sent: when it was, which is later than due where the server takes no more calls of this connection.
    """

    due: float
    deadline: float
    device: int
    message: bytes
    sent: float = 0.0
    stream: int = 0
    has_label: bool = False
    is_over: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """A call's end: gRPC's status number and words, and the push-back in seconds where the server asked for one."""

    call: Call
    status: int
    push_back_s: float | None = None
    words: str = ""


class Connection:
    """Calls to one method. Never blocks after it is connected: `send`, then `flush`, and `receive` when readable."""

    def __init__(self, address: str, path: str, timeout_ms: int) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host.strip("[]"), int(port)), 5.0)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._headers = (
            b"\x83\x86"  # POST, http
            + _literal(4, path)
            + _literal(1, address)
            + b"\x0f\x10" + _text("application/grpc")
            + b"\x00" + _text("te") + _text("trailers")
            + b"\x00" + _text("grpc-timeout") + _text(f"{timeout_ms}m")
        )  # fmt: skip
        settings = struct.pack(">HIHI", TABLE_SIZE, 0, WINDOW_SIZE, OUR_WINDOW)
        grown = struct.pack(">I", OUR_WINDOW - FIRST_WINDOW)
        self._out = bytearray(PREFACE + _frame(SETTINGS, 0, 0, settings) + _frame(WINDOW_UPDATE, 0, 0, grown))
        self._in = bytearray()
        self._next = 1
        self._window = FIRST_WINDOW
        self._stream_window = FIRST_WINDOW
        self._max_streams = 0  # until the server's settings are there
        self._consumed = 0
        self._calls: dict[int, Call] = {}
        self._held: deque[Call] = deque()  # until the server takes more

    def send(self, call: Call) -> None:
        self._held.append(call)
        self._send_held()

    def cancel(self, call: Call) -> None:
        """Its deadline has passed: as any client, tell the server."""
        call.is_over = True
        if self._calls.pop(call.stream, None) is not None:
            self._out += _frame(RESET, 0, call.stream, struct.pack(">I", CANCEL))

    def flush(self) -> None:
        if self._out:
            try:
                sent = self.socket.send(self._out)
            except BlockingIOError:
                return
            del self._out[:sent]

    def receive(self) -> list[Ended]:
        """What ended. Raises ConnectionError where the connection did."""
        try:
            data = self.socket.recv(2**18)
        except BlockingIOError:
            return []
        if not data:
            raise ConnectionResetError("the server closed the connection")
        self._in += data
        ended: list[Ended] = []
        at, size = 0, len(self._in)
        while size - at >= 9:
            length = int.from_bytes(self._in[at : at + 3])
            if size - at < 9 + length:
                break
            kind, flags = self._in[at + 3], self._in[at + 4]
            stream = int.from_bytes(self._in[at + 5 : at + 9]) & 0x7FFFFFFF
            self._take(kind, flags, stream, bytes(self._in[at + 9 : at + 9 + length]), ended)
            at += 9 + length
        del self._in[:at]
        self._send_held()
        return ended

    def abandoned(self) -> list[Call]:
        """The calls under way on a connection that is no more."""
        self.socket.close()
        return [call for call in (*self._calls.values(), *self._held) if not call.is_over]

    def _take(self, kind: int, flags: int, stream: int, body: bytes, ended: list[Ended]) -> None:
        if kind == DATA:
            self._consumed += len(body)
            if self._consumed > OUR_WINDOW // 2:
                self._out += _frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", self._consumed))
                self._consumed = 0
            if (call := self._calls.get(stream)) and b"label" in body:
                call.has_label = True
        elif kind == HEADERS and flags & END_STREAM:
            if call := self._calls.pop(stream, None):
                call.is_over = True
                status, push_back = _STATUS.search(body), _PUSH_BACK.search(body)
                number = int(status[1]) if status else UNREADABLE
                words = _WORDS.search(body) if number else None
                text = words[1].decode() if words else ""
                ended.append(Ended(call, number, int(push_back[1]) / 1000 if push_back else None, text))
        elif kind == RESET:
            if call := self._calls.pop(stream, None):
                call.is_over = True
                reason = int.from_bytes(body)
                ended.append(Ended(call, OF_RESET.get(reason, 13), None, f"RST_STREAM with {reason}"))
        elif kind == SETTINGS and not flags & ACK:
            self._max_streams = self._max_streams or 2**31
            for at in range(0, len(body), 6):
                setting, value = struct.unpack_from(">HI", body, at)
                if setting == MAX_STREAMS:
                    self._max_streams = value
                elif setting == WINDOW_SIZE:
                    self._stream_window = value
            self._out += _frame(SETTINGS, ACK, 0, b"")
        elif kind == PING and not flags & ACK:
            self._out += _frame(PING, ACK, 0, body)
        elif kind == WINDOW_UPDATE and stream == 0:
            self._window += int.from_bytes(body)
        elif kind == GOAWAY:
            raise ConnectionResetError(f"the server sent the connection away: {body[8:].decode(errors='replace')}")

    def _send_held(self) -> None:
        while self._held and len(self._calls) < self._max_streams:
            call = self._held[0]
            size = len(call.message) + 5
            if not call.is_over:
                if size > self._stream_window:
                    raise SystemExit(f"expected requests of at most {self._stream_window} bytes, got {size}")
                if size > self._window:
                    return
                self._write(call)
            self._held.popleft()

    def _write(self, call: Call) -> None:
        call.stream, self._next = self._next, self._next + 2
        call.sent = time.monotonic()
        self._calls[call.stream] = call
        message = b"\0" + struct.pack(">I", len(call.message)) + call.message
        call.message = b""
        self._window -= len(message)
        self._out += _frame(HEADERS, END_HEADERS, call.stream, self._headers)
        for at in range(0, len(message), MOST_IN_A_FRAME):
            is_last = at + MOST_IN_A_FRAME >= len(message)
            self._out += _frame(DATA, END_STREAM * is_last, call.stream, message[at : at + MOST_IN_A_FRAME])


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return struct.pack(">I", len(body))[1:] + struct.pack(">BBI", kind, flags, stream) + body


def _text(text: str) -> bytes:
    """HPACK's plain string; ours are all shorter than 127 bytes."""
    data = text.encode("ascii")
    return bytes([len(data)]) + data


def _literal(index: int, value: str) -> bytes:
    """A header whose name is in HPACK's own table, not to be remembered."""
    return bytes([index]) + _text(value)
