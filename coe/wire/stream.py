"""A persistent stream: many calls, of many threads, on one ModelStreamInfer. A small call costs less than by itself.

Requests are told apart by their id; answers come in any order. A call that gives up takes nothing back: its answer is
dropped when it comes. What goes wrong with the stream, and not with a request, is TierUnavailable to every call on
it, and the next call opens a new one.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from coe.cascade.errors import TierError, TierTimeout, TierUnavailable
from coe.wire import inference_pb2 as pb

from .convert import get_parameters, set_parameter
from .headers import OUTGOING, Header
from .service import FRAME_BYTES, STREAM, path
from .status import from_status
from .trace import HEADERS

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
        self._line: _Line | None = None

    def ask(
        self, request: pb.ModelInferRequest, end: float, headers: Sequence[Header], call: dict[str, float]
    ) -> pb.ModelInferResponse:
        """The answer to one request, which is given an id and a deadline.

        Args:
            end: `time.monotonic()` second by which the answer is wanted.
            headers: those of a trace and of `headers.OUTGOING` go with the request, as parameters; others are sent
                where this call opens the stream.
            call: `bytes_sent` and `bytes_received` are added to.
        Raises:
            TierError: TierUnavailable: the stream broke, and whether the server saw the request is not known;
                TierTimeout; or the server's own word about this request.
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
        waiting = _Waiting(request.SerializeToString())
        n_bytes = len(waiting.request) + FRAME_BYTES
        line = self._send(number, waiting, tuple(ours))
        if not waiting.done.acquire(timeout=max(left, 0.0)):
            line.forget(number)
            if line.answered_at < end - left:  # not a word since: it may be stuck
                self._retire(line)
            call["bytes_sent"] += n_bytes
            raise TierTimeout(self.tier, "no answer on the stream within the deadline")
        if waiting.answer is None:
            self.is_offered = self.is_offered and not line.is_refused
            raise TierUnavailable(self.tier, f"the stream ended: {line.reason}")
        call["bytes_sent"] += n_bytes
        call["bytes_received"] += waiting.n_bytes
        return self._judged(waiting.answer, line)

    def close(self) -> None:
        """End the stream; calls under way are TierUnavailable."""
        with self._lock:
            line, self._line = self._line, None
        if line is not None:
            line.close()

    def _send(self, number: str, waiting: _Waiting, headers: tuple[Header, ...]) -> _Line:
        with self._lock:
            if self._line is None or not self._line.send(number, waiting):
                self._line = _Line(self._open, headers, self.tier)
                if not self._line.send(number, waiting):  # over already: there is nobody
                    waiting.done.release()
            return self._line

    def _judged(self, answer: pb.ModelStreamInferResponse, line: _Line) -> pb.ModelInferResponse:
        if not answer.error_message:
            return answer.infer_response
        parameters = get_parameters(answer.infer_response.parameters)
        number = parameters.get(STATUS)
        code = CODES.get(number if isinstance(number, int) else -1, grpc.StatusCode.UNKNOWN)
        if code is grpc.StatusCode.UNAUTHENTICATED:  # who we are was said as the stream was opened: say it anew
            self._retire(line)
            raise TierUnavailable(self.tier, f"{code.name}: {answer.error_message}")
        error: TierError = from_status(self.tier, code, answer.error_message, str(parameters.get(RETRY_AFTER, "")))
        raise error

    def _retire(self, line: _Line) -> None:
        """Let the calls on it finish; the next one opens a new stream."""
        with self._lock:
            if self._line is line:
                self._line = None
        line.finish()


class _Waiting:
    """A call on its way. `done` is released when there is an answer, or when there will be none (None)."""

    __slots__ = ("answer", "done", "n_bytes", "request")

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.answer: pb.ModelStreamInferResponse | None = None
        self.n_bytes = 0
        self.done = threading.Lock()
        self.done.acquire()


class _Line:
    """One open stream, and the thread that reads it."""

    def __init__(self, open_stream: Any, headers: tuple[Header, ...], tier: str) -> None:
        self.reason = "closed"
        self.is_refused = False  # the server has no such method
        self.answered_at = 0.0  # `time.monotonic()` of the latest answer
        self._is_over = False
        self._is_finishing = False
        self._lock = threading.Lock()
        self._under_way: dict[str, _Waiting] = {}
        self._outbox: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._call = open_stream(self._requests(), metadata=headers or None)
        self._reader = threading.Thread(target=self._read, name=f"coe-stream-{tier}", daemon=True)
        self._reader.start()

    def send(self, number: str, waiting: _Waiting) -> bool:
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
                elif answer.error_message and not answer.infer_response.id:  # of a request we cannot tell
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

    def _taken(self, number: str) -> _Waiting | None:
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
