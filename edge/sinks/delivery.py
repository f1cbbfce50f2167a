"""Delivery to one sink: at once, or through a bounded queue with retries; and the sink's health."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Protocol

from coe.cascade.errors import ConfigError, describe_error
from coe.link import Backoff

from .base import Grouping, Record, Writer

Facts = dict[str, Any]
OnSinkChange = Callable[["SinkHealth", Facts], None]  # called once as a sink starts to fail, once as it works again


class SinkHealth:
    """A writer's state. Written by one thread at a time; a reader may see it half-updated.

    Args:
        name: where it writes; kind: as the config calls it.
    """

    def __init__(self, name: str, kind: str) -> None:
        self.name = name
        self.kind = kind
        self.written = self.dropped = 0  # records so far
        self.failing_since: float | None = None  # `time.monotonic()` second; None: it works
        self.last_error = ""
        self.on_change: OnSinkChange = lambda health, facts: None
        self._dropped_before = 0  # the present outage

    @property
    def queued(self) -> int:
        """Records that wait to be delivered."""
        return 0

    def works(self) -> None:
        """A record was taken."""
        if self.failing_since is not None:
            away_s = time.monotonic() - self.failing_since
            self.failing_since = None
            self._notify("back", away_s=round(away_s, 3), dropped=self.dropped - self._dropped_before)

    def fails(self, error: Exception) -> None:
        """A record was not taken."""
        self.last_error = describe_error(error)
        if isinstance(error, OSError) and error.strerror and error.filename is not None:
            self.last_error = f"{error.filename}: {self.last_error}"
        if self.failing_since is None:
            self.failing_since = time.monotonic()
            self._dropped_before = self.dropped
            self._notify("failing", error=self.last_error)

    def _notify(self, state: str, **facts: Any) -> None:
        self.on_change(self, {"sink": self.name, "kind": self.kind, "state": state, **facts})


class DirectSink(SinkHealth):
    """A quick writer that takes each record at once. A record that it could not take is lost, and counted."""

    def __init__(self, writer: Writer) -> None:
        kind = type(writer).__name__
        super().__init__(getattr(writer, "name", kind), getattr(writer, "kind", kind))
        self.writer = writer

    def take(self, record: Record) -> OSError | None:
        """Why the record was not taken; None: it was."""
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

    def commit(self) -> None:
        """Have a writer that groups its records write them; those that it cannot write now it keeps."""
        if isinstance(self.writer, Grouping):
            try:
                self.writer.commit()
            except OSError as error:
                self.fails(error)


class GroupCommit:
    """Calls `commit` on a thread of its own, `seconds` after the first of some records, or once they are `count`.

    While nothing comes it does nothing. With 0 seconds, or 1 record, the caller of `add` commits itself.
    """

    def __init__(self, commit: Callable[[], None], seconds: float, count: int) -> None:
        self._commit = commit
        self._seconds = seconds
        self._count = count
        self._n = 0
        self._is_over = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self) -> None:
        """A record was written."""
        if self._seconds <= 0 or self._count <= 1:
            self._commit()
            return
        with self._changed:
            self._n += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="coe-commit", daemon=True)
                self._thread.start()
            elif self._n in (1, self._count):
                self._changed.notify_all()

    def close(self) -> None:
        """End the thread, and commit what is left."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        self._commit()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._n or self._is_over)
                self._changed.wait_for(lambda: self._n >= self._count or self._is_over, self._seconds)
                self._n = 0
                if self._is_over:
                    return
            self._commit()


def read_secret(path: Path, setting: str, encoding: str) -> str:
    """The text of a password's or a token's file.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return path.read_text(encoding).strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = describe_error(error) if isinstance(error, OSError) else f"it is not {encoding.upper()} text"
        raise ConfigError([f"{setting}: {path} cannot be read: {reason}"]) from None


FIRST_WAIT_S, MOST_WAIT_S = 0.5, 30.0  # before what could not be sent is sent again
MOST_QUEUED = 1000
FLUSH_S = 5.0


class PermanentFailure(Exception):
    """These records will never be taken: sending them again will not help."""


class Transport(Protocol):
    """Sends records to another program or machine.

    At most `most` records are sent together; with fewer, `gather_s` is waited for more.
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
        """Returns once they have arrived. May be called with the same again after an error.

        Raises:
            OSError: not now; with `retry_after_s` where it is known when.
            PermanentFailure: never.
        """
        ...

    def close(self) -> None: ...


class BufferedSink(SinkHealth):
    """A writer around a transport: `write` never waits and never fails.

    Args:
        max_queued: records that wait; beyond it the oldest is dropped.
        flush_s: how long `close` waits for what is left.
        first_wait_s, most_wait_s: between retries, as `Backoff` takes them.
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
        self._backoff = Backoff(first_wait_s, most_wait_s)
        self._waiting: deque[Record] = deque()
        self._sending: Sequence[Record] = ()
        self._notified_full = False  # since the queue was half empty
        self._turn = threading.Condition()
        self._retry_after_s: float | None = None  # as the other side asked for
        self._ends_at: float | None = None  # `time.monotonic()` second; None: not being closed
        self._thread = threading.Thread(target=self._run, name=f"coe-sink-{transport.kind}", daemon=True)
        self._thread.start()

    @property
    def queued(self) -> int:
        return len(self._waiting) + len(self._sending)

    def write(self, record: Record) -> None:
        with self._turn:
            is_full = len(self._waiting) >= self.max_queued
            if is_full:
                self._waiting.popleft()
                self.dropped += 1
            self._waiting.append(record)
            self._turn.notify_all()
        if is_full and not self._notified_full:
            self._notified_full = True
            self._notify("full", queue=self.max_queued)

    def missing(self, keys: Collection[str]) -> Collection[str]:
        return keys  # what arrived is not known here

    def commit(self) -> None:
        """Nothing: what waits is in memory."""

    def begin_close(self) -> None:
        """Gather no more records, and wait no longer than `flush_s` from now."""
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
            self._sending = ()
        if left:
            self.dropped += left
            self._notify("closed", dropped=left)
        self.transport.close()

    def _run(self) -> None:
        while records := self._gather():
            self._backoff.reset()
            while not self._send(records):
                if not self._wait_to_retry():
                    return

    def _gather(self) -> Sequence[Record]:
        """The next records to send together; none: the end."""
        transport = self.transport
        with self._turn:
            self._turn.wait_for(lambda: self._waiting or self._ends_at is not None)
            if transport.gather_s:
                self._turn.wait_for(
                    lambda: len(self._waiting) >= transport.most or self._ends_at is not None, transport.gather_s
                )
            self._notified_full = self._notified_full and len(self._waiting) > self.max_queued // 2
            n_records = min(len(self._waiting), transport.most)
            self._sending = [self._waiting.popleft() for _ in range(n_records)]
            return self._sending

    def _send(self, records: Sequence[Record]) -> bool:
        """True if they were sent, or refused for good."""
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
            self._sending = ()
        return True

    def _wait_to_retry(self) -> bool:
        """False: it is being closed, and the time for that is over."""
        wait_s = self._backoff.next_s()
        if self._retry_after_s is not None:
            wait_s = min(max(wait_s, self._retry_after_s), 10 * MOST_WAIT_S)
        start = time.monotonic()
        with self._turn:
            while True:
                now, end = time.monotonic(), start + wait_s
                if self._ends_at is not None:  # retry sooner: the other side may be back
                    end = min(start + min(wait_s, self._backoff.first_s), self._ends_at)
                if now >= end:
                    return self._ends_at is None or now < self._ends_at
                self._turn.wait(end - now)
