"""The channel to a tier's hosts: name resolution, the persistent stream, and replacement while calls are under way.

Each request has an id; answers come in any order. A call that gives up takes nothing back: its answer is dropped when
it comes. What goes wrong with the stream, and not with a request, is TierUnavailable to every call on
it, and the next call opens a new one.

gRPC keeps a connection that has gone silent, as after a switch of networks, for as long as the kernel does: up to a
quarter of an hour, whatever the keepalive (grpc/grpc#32435). A new channel connects anew.
"""

from __future__ import annotations

import ipaddress
import itertools
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from coe.cascade.errors import ConfigError, TierError, TierTimeout, TierUnavailable
from coe.cascade.types import NO_CALL, CallCost

from . import inference_pb2 as pb
from .codec import get_parameters, set_parameter
from .service import FRAME_BYTES, STREAM, path
from .status import from_rpc_error, from_status
from .trace_context import HEADERS, OUTGOING, Header

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Target:
    """What a channel is opened to.

    Args:
        uri: as gRPC names it.
        is_balanced: several hosts may be behind it.
    """

    uri: str
    is_balanced: bool


def target_of(addresses: Sequence[str]) -> Target:
    """The target of one or more "host:port".

    One name is looked up by gRPC, anew as hosts fail, and every record of it is a host. The names of a list are looked
    up here, once: gRPC takes a list of IP addresses alone.

    Raises:
        ConfigError: a name of a list cannot be looked up.
    """
    if len(addresses) == 1:
        (address,) = addresses
        return Target(address, is_balanced=_ip(split(address)[0]) is None)
    hosts = list(dict.fromkeys(host for address in addresses for host in _resolve(address)))
    if all(ip.version == 4 for ip, _ in hosts):
        return Target("ipv4:" + ",".join(f"{ip}:{port}" for ip, port in hosts), is_balanced=True)
    # gRPC takes addresses of one kind in a list: an IPv4 address has an IPv6 form.
    uri = "ipv6:" + ",".join(f"[{'::ffff:' if ip.version == 4 else ''}{ip}]:{port}" for ip, port in hosts)
    return Target(uri, is_balanced=True)


def is_address(text: str) -> bool:
    """True if it is "host:port"."""
    return not fix_of_address(text)


def fix_of_address(text: str, usual: str = "coe-cloud serves on port 8001", lowest_port: int = 1) -> str:
    """How to correct what should be "host:port"; "" where it is right; `usual`: the fix of anything else."""
    host, port = split(text)
    if isinstance(_ip(host), ipaddress.IPv6Address) and not host.startswith("["):
        return f'write "[{host}]:{port}"'
    if host and port.isdecimal() and len(port) < 6 and lowest_port <= int(port) < 65536:
        return fix_of_host(host)
    return fix_of_host(text) if "://" in text or " " in text else usual


def fix_of_host(text: str) -> str:
    """How to correct what should be a name or an IP address; "" where nothing is wrong with it."""
    if "://" in text:
        return f"leave {text.partition('://')[0]}:// out"
    if _ip(text) is not None or re.fullmatch(r"[^\s/@:?#,;\"'\[\]]+", text):
        return ""
    if any(sign.isspace() for sign in text):
        return "leave the space out"
    return "write a name, such as gpu-host, or an IP address"


def reachable(host: str) -> str:
    """What callers write before ":port" for a server that listens on `host`: this machine's name for all of them."""
    ip = _ip(host)
    if ip is None or not ip.is_unspecified:
        return f"[{ip}]" if isinstance(ip, ipaddress.IPv6Address) else host
    name, family = socket.gethostname(), socket.AF_INET if ip.version == 4 else socket.AF_UNSPEC
    try:
        socket.getaddrinfo(name, None, family)
    except OSError:  # it has a name that nobody knows
        return "127.0.0.1" if ip.version == 4 else "[::1]"
    return name


def split(address: str) -> tuple[str, str]:
    """Host and port of "host:port"."""
    host, _, port = address.rpartition(":")
    return host, port


def _ip(host: str) -> IPAddress | None:
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None


def _resolve(address: str) -> Iterable[tuple[IPAddress, int]]:
    host, port = split(address)
    ip = _ip(host)
    if ip is not None:
        return [(ip, int(port))]
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except (OSError, ValueError) as error:
        fix = "write its IP address, or start once the name is known"
        raise ConfigError([f"address {address}: the name cannot be looked up: {error} ({fix})"]) from None
    return [(ipaddress.ip_address(str(sockaddr[0])), int(port)) for *_, sockaddr in found]


TIMEOUT = "timeout_ms"  # parameter of a request: int64, from when it is sent
STATUS = "status_code"  # parameters of a refusal: int64, gRPC's number of the code,
RETRY_AFTER = "retry_after_ms"  # and when to come again
CODES = {code.value[0]: code for code in grpc.StatusCode}


class InferStream:
    """One stream of a channel, opened by the first call and again after it broke.

    Args:
        tier: whose calls these are, for errors.
    """

    def __init__(self, tier: str, channel: grpc.Channel) -> None:
        self.tier = tier
        self.is_offered = True  # until the server says that it has no such method
        self._open = channel.stream_stream(path(STREAM), None, None)
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._stream: _OpenStream | None = None

    def ask(
        self, request: pb.ModelInferRequest, end: float, headers: Sequence[Header]
    ) -> tuple[pb.ModelInferResponse, CallCost]:
        """The response to one request, which is given an id and a deadline, and the bytes of both.

        Args:
            end: `time.monotonic()` second by which the answer is wanted.
            headers: those of a trace and of `headers.OUTGOING` go with the request, as parameters; others are sent
                where this call opens the stream.
        Raises:
            TierError: with the bytes as its `call`. TierUnavailable: the stream broke, and whether the server saw the
                request is not known; TierTimeout; or the server's own refusal of this request.
        """
        left = end - time.monotonic()
        number = str(next(self._ids))
        request.id = number
        set_parameter(request.parameters, TIMEOUT, max(1, int(left * 1000)))
        ours: list[Header] = []
        for name, value in headers:
            if name in HEADERS or name in dict(OUTGOING.get()):
                set_parameter(request.parameters, name, value)
            else:
                ours.append((name, value))
        waiting = _PendingCall(request.SerializeToString())
        n_bytes = len(waiting.request) + FRAME_BYTES
        stream = self._send(number, waiting, tuple(ours))
        if not waiting.done.acquire(timeout=max(left, 0.0)):
            stream.forget(number)
            if stream.answered_at < end - left:  # not a word since: it may be stuck
                self._retire(stream)
            timeout = TierTimeout(self.tier, "no answer on the stream within the deadline")
            raise timeout.with_call(CallCost(bytes_sent=n_bytes))
        if waiting.answer is None:
            self.is_offered = self.is_offered and not stream.is_refused
            raise TierUnavailable(self.tier, f"the stream ended: {stream.reason}")
        cost = CallCost(bytes_sent=n_bytes, bytes_received=waiting.n_bytes)
        if not waiting.answer.error_message:
            return waiting.answer.infer_response, cost
        raise self._error(waiting.answer, stream).with_call(cost)

    def close(self) -> None:
        """End the stream; calls under way are TierUnavailable."""
        with self._lock:
            stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def _send(self, number: str, waiting: _PendingCall, headers: tuple[Header, ...]) -> _OpenStream:
        with self._lock:
            if self._stream is None or not self._stream.send(number, waiting):
                self._stream = _OpenStream(self._open, headers, self.tier)
                if not self._stream.send(number, waiting):  # over already: there is nobody
                    waiting.done.release()
            return self._stream

    def _error(self, answer: pb.ModelStreamInferResponse, stream: _OpenStream) -> TierError:
        """What a refusal means to the cascade."""
        parameters = get_parameters(answer.infer_response.parameters)
        number = parameters.get(STATUS)
        code = CODES.get(number if isinstance(number, int) else -1, grpc.StatusCode.UNKNOWN)
        if code is grpc.StatusCode.UNAUTHENTICATED:  # who we are was said as the stream was opened: say it anew
            self._retire(stream)
            return TierUnavailable(self.tier, f"{code.name}: {answer.error_message}")
        return from_status(self.tier, code, answer.error_message, str(parameters.get(RETRY_AFTER, "")))

    def _retire(self, stream: _OpenStream) -> None:
        """Let the calls on it finish; the next one opens a new stream."""
        with self._lock:
            if self._stream is stream:
                self._stream = None
        stream.finish()


class _PendingCall:
    """A call on its way. `done` is released when there is an answer, or when there will be none (None)."""

    __slots__ = ("answer", "done", "n_bytes", "request")

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.answer: pb.ModelStreamInferResponse | None = None
        self.n_bytes = 0
        self.done = threading.Lock()
        self.done.acquire()


class _OpenStream:
    """One open stream, and the thread that reads it."""

    def __init__(self, open_stream: Any, headers: tuple[Header, ...], tier: str) -> None:
        self.reason = "closed"
        self.is_refused = False  # the server has no such method
        self.answered_at = 0.0  # `time.monotonic()` of the latest answer
        self._is_over = False
        self._is_finishing = False
        self._lock = threading.Lock()
        self._under_way: dict[str, _PendingCall] = {}
        self._outbox: SimpleQueue[_PendingCall | None] = SimpleQueue()
        self._call = open_stream(self._requests(), metadata=headers or None)
        self._reader = threading.Thread(target=self._read, name=f"coe-stream-{tier}", daemon=True)
        self._reader.start()

    def send(self, number: str, waiting: _PendingCall) -> bool:
        """False: it is over, and nothing was sent."""
        with self._lock:
            if self._is_over or self._is_finishing:
                return False
            self._under_way[number] = waiting
        self._outbox.put(waiting)
        return True

    def forget(self, number: str) -> None:
        """Nobody waits for it any more. If it was not sent yet, it need not be."""
        with self._lock:
            waiting = self._taken(number)
        if waiting is not None:
            waiting.request = b""

    def finish(self) -> None:
        """No more requests; the stream ends with the last call under way on it."""
        with self._lock:
            self._is_finishing = True
            self._taken("")

    def close(self) -> None:
        self._call.cancel()
        self._reader.join(5)

    def _requests(self) -> Iterator[bytes]:
        for waiting in iter(self._outbox.get, None):
            if waiting.request:
                yield waiting.request

    def _read(self) -> None:
        try:
            for data in self._call:
                answer = pb.ModelStreamInferResponse.FromString(data)
                self.answered_at = time.monotonic()
                with self._lock:
                    waiting = self._taken(answer.infer_response.id)
                if waiting is not None:
                    waiting.answer = answer
                    waiting.n_bytes = len(data) + FRAME_BYTES
                    waiting.done.release()
                elif answer.error_message and not answer.infer_response.id:  # of an unknown request
                    self.reason = answer.error_message[:200]
                    self._call.cancel()
                    return
        except grpc.RpcError as error:
            self.is_refused = error.code() is grpc.StatusCode.UNIMPLEMENTED
            self.reason = f"{error.code().name}: {error.details()}"
        except DecodeError as error:
            self.reason = f"its answer cannot be read: {error}"
            self._call.cancel()
        finally:
            self._end()

    def _taken(self, number: str) -> _PendingCall | None:
        """The call of that id, no longer under way. To be called with the lock held."""
        waiting = self._under_way.pop(number, None)
        if self._is_finishing and not self._under_way:
            self._call.cancel()
        return waiting

    def _end(self) -> None:
        with self._lock:
            self._is_over = True
            left = list(self._under_way.values())
            self._under_way.clear()
        self._outbox.put(None)  # gRPC's own thread waits there for the next request
        for waiting in left:
            waiting.done.release()


class TierChannel:
    """One channel, and what is called on it.

    Args:
        tier: whose calls these are, for errors.
        stream: whether calls go on a persistent stream.
        proxy: through which they go, for errors; "" for none.
    """

    def __init__(self, tier: str, channel: grpc.Channel, *, stream: bool, proxy: str = "") -> None:
        self.tier = tier
        self.proxy = proxy
        self.channel = channel
        self.stream = InferStream(tier, channel) if stream else None
        self._infer = channel.unary_unary(path("ModelInfer"), None, None)  # bytes to bytes: sizes are counted

    def ask(
        self, request: pb.ModelInferRequest, end: float, headers: tuple[Header, ...]
    ) -> tuple[bytes | pb.ModelInferResponse, CallCost]:
        """The response to a request, and the bytes of both.

        Args:
            end: `time.monotonic()` second by which the answer is wanted.
        Raises:
            TierError: with the bytes as its `call`.
        """
        spent = NO_CALL
        if self.stream is not None and self.stream.is_offered:
            try:
                return self.stream.ask(request, end, headers)
            except TierUnavailable as error:
                spent = error.call  # asked once more by itself, below: with retries, on another host where there is one
        data = request.SerializeToString()
        n_sent = len(data) + FRAME_BYTES
        try:
            left = end - time.monotonic()
            if left <= 0:
                raise TierTimeout(self.tier, "the deadline has passed before the call").with_call(spent)
            answer: bytes = self._infer(data, timeout=left, metadata=headers or None)
        except grpc.RpcError as error:
            failure = from_rpc_error(self.tier, error, self.proxy)
            is_known = not isinstance(failure, TierUnavailable)  # else how much arrived is not known
            raise failure.with_call(spent + CallCost(bytes_sent=n_sent) if is_known else spent) from None
        return answer, spent + CallCost(bytes_sent=n_sent, bytes_received=len(answer) + FRAME_BYTES)

    def close(self) -> None:
        """Calls under way are TierUnavailable."""
        if self.stream is not None:
            self.stream.close()
        self.channel.close()


class ChannelPool:
    """The channel in use, and those before it on which calls are still under way. Thread-safe.

    Args:
        tier: whose calls these are, for errors.
        dial: opens a channel.
    """

    def __init__(self, tier: str, dial: Callable[[], TierChannel]) -> None:
        self._tier = tier
        self._dial = dial
        self._lock = threading.Lock()  # over all below
        self._channel = dial()
        self._n_calls = {self._channel: 0}  # under way on each channel that is open
        self._is_closed = False

    @contextmanager
    def use(self) -> Iterator[TierChannel]:
        """The channel in use, which stays open while the block runs.

        Raises:
            TierUnavailable: all are closed, or were in the block.
        """
        with self._lock:
            channel = self._channel
            if self._is_closed:
                raise TierUnavailable(self._tier, "closed")
            self._n_calls[channel] += 1
        try:
            yield channel
        except ValueError:  # gRPC's word for a channel that was closed before the call was on its way
            if not self._is_closed:
                raise
            raise TierUnavailable(self._tier, "closed") from None
        finally:
            with self._lock:
                self._n_calls[channel] -= 1
                is_over = self._is_over(channel)
            if is_over:
                channel.close()

    def redial(self) -> None:
        """A new channel from here on. The old one is closed when the last call on it has ended; every call has a
        deadline.

        Raises:
            ConfigError: there is no new channel; the old one stays.
        """
        channel = self._dial()
        with self._lock:
            old, is_late = self._channel, self._is_closed
            if not is_late:
                self._channel = channel
                self._n_calls[channel] = 0
                is_over = self._is_over(old)
        if is_late:
            channel.close()
        elif is_over:
            old.close()

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            left = list(self._n_calls)
        for channel in left:
            channel.close()

    def _is_over(self, channel: TierChannel) -> bool:
        """Whether nobody will call on it any more; then it is no longer ours. To be called with the lock held."""
        if channel is self._channel or self._n_calls[channel]:
            return False
        del self._n_calls[channel]
        return True
