"""Delivery to one sink: at once, or through a bounded queue with retries, and how it fares."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .base import Record, Writer

Facts = dict[str, Any]
OnSinkChange = Callable[
    ["SinkHealth", Facts], None
]  # told once as an outlet begins to fail, and once as it works again, say


@dataclass(frozen=True, slots=True)
class SinkStatus:
    """One sink at one moment.

    Args:
        name: where it writes; kind: as the config calls it.
        written, dropped: records so far.
        failing_since: `time.monotonic()` second; None: it works.
        last_error: the latest one; "" where there was none.
        queued: records that wait for it.
    """

    name: str
    kind: str
    written: int
    dropped: int
    failing_since: float | None
    last_error: str
    queued: int


class SinkHealth:
    """A writer's state. Written by one thread at a time; a reader may see it mid-way."""

    def __init__(self, name: str, kind: str) -> None:
        self.name = name
        self.kind = kind
        self.written = self.dropped = 0
        self.failing_since: float | None = None
        self.last_error = ""
        self.on_change: OnSinkChange = lambda health, facts: None
        self._dropped_before = 0  # the present outage

    @property
    def queued(self) -> int:
        return 0

    def status(self) -> SinkStatus:
        return SinkStatus(
            self.name, self.kind, self.written, self.dropped, self.failing_since, self.last_error, self.queued
        )

    def works(self) -> None:
        """It took something."""
        if self.failing_since is not None:
            away_s = time.monotonic() - self.failing_since
            self.failing_since = None
            self._say("back", away_s=round(away_s, 3), dropped=self.dropped - self._dropped_before)

    def fails(self, error: Exception) -> None:
        """It did not."""
        self.last_error = error_line(error)
        if self.failing_since is None:
            self.failing_since = time.monotonic()
            self._dropped_before = self.dropped
            self._say("failing", error=self.last_error)

    def _say(self, state: str, **facts: Any) -> None:
        self.on_change(self, {"sink": self.name, "kind": self.kind, "state": state, **facts})


class DirectSink(SinkHealth):
    """A writer that is quick: it takes each record at once. One that it could not take is lost to it, and counted."""

    def __init__(self, writer: Writer, name: str = "", kind: str = "") -> None:
        super().__init__(name or type(writer).__name__, kind or type(writer).__name__)
        self.writer = writer

    def take(self, record: Record) -> OSError | None:
        """Why it was not taken; None: it was."""
        try:
            self.writer.write(record)
        except OSError as error:
            self.fails(error)
            self.dropped += 1
            return error
        self.written += 1
        if self.failing_since is not None:
            self.works()
        return None


def error_line(error: Exception) -> str:
    """An error in a line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return (str(error) or type(error).__name__).splitlines()[0]


FIRST_WAIT_S, MOST_WAIT_S = 0.5, 30.0  # before what could not be sent is tried again
MOST_QUEUED = 1000
FLUSH_S = 5.0


class PermanentFailure(Exception):
    """These records will never be taken: trying again will not help."""


class Transport(Protocol):
    """What takes records somewhere else.

    `most` records go together; with fewer it waits `gather_s` for more.
    """

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def most(self) -> int: ...
    @property
    def gather_s(self) -> float: ...

    def send(self, records: Sequence[Record]) -> None:
        """Returns once they have arrived. May be given the same again after an error.

        Raises:
            OSError: not now; with `retry_after_s` where it is known when.
            PermanentFailure: never.
        """
        ...

    def close(self) -> None: ...


class BufferedSink(SinkHealth):
    """A writer around a carrier: `write` never waits and never fails.

    Args:
        max_queued: records that wait; beyond it the oldest is dropped.
        flush_s: how long `close` waits for what is left.
        first_wait_s, most_wait_s: before the first new try; each further one waits twice as long, up to the latter.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        max_queued: int = MOST_QUEUED,
        flush_s: float = FLUSH_S,
        first_wait_s: float = FIRST_WAIT_S,
        most_wait_s: float = MOST_WAIT_S,
    ) -> None:
        super().__init__(transport.name, transport.kind)
        self.transport = transport
        self.max_queued = max_queued
        self.flush_s = flush_s
        self._first_wait_s, self._most_wait_s = first_wait_s, most_wait_s
        self._waiting: deque[Record] = deque()
        self._in_hand: Sequence[Record] = ()
        self._told_full = False  # since the queue was half empty
        self._turn = threading.Condition()
        self._retry_after_s: float | None = None  # as the other side asked for
        self._ends_at: float | None = None  # `time.monotonic()` second; None: not told to end
        self._thread = threading.Thread(target=self._run, name=f"coe-sink-{transport.kind}", daemon=True)
        self._thread.start()

    @property
    def queued(self) -> int:
        return len(self._waiting) + len(self._in_hand)

    def write(self, record: Record) -> None:
        with self._turn:
            is_full = len(self._waiting) >= self.max_queued
            if is_full:
                self._waiting.popleft()
                self.dropped += 1
            self._waiting.append(record)
            self._turn.notify_all()
        if is_full and not self._told_full:
            self._told_full = True
            self._say("full", queue=self.max_queued)

    def missing(self, keys: Collection[str]) -> Collection[str]:
        return keys  # who got what is not known here

    def begin_close(self) -> None:
        """No more waiting for company, nor longer than `flush_s` from now."""
        with self._turn:
            if self._ends_at is None:
                self._ends_at = time.monotonic() + self.flush_s
            self._turn.notify_all()

    def close(self) -> None:
        """What has not arrived within `flush_s` is dropped, and counted."""
        self.begin_close()
        assert self._ends_at is not None
        self._thread.join(max(0.0, self._ends_at - time.monotonic()) + 0.1)
        with self._turn:
            left = self.queued
            self._waiting.clear()
            self._in_hand = ()
        if left:
            self.dropped += left
            self._say("closed", dropped=left)
        self.transport.close()

    def _run(self) -> None:
        while records := self._gather():
            n_tries = 0
            while not self._send(records):
                if not self._wait_to_retry(n_tries):
                    return
                n_tries += 1

    def _gather(self) -> Sequence[Record]:
        """The next records to go together; none: the end."""
        transport = self.transport
        with self._turn:
            self._turn.wait_for(lambda: self._waiting or self._ends_at is not None)
            if transport.gather_s:
                self._turn.wait_for(
                    lambda: len(self._waiting) >= transport.most or self._ends_at is not None, transport.gather_s
                )
            self._told_full = self._told_full and len(self._waiting) > self.max_queued // 2
            n_records = min(len(self._waiting), transport.most)
            self._in_hand = [self._waiting.popleft() for _ in range(n_records)]
            return self._in_hand

    def _send(self, records: Sequence[Record]) -> bool:
        """Whether these are done with."""
        try:
            self.transport.send(records)
        except PermanentFailure as error:
            self.fails(error)
            self.dropped += len(records)
        except OSError as error:
            self._retry_after_s = getattr(error, "retry_after_s", None)
            self.fails(error)
            return False
        else:
            self.written += len(records)
            self.works()
        with self._turn:
            self._in_hand = ()
        return True

    def _wait_to_retry(self, n_tries: int) -> bool:
        """False: it was told to end, and the time to do so is up."""
        wait_s = min(self._first_wait_s * 2 ** min(n_tries, 20), self._most_wait_s) * random.uniform(0.5, 1.0)
        if self._retry_after_s is not None:
            wait_s = min(max(wait_s, self._retry_after_s), 10 * MOST_WAIT_S)
        start = time.monotonic()
        with self._turn:
            while True:
                now, end = time.monotonic(), start + wait_s
                if self._ends_at is not None:  # sooner, then: it may have come back
                    end = min(start + min(wait_s, self._first_wait_s), self._ends_at)
                if now >= end:
                    return self._ends_at is None or now < self._ends_at
                self._turn.wait(end - now)
