"""Dynamic batching: rows of many callers go through a tier together.

There is no batching thread. The first caller to find the tier idle leads: it takes what is queued, asks the tier
once, hands each caller its own rows, and passes the lead on. An idle tier is thus asked at once, on the caller's
own thread; under load, what arrived during one batch makes up the next.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import replace

import numpy as np

from coe.cascade.errors import InputError, TierOverloaded, TierTimeout
from coe.cascade.rule import DeferralRule
from coe.cascade.tier import Tier
from coe.cascade.types import Array, Batch, Vote, added_calls


class _Ticket:
    """One caller's piece of work, waiting for its vote."""

    __slots__ = ("batch", "error", "leads", "queued_at", "rule", "vote", "wake")

    def __init__(self, batch: Batch, rule: DeferralRule) -> None:
        self.batch = batch
        self.rule = rule
        self.vote: Vote | None = None
        self.error: Exception | None = None
        self.leads = False
        self.queued_at = time.perf_counter()
        self.wake = threading.Lock()  # held until there is news: a vote, an error, or the lead
        self.wake.acquire()

    @property
    def key(self) -> tuple[object, ...]:
        """Only rows of one shape, dtype and rule go together."""
        return (self.rule, self.batch.x.shape[1:], self.batch.x.dtype)


class BatchedTier:
    """`tier`, asked by many threads at once. Thread-safe, and a tier itself.

    Args:
        max_batch: most rows in one call of the tier.
        max_delay_s: how long a leader with fewer rows waits for more; 0: not at all.
        max_queued: most rows waiting; beyond it callers are refused at once.
    """

    def __init__(self, tier: Tier, *, max_batch: int = 64, max_delay_s: float = 0.0, max_queued: int = 1024) -> None:
        self.tier = tier
        self.name = tier.name
        self.rule = tier.rule
        self.max_batch = max_batch
        self.max_delay_s = max_delay_s
        self.max_queued = max_queued
        self.batch_sizes: deque[int] = deque(maxlen=1000)
        self._lock = threading.Lock()
        self._more = threading.Condition(self._lock)
        self._queue: deque[_Ticket] = deque()
        self._n_queued = 0
        self._is_led = False

    @property
    def n_tiers(self) -> int:
        return self.tier.n_tiers

    @property
    def waits(self) -> bool:
        return self.tier.waits

    def vote(self, batch: Batch, rule: DeferralRule) -> Vote:
        """The tier's say on these rows, voted on together with other callers' rows.

        Raises:
            TierOverloaded: too many rows are waiting.
            TierTimeout: the batch's deadline passed in the queue.
        """
        n_rows = len(batch)
        if n_rows > self.max_batch:
            return self._in_pieces(batch, rule)
        ticket = _Ticket(batch, rule)
        with self._lock:
            if self._n_queued and self._n_queued + n_rows > self.max_queued:  # an empty queue takes any batch
                raise TierOverloaded(self.name, f"{self._n_queued} examples are waiting, at most {self.max_queued} may")
            self._queue.append(ticket)
            self._n_queued += n_rows
            leads = not self._is_led
            self._is_led = True
            self._more.notify()
        if not leads:
            leads = self._wait(ticket)
        if leads:
            self._lead(ticket)
        if ticket.error is not None:
            raise ticket.error
        assert ticket.vote is not None
        return ticket.vote

    def complete(self, batch: Batch, vote: Vote) -> Vote:
        return self.tier.complete(batch, vote)

    def close(self) -> None:
        self.tier.close()

    def _in_pieces(self, batch: Batch, rule: DeferralRule) -> Vote:
        """A batch over `max_batch`, piece by piece, so that smaller callers come in between."""
        rows = np.arange(len(batch))
        pieces = [rows[start : start + self.max_batch] for start in range(0, len(batch), self.max_batch)]
        return _joined([self.vote(batch.take(piece), rule) for piece in pieces])

    def _wait(self, ticket: _Ticket) -> bool:
        """Until there is a vote (False), or the lead falls to this caller (True)."""
        left = ticket.batch.deadline - time.monotonic()
        woken = ticket.wake.acquire(timeout=min(max(left, 0.0), threading.TIMEOUT_MAX))
        if woken:
            return ticket.leads
        with self._lock:
            if ticket.leads:
                return True  # the lead came at the last moment: it must be taken up
            if ticket in self._queue:
                self._queue.remove(ticket)
                self._n_queued -= len(ticket.batch)
                raise self._expired(ticket)
        ticket.wake.acquire()  # being voted on right now: the answer is a model call away
        return False

    def _lead(self, own: _Ticket) -> None:
        """Vote on the queue's front, then pass the lead on; again until the own ticket is answered."""
        while own.vote is None and own.error is None:
            group = self._next_group(own)
            if group:
                self._ask(group, own)
        with self._lock:
            heir = self._queue[0] if self._queue else None
            if heir is None:
                self._is_led = False
            else:
                heir.leads = True
        if heir is not None:
            heir.wake.release()

    def _next_group(self, own: _Ticket) -> list[_Ticket]:
        """The tickets at the front that may be voted on together; those past their deadline are turned away."""
        with self._more:
            if self.max_delay_s > 0:
                end = time.monotonic() + self.max_delay_s
                while self._n_queued < self.max_batch and (left := end - time.monotonic()) > 0:
                    self._more.wait(left)
            group: list[_Ticket] = []
            n_rows = 0
            expired: list[_Ticket] = []
            now = time.monotonic()
            while self._queue:
                ticket = self._queue[0]
                if ticket.batch.deadline < now:
                    expired.append(ticket)
                elif group and (ticket.key != group[0].key or n_rows + len(ticket.batch) > self.max_batch):
                    break
                else:
                    group.append(ticket)
                    n_rows += len(ticket.batch)
                self._queue.popleft()
                self._n_queued -= len(ticket.batch)
        for ticket in expired:
            ticket.error = self._expired(ticket)
            if ticket is not own:  # nobody waits for the leader, whose own wait may have ended with the lead
                ticket.wake.release()
        return group

    def _ask(self, group: list[_Ticket], own: _Ticket) -> None:
        """One call of the tier for the whole group; each caller gets its own rows, or the error.

        A row that cannot be answered (InputError) is its own caller's: the callers are then asked about one by one.
        """
        started = time.perf_counter()
        self.batch_sizes.append(sum(len(ticket.batch) for ticket in group))
        try:
            vote = self.tier.vote(_merged([ticket.batch for ticket in group]), group[0].rule)
            start = 0
            for ticket in group:
                end = start + len(ticket.batch)
                piece = vote if len(group) == 1 else vote.take(np.arange(start, end))
                waited = {"queue_s": started - ticket.queued_at}
                ticket.vote = replace(piece, call=added_calls((piece.call, waited)))
                start = end
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to every caller of the group
            if isinstance(error, InputError) and len(group) > 1:
                for ticket in group:
                    self._ask([ticket], own)
                return
            for ticket in group:
                ticket.error = error
        for ticket in group:
            if ticket is not own:
                ticket.wake.release()

    def _expired(self, ticket: _Ticket) -> TierTimeout:
        waited = time.perf_counter() - ticket.queued_at
        return TierTimeout(self.name, f"the deadline passed after {waited * 1000:.0f} ms in the queue")


def _merged(batches: list[Batch]) -> Batch:
    """The rows of several batches, one after another."""
    if len(batches) == 1:
        return batches[0]
    captured: list[Array] = [batch.captured for batch in batches if batch.captured is not None]
    return Batch(
        ids=tuple(name for batch in batches for name in batch.ids),
        x=np.concatenate([batch.x for batch in batches]),
        captured=np.concatenate(captured) if len(captured) == len(batches) else None,
        deadline=min(batch.deadline for batch in batches),
    )


def _joined(votes: list[Vote]) -> Vote:
    """The votes on consecutive pieces as one; a caller's pieces all come from the same tier."""
    first = votes[0]
    return Vote(
        labels=np.concatenate([vote.labels for vote in votes]),
        count=np.concatenate([vote.count for vote in votes]),
        asked=np.concatenate([vote.asked for vote in votes]),
        n_members=first.n_members,
        score=np.concatenate([vote.score for vote in votes]),
        call=added_calls(vote.call for vote in votes),
    )
