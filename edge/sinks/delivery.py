"""Delivery to one sink: at once, or through a bounded queue with retries; and the sink's health."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from coe.cascade.errors import ConfigError, describe_error
from coe.link import Backoff

from .base import Grouping, Record, Rereadable, Writer

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
    """A quick writer that takes each record at once. The caller counts what it could not take and will not get."""

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
            return error
        self.written += 1
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


FIRST_WAIT_S, MOST_WAIT_S = 0.5, 30.0  # before what could not be sent, or opened, is tried again


class LateWriter:
    """A file or a database that could not be opened: tried again with a record, after waits that grow.

    Args:
        open: returns the writer; raises OSError.
        error: why it could not be opened.
    """

    def __init__(self, open: Callable[[], Writer], name: str, kind: str, error: OSError) -> None:
        self.name, self.kind = name, kind
        self.error = error
        self._open = open
        self._writer: Writer | None = None
        self._backoff = Backoff(FIRST_WAIT_S, MOST_WAIT_S)
        self._retry_at = time.monotonic() + self._backoff.next_s()

    def write(self, record: Record) -> None:
        if self._writer is None and time.monotonic() >= self._retry_at:
            try:
                self._writer = self._open()
            except OSError as error:
                self.error = error
                self._retry_at = time.monotonic() + self._backoff.next_s()
        if self._writer is None:
            raise self.error
        self._writer.write(record)

    def missing(self, keys: Collection[str]) -> Collection[str]:
        return keys if self._writer is None else self._writer.missing(keys)

    def mark(self) -> str:
        return self._writer.mark() if isinstance(self._writer, Rereadable) else ""

    def since(self, mark: str) -> Iterator[Record]:
        return self._writer.since(mark) if isinstance(self._writer, Rereadable) else iter(())

    def sync(self) -> None:
        if self._writer is None:
            raise self.error
        if isinstance(self._writer, Rereadable):
            self._writer.sync()

    def commit(self) -> None:
        writer = self._writer
        if writer is not None and isinstance(writer, Grouping):
            writer.commit()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


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


MOST_QUEUED = 100_000
FLUSH_S = 5.0


class PermanentFailure(Exception):
    """These records will never be taken: sending them again will not help."""


class Transport(Protocol):
    """Sends records to another program or machine.

    At most `most` records are sent together; with fewer, `gather_s` is waited for more.
    """

    name: str
    kind: str
    most: int
    gather_s: float

    def send(self, records: Sequence[Record]) -> None:
        """Returns once they have arrived. May be called with the same again after an error.

        Raises:
            OSError: not now; with `retry_after_s` where it is known when.
            PermanentFailure: never.
        """

    def close(self) -> None: ...


class Outbox(Protocol):
    """Where the records of all sinks wait on the disk, each under a number. An error of the disk is not raised."""

    def outbox(self, sink: str, after: int, most: int) -> Sequence[tuple[int, Record]] | None: ...
    def outbox_count(self, sink: str) -> int: ...
    def outbox_holds(self, sink: str, key: str) -> bool: ...
    def update_outbox(self, sink: str, done: Sequence[int], new: Sequence[Record]) -> Sequence[int] | None: ...


@dataclass(slots=True, eq=False)
class QueuedRecord:
    """`number`: in the outbox; 0: it is in memory alone. `is_done`: it has arrived, or was dropped."""

    record: Record
    number: int = 0
    is_done: bool = False


IN_MEMORY = 1000  # records of the outbox that are read at once


class BufferedSink(SinkHealth):
    """A writer around a transport: `write` never waits and never fails.

    With an outbox, records that have not arrived at the next `commit` are stored there until they have, over restarts.
    In their order: those being sent, `_waiting`, those on the disk alone (`_stored`), `_fresh`.

    Args:
        max_queued: records that wait.
        drop: which is dropped beyond it, "oldest" or "newest".
        flush_s: how long `close` waits for what is left.
        first_wait_s, most_wait_s: between retries, as `Backoff` takes them.
        outbox_name: the sink's name in the outbox.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        max_queued: int = MOST_QUEUED,
        drop: str = "oldest",
        flush_s: float = FLUSH_S,
        first_wait_s: float = FIRST_WAIT_S,
        most_wait_s: float = MOST_WAIT_S,
        outbox: Outbox | None = None,
        outbox_name: str = "",
    ) -> None:
        super().__init__(transport.name, transport.kind)
        self.transport = transport
        self.max_queued = max_queued
        self.drop = drop
        self.flush_s = flush_s
        self.outbox = outbox
        self.outbox_name = outbox_name or transport.kind
        self.on_done: Callable[[], None] = lambda: None  # called once records of the outbox have arrived
        self._backoff = Backoff(first_wait_s, most_wait_s)
        self._waiting: deque[QueuedRecord] = deque()
        self._fresh: deque[QueuedRecord] = deque()
        self._sending: Sequence[QueuedRecord] = ()
        self._batch: Sequence[Record] = ()  # of those being sent; the same object for each attempt
        self._stored = 0 if outbox is None else outbox.outbox_count(self.outbox_name)
        self._skip = 0  # of those stored, to be dropped
        self._last = 0  # number of the last one that was read, or stored from memory
        self._done: list[int] = []  # to be removed from the outbox
        self._committing = threading.Lock()
        self._notified_full = False  # since the queue was half empty
        self._turn = threading.Condition()
        self._retry_after_s: float | None = None  # as the other side asked for
        self._ends_at: float | None = None  # `time.monotonic()` second; None: not being closed
        self._thread = threading.Thread(target=self._run, name=f"coe-sink-{transport.kind}", daemon=True)
        self._thread.start()

    @property
    def queued(self) -> int:
        return self._n_waiting + len(self._sending)

    @property
    def _n_waiting(self) -> int:
        return len(self._waiting) + self._stored + len(self._fresh)

    def write(self, record: Record) -> None:
        with self._turn:
            is_full = self._n_waiting >= self.max_queued
            if is_full:
                self.dropped += 1
                if self.drop == "oldest":
                    self._drop_oldest()
            if not is_full or self.drop == "oldest":
                self._fresh.append(QueuedRecord(record))
            self._turn.notify_all()
        if is_full and not self._notified_full:
            self._notified_full = True
            self._notify("full", queue=self.max_queued, drops=self.drop)

    def _drop_oldest(self) -> None:
        if self._stored and not self._waiting:
            self._stored -= 1
            self._skip += 1
        else:
            self._finish((self._waiting or self._fresh).popleft())

    def _finish(self, queued: QueuedRecord) -> None:
        queued.is_done = True
        if queued.number:
            self._done.append(queued.number)

    def missing(self, keys: Collection[str]) -> Collection[str]:
        outbox = self.outbox  # what arrived is not known here
        return keys if outbox is None else [key for key in keys if not outbox.outbox_holds(self.outbox_name, key)]

    def commit(self) -> None:
        """Store what has not arrived, and remove what has."""
        if self.outbox is None:
            return
        with self._committing:
            with self._turn:
                new = [queued for queued in (*self._sending, *self._waiting, *self._fresh) if not queued.number]
                done, self._done = self._done, []
            if not new and not done:
                return
            numbers = self.outbox.update_outbox(self.outbox_name, done, [queued.record for queued in new])
            with self._turn:
                if numbers is None:
                    self._done += done
                    return
                for queued, number in zip(new, numbers, strict=True):
                    queued.number = number
                    if queued.is_done:  # meanwhile
                        self._done.append(number)
                if not self._stored:
                    self._last = max([self._last, *(queued.number for queued in (*self._sending, *self._waiting))])
                while self._fresh and self._fresh[0].number:
                    queued = self._fresh.popleft()
                    if self._stored or self._skip or len(self._waiting) >= IN_MEMORY:
                        self._stored += 1
                    else:
                        self._waiting.append(queued)
                        self._last = queued.number

    def begin_close(self) -> None:
        """Gather no more records, and wait no longer than `flush_s` from now."""
        with self._turn:
            if self._ends_at is None:
                self._ends_at = time.monotonic() + self.flush_s
            self._turn.notify_all()

    def close(self) -> None:
        """What has not arrived within `flush_s` is kept in the outbox; without one it is dropped, and counted."""
        self.begin_close()
        assert self._ends_at is not None
        self._thread.join(max(0.0, self._ends_at - time.monotonic()) + 0.1)
        self.commit()
        with self._turn:
            left = [queued for queued in (*self._sending, *self._waiting, *self._fresh) if not queued.number]
            n_kept = self.queued - len(left)
            self._waiting.clear()
            self._fresh.clear()
            self._sending = ()
        if left:
            self.dropped += len(left)
            self._notify("closed", dropped=len(left))
        if n_kept:
            self._notify("waits", queue=n_kept)
        self.transport.close()

    def _run(self) -> None:
        while self._gather():
            self._backoff.reset()
            while not self._send():
                if not self._wait_to_retry():
                    return

    def _gather(self) -> bool:
        """Choose the next records to send together; False: the end."""
        transport = self.transport
        with self._turn:
            self._turn.wait_for(lambda: self._n_waiting or self._ends_at is not None)
            if transport.gather_s:
                self._turn.wait_for(
                    lambda: self._n_waiting >= transport.most or self._ends_at is not None, transport.gather_s
                )
            if self._ends_at is not None and time.monotonic() >= self._ends_at:
                return False
        if not self._waiting and (self._stored or self._skip) and not self._load():
            return self._ends_at is None  # the disk fails, or all were dropped meanwhile
        with self._turn:
            if not self._stored and not self._skip:
                while self._fresh and len(self._waiting) < transport.most:
                    self._waiting.append(self._fresh.popleft())
            self._notified_full = self._notified_full and self._n_waiting > self.max_queued // 2
            n_records = min(len(self._waiting), transport.most)
            self._sending = [self._waiting.popleft() for _ in range(n_records)]
            self._batch = [queued.record for queued in self._sending]
            return bool(self._sending) or (self._n_waiting > 0 and self._ends_at is None)

    def _load(self) -> bool:
        """Read the next records from the outbox; False where there are none now."""
        assert self.outbox is not None
        with self._committing:  # what is stored meanwhile comes after them
            found = self.outbox.outbox(self.outbox_name, self._last, IN_MEMORY)
            with self._turn:
                if found is None:
                    self._turn.wait(MOST_WAIT_S if self._ends_at is None else 0.0)
                    return False
                for number, record in found:
                    self._last = number
                    queued = QueuedRecord(record, number)
                    if self._skip:
                        self._skip -= 1
                        self._finish(queued)
                    else:
                        self._stored -= 1
                        self._waiting.append(queued)
                if not found:  # the database was damaged, and is a new one
                    self.dropped += self._stored
                    self._stored = self._skip = 0
                return bool(self._waiting)

    def _send(self) -> bool:
        """True if they were sent, or refused for good."""
        if not self._batch:
            return True
        try:
            self.transport.send(self._batch)
        except PermanentFailure as error:
            self.fails(error)
            self.dropped += len(self._batch)
        except OSError as error:
            self._retry_after_s = getattr(error, "retry_after_s", None)
            self.fails(error)
            return False
        else:
            self.written += len(self._batch)
            self.works()
        with self._turn:
            for queued in self._sending:
                self._finish(queued)
            was_stored = bool(self._done)
            self._sending = self._batch = ()
        if was_stored:
            self.on_done()
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
