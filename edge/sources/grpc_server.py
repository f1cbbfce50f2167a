"""A local gRPC server: programs on this device ask the cascade over the Open Inference Protocol.

Each row of a call becomes an example of the source; the call is answered once the outcomes of all its rows are in the
sink. An event loop on a thread of its own serves the calls; the agent's thread takes the examples.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import socket
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import numpy as np

from coe.cascade.cascade import Decisions, Visit
from coe.cascade.errors import (
    CascadeError,
    ConfigError,
    InputError,
    NotAllowed,
    NotUsableNow,
    TierOverloaded,
    TierRefused,
    TierRejected,
    TierTimeout,
    TierUnavailable,
    TooManyCalls,
    describe_error,
)
from coe.cascade.types import Array, Batch
from coe.models.loading import import_runtime
from coe.protocol.core import Decided, InferenceCore, Request, ServedModel
from coe.protocol.service import SERVICE, server_options
from coe.protocol.servicer import InferenceServicer

from .base import Example
from .config import GrpcSourceConfig

if TYPE_CHECKING:
    from edge.sinks import Outcome

log = logging.getLogger(__name__)

ERROR_TYPES = {  # by an outcome's reason; any other is an example that cannot be read
    "unavailable": TierUnavailable,
    "timeout": TierTimeout,
    "overloaded": TierOverloaded,
    "rejected": TierRejected,
    "refused": TierRefused,
}


def joined_decisions(batch: Batch, outcomes: Sequence[Outcome]) -> Decisions:
    """The decisions of one call's rows (B,), each decided by itself, in the order of the rows.

    Raises:
        CascadeError: a row has no decision: the error of the tier that should have made it, or of the agent's decoder.
    """
    visits: list[Visit] = []
    degraded: dict[int, str] = {}
    for row, outcome in enumerate(outcomes):
        if outcome.decisions is None:
            raise error_from_outcome(outcome)
        rows = np.array([row])
        visits += (Visit(visit.first_tier, rows, visit.vote, visit.time_s) for visit in outcome.decisions.visits)
        degraded.update((row, reason) for reason in outcome.decisions.degraded.values())
    return Decisions(batch, visits, degraded)


def error_from_outcome(outcome: Outcome) -> CascadeError:
    """The error that the caller gets for an example without a decision."""
    text = outcome.error or "no decision"
    message = text.partition(": ")[2]
    if outcome.reason == "held-back":
        return NotAllowed(message)
    kind = ERROR_TYPES.get(outcome.reason)
    return InputError(text) if kind is None else kind(outcome.id, message)


T = TypeVar("T")
START_S = 10.0
STOP_S = 1.0  # for responses that are being sent
MODE = 0o660  # of a Unix socket: the agent's user and its group may connect


def _health_module(name: str) -> Any:
    return import_runtime(f"grpc_health.v1.{name}", "gRPC health", "pip install 'coe-cascade[edge]'")


class LocalServer:
    """Serves `core` until closed.

    Raises:
        ConfigError: the address is taken, or cannot be bound.
        RuntimeMissing: a package is not installed.
    """

    def __init__(self, config: GrpcSourceConfig, core: InferenceCore) -> None:
        self.config = config
        self.port = 0
        self._core = core
        self._health = _health_module("health").aio.HealthServicer()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="coe-grpc", daemon=True)
        self._thread.start()
        try:
            self._server = self._run(self._start(), START_S)
        except BaseException:
            self._end()
            raise

    @property
    def address(self) -> str:
        return self.config.address if self.config.path else f"{self.config.host}:{self.port}"

    def close(self) -> None:
        """Give the calls under way a moment, then stop, and remove the Unix socket. Twice is fine."""
        if self._loop.is_closed():
            return
        try:
            self._run(self._stop(), STOP_S + START_S)
        finally:
            self._end()
            if self.config.path is not None:
                self.config.path.unlink(missing_ok=True)

    async def _start(self) -> grpc.aio.Server:
        self._servicer = InferenceServicer(self._core)
        server = grpc.aio.server(options=server_options(self.config.max_message_bytes))
        server.add_generic_rpc_handlers((self._servicer.handler(),))
        _health_module("health_pb2_grpc").add_HealthServicer_to_server(self._health, server)
        self.port = self._bind(server)
        await server.start()
        self._core.accepts = True
        await self._set_health("SERVING")
        return server

    async def _stop(self) -> None:
        await self._set_health("NOT_SERVING")
        self._servicer.end_streams()
        await self._server.stop(STOP_S)

    async def _set_health(self, state: str) -> None:
        status = getattr(_health_module("health_pb2").HealthCheckResponse, state)
        for name in ("", SERVICE, self.config.model):
            await self._health.set(name, status)

    def _bind(self, server: grpc.aio.Server) -> int:
        config = self.config
        bracketed = f"[{config.host}]" if ":" in config.host and not config.host.startswith("[") else config.host
        address = f"{bracketed}:{config.port}" if config.path is None else f"unix:{config.path}"
        if config.path is not None:
            _clear(config.path)
        mask = os.umask(0o777 & ~MODE)  # nobody else can connect before its mode is set
        port = 0
        try:
            with contextlib.suppress(RuntimeError):
                port = server.add_insecure_port(address)
        finally:
            os.umask(mask)
        if not port:
            raise NotUsableNow([f"source.address: expected a free address, got {address} which cannot be bound"])
        if config.path is not None:
            config.path.chmod(MODE)
        return port

    def _run(self, work: Coroutine[Any, Any, T], seconds: float) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(seconds)

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(START_S)
        if not self._loop.is_running():
            self._loop.close()


def _clear(path: Path) -> None:
    """Remove the socket of an agent that was killed; gRPC itself would also remove one that is in use.

    Raises:
        ConfigError: it is in use, or no socket, or its folder does not exist.
    """
    if not path.parent.is_dir():
        raise ConfigError([f"source.address: expected a folder for the socket, got {path.parent} (create it)"])
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError([f"source.address: expected a socket or nothing at {path}, got a file (move it away)"])
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as trial:
        trial.settimeout(1.0)
        try:
            trial.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise NotUsableNow([f"source.address: {path} cannot be used: {describe_error(error)}"]) from None
    raise NotUsableNow([f"source.address: expected a free address, got {path} where another program answers"])


POLL_S = 0.2
GRACE_S = 5.0  # for the calls under way, as the server stops
LEAST_RETRY_S, MOST_RETRY_S = 0.05, 5.0  # of the retry-after hint

_request_id: ContextVar[str] = ContextVar("coe_request_id", default="")  # of the request that is being served


class GrpcSource:
    """Examples of the programs that call. It never ends by itself.

    Args:
        once: give no example at all: nobody can have called before the server listens.
    """

    def __init__(self, config: GrpcSourceConfig, *, once: bool = False):
        self.config = config
        self.once = once
        self.port = 0  # where it listens, once it does
        self.queue = CallQueue(config.model, config.max_queued)

    def examples(self, stop: threading.Event) -> Iterator[Example]:
        """Examples until `stop` is set.

        Raises:
            ConfigError: the address is taken.
        """
        if self.once:
            return
        self.queue = CallQueue(self.config.model, self.config.max_queued)
        core = InferenceCore(
            {self.config.model: self._served()},
            max_rows=self.config.max_rows,
            max_bytes=self.config.max_message_bytes,
            gates=(self.queue,),
        )
        server = LocalServer(self.config, core)
        try:
            self.port = server.port
            log.info("serving %s on %s", self.config.model, server.address)
            while not stop.is_set():
                example = self.queue.take(POLL_S)
                if example is not None:
                    yield example
        finally:
            core.accepts = False
            self.queue.close(GRACE_S)
            server.close()

    def _served(self) -> ServedModel:
        task = self.config.task
        is_bytes = task.input_spec.kind in ("image", "text")
        offered: tuple[str, tuple[int, ...]] = ("BYTES", (-1,)) if is_bytes else ("FP32", (-1, *task.input_spec.shape))
        return ServedModel(
            self.config.model,
            task.fingerprint,
            task.labels,
            offered,
            self.queue,
            self.queue.decide,
            self.config.n_tiers,
        )


class PendingCall:
    """One request that waits for the outcomes of its rows."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.is_over = False  # its caller no longer waits
        self._loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[Sequence[Outcome]] = self._loop.create_future()
        self._outcomes: list[Outcome | None] = [None] * len(batch)
        self._left = len(batch)
        self._lock = threading.Lock()

    def example(self, row: int) -> Example:
        batch = self.batch
        answered = partial(self.take, row)
        return Example(batch.ids[row], batch.x[row], deadline=batch.deadline, answered=answered)

    def take(self, row: int, outcome: Outcome) -> None:
        """Set a row's outcome, from a thread of the agent's."""
        with self._lock:
            self._outcomes[row] = outcome
            self._left -= 1
            is_whole = not self._left
        if is_whole:
            outcomes = [outcome for outcome in self._outcomes if outcome is not None]
            self._settle(lambda: self.answer.set_result(outcomes))

    def fail(self, error: Exception) -> None:
        """Have the caller's wait end with this error."""
        self._settle(lambda: self.answer.set_exception(error))

    def _settle(self, settle: Callable[[], None]) -> None:
        def settle_once() -> None:
            if not self.answer.done():
                settle()

        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits
            self._loop.call_soon_threadsafe(settle_once)


class CallQueue:
    """Where calls wait for the agent. To `InferenceCore` it is a gate and the model's decoder: rows stay as they came.

    Args:
        name: of the model, for errors.
        max_queued: examples that wait for the agent.
    """

    def __init__(self, name: str, max_queued: int) -> None:
        self.name = name
        self.max_queued = max_queued
        self.n_taken = self.n_refused = self.n_given_up = 0  # examples; calls; examples whose caller had gone
        self._rows: deque[tuple[PendingCall, int]] = deque()
        self._calls: set[PendingCall] = set()
        self._ready = threading.Condition()
        self._is_closed = False
        self._taken_at: float | None = None
        self._example_s = 0.01  # moving average of the agent's time for one
        self._prefix = f"{os.getpid():x}-{os.urandom(6).hex()}"  # of ids, where callers give none
        self._numbers = itertools.count(1)

    @property
    def n_queued(self) -> int:
        return len(self._rows)

    def enter(self, request: Request) -> None:
        n_rows = request.n_rows
        if self._rows and len(self._rows) + n_rows > self.max_queued:
            self.n_refused += 1
            hint = min(max(len(self._rows) * self._example_s, LEAST_RETRY_S), MOST_RETRY_S)
            message = f"{len(self._rows)} examples wait, at most {self.max_queued} may"
            raise TooManyCalls(self.name, message, retry_after_s=hint)
        _request_id.set(request.id or f"{self._prefix}-{next(self._numbers)}")

    def leave(self, request: Request) -> None:
        pass

    def batch(self, ids: Sequence[str], values: Array, deadline: float = np.inf) -> Batch:
        """The rows (B,) as they came: the agent decodes each by itself."""
        x = np.empty(len(values), dtype=object)
        for row, value in enumerate(values):
            x[row] = value
        name = _request_id.get()
        names = (name,) if len(x) == 1 else tuple(f"{name}/{row}" for row in range(len(x)))
        return Batch(names, x, None, deadline)

    async def decide(self, batch: Batch) -> Decided:
        """The agent's decisions.

        Raises:
            CascadeError: a row has none, or the server stops.
        """
        call = PendingCall(batch)
        with self._ready:
            if self._is_closed:
                raise TierUnavailable(self.name, "the agent stops")
            self._calls.add(call)
            self._rows.extend((call, row) for row in range(len(batch)))
            self._ready.notify()
        left_s = batch.deadline - time.monotonic()
        try:
            async with asyncio.timeout(left_s if left_s < np.inf else None):
                outcomes = await call.answer
        except TimeoutError:
            raise TierTimeout(self.name, "the agent has not decided it within the call's deadline") from None
        finally:
            call.is_over = True
            with self._ready:
                self._calls.discard(call)
                self._ready.notify_all()
        return Decided(joined_decisions(batch, outcomes))

    def take(self, seconds: float) -> Example | None:
        """The next example whose caller still waits; None: none came within `seconds`."""
        with self._ready:
            now = time.monotonic()
            if self._taken_at is not None:
                self._example_s += 0.1 * (min(now - self._taken_at, 10.0) - self._example_s)
                self._taken_at = None
            self._ready.wait_for(lambda: self._rows, seconds)
            while self._rows:
                call, row = self._rows.popleft()
                if call.is_over:
                    self.n_given_up += 1
                    continue
                self.n_taken += 1
                self._taken_at = time.monotonic()
                return call.example(row)
        return None

    def close(self, grace_s: float) -> None:
        """Refuse the calls not begun; give those under way `grace_s` to be answered."""
        with self._ready:
            self._is_closed = True
            waiting = {call for call, _ in self._rows}
            self._rows.clear()
            for call in waiting:
                call.fail(TierUnavailable(self.name, "the agent stops"))
            self._ready.wait_for(lambda: not self._calls, grace_s)
            for call in self._calls:
                call.fail(TierUnavailable(self.name, "the agent stopped before it had decided"))
