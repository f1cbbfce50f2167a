"""A local door: programs on this device ask the cascade over the Open Inference Protocol.

Each row of a call becomes an example of the source; the call is answered once the outcomes of all its rows are in the
sink. The calls are served by an event loop on a thread of its own (`doorway.py`), the examples are taken on its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from functools import partial

import numpy as np

from coe.cascade.errors import TierTimeout, TierUnavailable, TooManyCalls
from coe.cascade.types import Array, Batch
from coe.wire.plane import Decided, Plane, Request, Served

from .answers import Answered, decisions_of
from .base import Example
from .config import DoorConfig
from .doorway import Doorway

POLL_S = 0.2
GRACE_S = 5.0  # for the calls under way, as the door closes
LEAST_RETRY_S, MOST_RETRY_S = 0.05, 5.0  # of the hint when to come again

_asked: ContextVar[str] = ContextVar("coe_door_request", default="")  # the id of the request that is being served


class DoorSource:
    """Examples of the programs that call. It never ends by itself.

    Args:
        once: nobody can have asked before the door is open: no example at all.
        tell: told where the door is.
    """

    def __init__(self, config: DoorConfig, *, once: bool = False, tell: Callable[[str], None] = lambda line: None):
        self.config = config
        self.once = once
        self.port = 0  # where it listens, once it does
        self.desk = Desk(config.model, config.max_queued)
        self._tell = tell

    def examples(self, stop: threading.Event) -> Iterator[Example]:
        """Examples until told to stop.

        Raises:
            ConfigError: the address is taken.
        """
        if self.once:
            return
        self.desk = Desk(self.config.model, self.config.max_queued)
        plane = Plane(
            {self.config.model: self._served()},
            max_rows=self.config.max_rows,
            max_bytes=self.config.max_message_bytes,
            gates=(self.desk,),
        )
        doorway = Doorway(self.config, plane)
        try:
            self.port = doorway.port
            self._tell(f"door: {self.config.model} on {doorway.address}")
            while not stop.is_set():
                example = self.desk.take(POLL_S)
                if example is not None:
                    yield example
        finally:
            plane.accepts = False
            self.desk.close(GRACE_S)
            doorway.close()

    def _served(self) -> Served:
        task = self.config.task
        is_bytes = task.contract.kind in ("image", "text")
        offered: tuple[str, tuple[int, ...]] = ("BYTES", (-1,)) if is_bytes else ("FP32", (-1, *task.contract.shape))
        return Served(
            self.config.model,
            task.fingerprint,
            task.labels,
            offered,
            self.desk,
            self.desk.decide,
            self.config.n_tiers,
        )


class Call:
    """One request that waits for the outcomes of its rows."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.is_over = False  # nobody waits for it any more
        self._loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[Sequence[Answered]] = self._loop.create_future()
        self._outcomes: list[Answered | None] = [None] * len(batch)
        self._left = len(batch)
        self._lock = threading.Lock()

    def example(self, row: int) -> Example:
        batch = self.batch
        answered = partial(self.take, row)
        return Example(batch.ids[row], batch.x[row], deadline=batch.deadline, answered=answered)

    def take(self, row: int, outcome: Answered) -> None:
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


class Desk:
    """Where calls wait for the agent. To the plane it is a gate and the model's door, too: rows stay as they came.

    Args:
        name: of the model, for errors.
        max_queued: examples that wait for the agent.
    """

    def __init__(self, name: str, max_queued: int) -> None:
        self.name = name
        self.max_queued = max_queued
        self.n_taken = self.n_refused = self.n_given_up = 0  # examples; calls; examples nobody waited for any more
        self._rows: deque[tuple[Call, int]] = deque()
        self._calls: set[Call] = set()
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
        call = Call(batch)
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
        return Decided(decisions_of(batch, outcomes))

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
