"""A local gRPC server: programs on this device ask the cascade over the Open Inference Protocol.

Each row of a call becomes an example of the source; the call is answered once the outcomes of all its rows are in the
sink. The calls are served by an event loop on a thread of its own (`doorway.py`), the examples are taken on its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import stat
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import grpc
import numpy as np

from coe.cascade.cascade import Decisions, Visit
from coe.cascade.errors import (
    CascadeError,
    ConfigError,
    InputError,
    NotAllowed,
    TierOverloaded,
    TierRejected,
    TierTimeout,
    TierUnavailable,
    TooManyCalls,
)
from coe.cascade.types import Array, Batch, Decision, Vote, added_calls
from coe.models.loading import import_runtime
from coe.protocol.core import Decided, InferenceCore, Request, ServedModel
from coe.protocol.service import SERVICE, server_options
from coe.protocol.servicer import InferenceServicer

from .base import Example
from .config import GrpcSourceConfig


class OutcomeLike(Protocol):
    """What the agent's outcome says of an example."""

    @property
    def id(self) -> str: ...
    @property
    def decision(self) -> Decision | None: ...
    @property
    def error(self) -> str | None: ...
    @property
    def reason(self) -> str: ...


ERROR_TYPES = {  # by an outcome's reason; any other is an example that cannot be read
    "unavailable": TierUnavailable,
    "timeout": TierTimeout,
    "overloaded": TierOverloaded,
    "rejected": TierRejected,
}


def decisions_from_outcomes(batch: Batch, outcomes: Sequence[OutcomeLike]) -> Decisions:
    """B decisions of one call, in the order of its rows.

    To the caller the device is one tier that is a cascade: which of its tiers answered is in `exit_tier`.

    Raises:
        CascadeError: a row has no decision; as the tier that should have given it, or the agent's door, put it.
    """
    rows_of: dict[int, list[int]] = defaultdict(list)  # by the number of members of the tier that answered
    decisions: list[Decision] = []
    for row, outcome in enumerate(outcomes):
        if outcome.decision is None:
            raise error_from_outcome(outcome)
        decisions.append(outcome.decision)
        rows_of[outcome.decision.n_members].append(row)
    return Decisions(batch, [_visit_from_rows(decisions, np.array(rows)) for rows in rows_of.values()], {})


def error_from_outcome(outcome: OutcomeLike) -> CascadeError:
    """What the caller is told of an example without a decision."""
    text = outcome.error or "no decision"
    told = text.partition(": ")[2]
    if outcome.reason == "held-back":
        return NotAllowed(told)
    kind = ERROR_TYPES.get(outcome.reason)
    return InputError(text) if kind is None else kind(outcome.id, told)


def _visit_from_rows(decisions: Sequence[Decision], rows: Array) -> Visit:
    """The vote on `rows` (A,), all by tiers of as many members."""
    chosen = [decisions[row] for row in rows]
    n_tiers = max(len(decision.tier_votes) for decision in chosen)
    votes = np.full((len(chosen), n_tiers), np.nan, dtype=np.float32)
    for at, decision in enumerate(chosen):
        votes[at, : len(decision.tier_votes)] = decision.tier_votes
    asked = np.array([decision.asked for decision in chosen])
    shares = np.array([decision.vote for decision in chosen])
    reasons = tuple(decision.degraded for decision in chosen)
    vote = Vote(
        labels=np.array([decision.label for decision in chosen]),
        count=np.rint(shares * asked).astype(np.int64),
        asked=asked,
        n_members=chosen[0].n_members,
        score=np.array([decision.score for decision in chosen], dtype=np.float32),
        exit_tier=np.array([decision.exit_tier for decision in chosen]),
        tier_votes=votes,
        degraded=reasons if any(reasons) else None,
        call=added_calls(decision.call for decision in chosen),
    )
    return Visit(1, rows, vote, max(sum(decision.tier_times_s) for decision in chosen))


T = TypeVar("T")
START_S = 10.0
STOP_S = 1.0  # for answers that are on their way out
MODE = 0o660  # of a Unix socket: the agent's user and its group may ask


class LocalServer:
    """Serves `plane` until closed.

    Raises:
        ConfigError: the address is taken, or cannot be bound.
        RuntimeMissing: a package is not installed.
    """

    def __init__(self, config: GrpcSourceConfig, plane: InferenceCore) -> None:
        self.config = config
        self.port = 0
        self._plane = plane
        self._health = import_runtime(
            "grpc_health.v1.health", "gRPC health", "pip install 'coe-cascade[edge]'"
        ).aio.HealthServicer()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="coe-door", daemon=True)
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
        """Answers under way have a moment; then the door is shut, and its socket gone. Twice is fine."""
        if self._loop.is_closed():
            return
        try:
            self._run(self._stop(), STOP_S + START_S)
        finally:
            self._end()
            if self.config.path is not None:
                self.config.path.unlink(missing_ok=True)

    async def _start(self) -> grpc.aio.Server:
        self._servicer = InferenceServicer(self._plane)
        server = grpc.aio.server(options=server_options(self.config.max_message_bytes))
        server.add_generic_rpc_handlers((self._servicer.handler(),))
        health_pb2_grpc = import_runtime(
            "grpc_health.v1.health_pb2_grpc", "gRPC health", "pip install 'coe-cascade[edge]'"
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        self.port = self._bind(server)
        await server.start()
        self._plane.accepts = True
        await self._tell_health("SERVING")
        return server

    async def _stop(self) -> None:
        await self._tell_health("NOT_SERVING")
        self._servicer.end_streams()
        await self._server.stop(STOP_S)

    async def _tell_health(self, state: str) -> None:
        pb2 = import_runtime("grpc_health.v1.health_pb2", "gRPC health", "pip install 'coe-cascade[edge]'")
        for name in ("", SERVICE, self.config.model):
            await self._health.set(name, getattr(pb2.HealthCheckResponse, state))

    def _bind(self, server: grpc.aio.Server) -> int:
        config = self.config
        bracketed = f"[{config.host}]" if ":" in config.host and not config.host.startswith("[") else config.host
        address = f"{bracketed}:{config.port}" if config.path is None else f"unix:{config.path}"
        if config.path is not None:
            _clear(config.path)
        mask = os.umask(0o777 & ~MODE)  # nobody else gets in between its making and its mode
        port = 0
        try:
            with contextlib.suppress(RuntimeError):
                port = server.add_insecure_port(address)
        finally:
            os.umask(mask)
        if not port:
            raise ConfigError([f"source.address: expected a free address, got {address} which cannot be bound"])
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
    """Remove the socket of an agent that was killed; gRPC itself would remove that of one that lives, too.

    Raises:
        ConfigError: it is in use, or no socket, or its folder is not there.
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
            raise ConfigError([f"source.address: {path} cannot be used: {error.strerror or error}"]) from None
    raise ConfigError([f"source.address: expected a free address, got {path} where another program answers"])


POLL_S = 0.2
GRACE_S = 5.0  # for the calls under way, as the door closes
LEAST_RETRY_S, MOST_RETRY_S = 0.05, 5.0  # of the hint when to come again

_asked: ContextVar[str] = ContextVar("coe_door_request", default="")  # the id of the request that is being served


class GrpcSource:
    """Examples of the programs that call. It never ends by itself.

    Args:
        once: nobody can have asked before the door is open: no example at all.
        tell: told where the door is.
    """

    def __init__(
        self, config: GrpcSourceConfig, *, once: bool = False, tell: Callable[[str], None] = lambda line: None
    ):
        self.config = config
        self.once = once
        self.port = 0  # where it listens, once it does
        self.queue = CallQueue(config.model, config.max_queued)
        self._tell = tell

    def examples(self, stop: threading.Event) -> Iterator[Example]:
        """Examples until told to stop.

        Raises:
            ConfigError: the address is taken.
        """
        if self.once:
            return
        self.queue = CallQueue(self.config.model, self.config.max_queued)
        plane = InferenceCore(
            {self.config.model: self._served()},
            max_rows=self.config.max_rows,
            max_bytes=self.config.max_message_bytes,
            gates=(self.queue,),
        )
        server = LocalServer(self.config, plane)
        try:
            self.port = server.port
            self._tell(f"door: {self.config.model} on {server.address}")
            while not stop.is_set():
                example = self.queue.take(POLL_S)
                if example is not None:
                    yield example
        finally:
            plane.accepts = False
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
        self.is_over = False  # nobody waits for it any more
        self._loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[Sequence[OutcomeLike]] = self._loop.create_future()
        self._outcomes: list[OutcomeLike | None] = [None] * len(batch)
        self._left = len(batch)
        self._lock = threading.Lock()

    def example(self, row: int) -> Example:
        batch = self.batch
        answered = partial(self.take, row)
        return Example(batch.ids[row], batch.x[row], deadline=batch.deadline, answered=answered)

    def take(self, row: int, outcome: OutcomeLike) -> None:
        """A row's outcome, from a thread of the agent's."""
        with self._lock:
            self._outcomes[row] = outcome
            self._left -= 1
            is_whole = not self._left
        if is_whole:
            outcomes = [outcome for outcome in self._outcomes if outcome is not None]
            self._settle(lambda: self.answer.set_result(outcomes))

    def fail(self, error: Exception) -> None:
        """There will be no outcome."""
        self._settle(lambda: self.answer.set_exception(error))

    def _settle(self, settle: Callable[[], None]) -> None:
        def settle_once() -> None:
            if not self.answer.done():
                settle()

        with contextlib.suppress(RuntimeError):  # the door is closed, and nobody waits
            self._loop.call_soon_threadsafe(settle_once)


class CallQueue:
    """Where calls wait for the agent. To the plane it is a gate and the model's door, too: rows stay as they came.

    Args:
        name: of the model, for errors.
        max_queued: examples that wait for the agent.
    """

    def __init__(self, name: str, max_queued: int) -> None:
        self.name = name
        self.max_queued = max_queued
        self.n_taken = self.n_refused = self.n_given_up = 0  # examples; calls; examples nobody waited for any more
        self._rows: deque[tuple[PendingCall, int]] = deque()
        self._calls: set[PendingCall] = set()
        self._ready = threading.Condition()
        self._is_closed = False
        self._taken_at: float | None = None
        self._example_s = 0.01  # that the agent takes for one, lately
        self._prefix = f"{os.getpid():x}-{time.time_ns() // 1_000_000:x}"  # of ids, where callers give none
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
        _asked.set(request.id or f"{self._prefix}-{next(self._numbers)}")

    def leave(self, request: Request) -> None:
        pass

    def batch(self, ids: Sequence[str], values: Array, deadline: float = np.inf) -> Batch:
        """The rows (B,) as they came: the agent's own door opens each."""
        x = np.empty(len(values), dtype=object)
        for row, value in enumerate(values):
            x[row] = value
        asked = _asked.get()
        names = (asked,) if len(x) == 1 else tuple(f"{asked}/{row}" for row in range(len(x)))
        return Batch(names, x, None, deadline)

    async def decide(self, batch: Batch) -> Decided:
        """The agent's decisions.

        Raises:
            CascadeError: a row has none, or the door closes.
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
        return Decided(decisions_from_outcomes(batch, outcomes))

    def take(self, seconds: float) -> Example | None:
        """The next example that somebody waits for; None: none came within `seconds`."""
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
        """Calls that are not begun are refused; those under way have `grace_s` to be answered."""
        with self._ready:
            self._is_closed = True
            waiting = {call for call, _ in self._rows}
            self._rows.clear()
            for call in waiting:
                call.fail(TierUnavailable(self.name, "the agent stops"))
            self._ready.wait_for(lambda: not self._calls, grace_s)
            for call in self._calls:
                call.fail(TierUnavailable(self.name, "the agent stopped before it had decided"))
