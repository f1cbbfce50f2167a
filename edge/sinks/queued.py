"""A writer that may be slow, or away: its records wait in a bounded queue, and a thread of its own carries them."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Collection, Sequence
from typing import Protocol

from .base import Record
from .outlet import Outlet

FIRST_WAIT_S, MOST_WAIT_S = 0.5, 30.0  # before what could not be sent is tried again
MOST_QUEUED = 1000
FLUSH_S = 5.0


class Refused(Exception):
    """These records will never be taken: trying again will not help."""


class Carrier(Protocol):
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
            Refused: never.
        """
        ...

    def close(self) -> None: ...


class Queued(Outlet):
    """A writer around a carrier: `write` never waits and never fails.

    Args:
        max_queued: records that wait; beyond it the oldest is dropped.
        flush_s: how long `close` waits for what is left.
        first_wait_s, most_wait_s: before the first new try; each further one waits twice as long, up to the latter.
    """

    def __init__(
        self,
        carrier: Carrier,
        *,
        max_queued: int = MOST_QUEUED,
        flush_s: float = FLUSH_S,
        first_wait_s: float = FIRST_WAIT_S,
        most_wait_s: float = MOST_WAIT_S,
    ) -> None:
        super().__init__(carrier.name, carrier.kind)
        self.carrier = carrier
        self.max_queued = max_queued
        self.flush_s = flush_s
        self._first_wait_s, self._most_wait_s = first_wait_s, most_wait_s
        self._waiting: deque[Record] = deque()
        self._in_hand: Sequence[Record] = ()
        self._told_full = False  # since the queue was half empty
        self._turn = threading.Condition()
        self._retry_after_s: float | None = None  # as the other side asked for
        self._ends_at: float | None = None  # `time.monotonic()` second; None: not told to end
        self._thread = threading.Thread(target=self._run, name=f"coe-sink-{carrier.kind}", daemon=True)
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
        self.carrier.close()

    def _run(self) -> None:
        while records := self._gather():
            n_tries = 0
            while not self._send(records):
                if not self._wait_to_retry(n_tries):
                    return
                n_tries += 1

    def _gather(self) -> Sequence[Record]:
        """The next records to go together; none: the end."""
        carrier = self.carrier
        with self._turn:
            self._turn.wait_for(lambda: self._waiting or self._ends_at is not None)
            if carrier.gather_s:
                self._turn.wait_for(
                    lambda: len(self._waiting) >= carrier.most or self._ends_at is not None, carrier.gather_s
                )
            self._told_full = self._told_full and len(self._waiting) > self.max_queued // 2
            n_records = min(len(self._waiting), carrier.most)
            self._in_hand = [self._waiting.popleft() for _ in range(n_records)]
            return self._in_hand

    def _send(self, records: Sequence[Record]) -> bool:
        """Whether these are done with."""
        try:
            self.carrier.send(records)
        except Refused as error:
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
