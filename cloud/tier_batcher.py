"""Dynamic batching for one local tier: many callers, one call of the tier at a time, a bounded queue.

Everything here runs on the event loop. A call that is over sooner than a thread would be woken is made on the spot;
a longer one on the batcher's own thread, and what arrives meanwhile makes up the next. An idle tier never waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
import timeit
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np

from coe.cascade.errors import InputError, TierOverloaded, TierTimeout
from coe.cascade.rule import DeferralRule
from coe.cascade.tier import Tier
from coe.cascade.types import NO_CALL, Array, Batch, CallCost, Vote

QUICK_S = 0.001  # a call expected to take less is made on the event loop itself
TURNS = 8  # of the event loop, about what a small call needs from its arrival to its answer
SLOW_CALLS = 3  # in a row that took ten times that: it is not quick
MEASURE_EVERY = 32  # calls on the thread, of which the quickest shows whether it is


class QueuedRows:
    """One caller's rows in a queue; or, with `work`, something else to do on a tier that must have it alone."""

    __slots__ = ("alarm", "answer", "batch", "queued_at", "rule", "work")

    def __init__(self, batch: Batch, rule: DeferralRule | None = None, work: Callable[[], Any] | None = None) -> None:
        self.batch = batch
        self.rule = rule
        self.work = work
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.queued_at = time.perf_counter()
        self.alarm: asyncio.TimerHandle | None = None

    def merges_with(self, other: QueuedRows) -> bool:
        """True if one call can answer both: rows of one shape, dtype and rule."""
        one, two = self.batch.x, other.batch.x
        is_alike = one.shape[1:] == two.shape[1:] and one.dtype == two.dtype and self.rule == other.rule
        return is_alike and self.work is None and other.work is None

    def settle(self, outcome: Any) -> None:
        """End the caller's wait with a result or an exception, unless the caller has gone away."""
        if not self.answer.done():
            if isinstance(outcome, BaseException):
                self.answer.set_exception(outcome)
            else:
                self.answer.set_result(outcome)

    def expire(self, tier: str) -> None:
        waited_ms = (time.perf_counter() - self.queued_at) * 1000
        self.settle(TierTimeout(tier, f"the deadline passed after {waited_ms:.0f} ms in the queue"))


def take_group(queue: deque[QueuedRows], max_batch: int) -> tuple[list[QueuedRows], int]:
    """The entries at the head of the queue that one call can answer, taken off it; and how many rows left it."""
    group: list[QueuedRows] = []
    n_rows = n_taken = 0
    while queue:
        entry = queue[0]
        size = len(entry.batch)
        if group and (n_rows + size > max_batch or not entry.merges_with(group[0])):
            break
        queue.popleft()
        n_taken += size
        if not entry.answer.done():
            group.append(entry)
            n_rows += size
    return group, n_taken


def merged_batch(group: Sequence[QueuedRows]) -> Batch:
    """The rows of a group, one entry after another; the latest deadline, so that nobody's is cut short."""
    if len(group) == 1:
        return group[0].batch
    batches = [entry.batch for entry in group]
    captured: list[Array] = [batch.captured for batch in batches if batch.captured is not None]
    return Batch(
        ids=tuple([name for batch in batches for name in batch.ids]),
        x=np.concatenate([batch.x for batch in batches]),
        captured=np.concatenate(captured) if len(captured) == len(batches) else None,
        deadline=max(batch.deadline for batch in batches),
        asks_members=any(batch.asks_members for batch in batches),
    )


def with_rows(group: Sequence[QueuedRows]) -> list[tuple[QueuedRows, slice]]:
    """Each entry of a group, and where its rows are in `merged_batch`."""
    ends = accumulate(len(entry.batch) for entry in group)
    return [(entry, slice(end - len(entry.batch), end)) for entry, end in zip(group, ends, strict=True)]


def votes_of(group: Sequence[QueuedRows], vote: Vote) -> list[Vote]:
    """The vote on `merged_batch`, cut up: one for each entry."""
    if len(group) == 1:
        return [vote]
    return [vote.take(np.arange(rows.start, rows.stop)) for _, rows in with_rows(group)]


async def answer_group(
    group: Sequence[QueuedRows], ask: Callable[[Sequence[QueuedRows]], Awaitable[Sequence[Any]]]
) -> None:
    """Settle each entry with its result of `ask`, or the error; a row that is no input is its own caller's error."""
    outcomes: Sequence[Any]
    try:
        outcomes = await ask(group)
    except InputError as error:
        if len(group) > 1:
            await asyncio.gather(*(answer_group([entry], ask) for entry in group if not entry.answer.done()))
            return
        outcomes = [error]
    except BaseException as error:  # noqa: BLE001 - whatever it is belongs to every caller of the group
        outcomes = [error] * len(group)
    for entry, outcome in zip(group, outcomes, strict=True):
        entry.settle(outcome)


class TierBatcher:
    """A local tier behind a queue.

    Args:
        max_batch: most rows in one call of the tier.
        max_delay_s: seconds that a call with fewer rows waits for more, where the tier is not quick.
        max_queued: most rows waiting; more are refused at once.
        quick_rows: most rows of a call that is made on the event loop; `measure` finds out.
    """

    def __init__(
        self, tier: Tier, *, max_batch: int = 64, max_delay_s: float = 0.0, max_queued: int = 1024, quick_rows: int = 0
    ) -> None:
        self.tier = tier
        self.max_batch = max_batch
        self.max_delay_s = max_delay_s
        self.max_queued = max_queued
        self.quick_rows = quick_rows
        self._n_slow = 0  # calls in a row, on the event loop, that were not quick at all
        self._n_unmeasured = 0  # calls on the thread since `quick_rows` was last checked,
        self._best = (math.inf, 0)  # and the quickest of them: its seconds, and its rows
        self.n_queued = 0  # rows waiting
        self._queue: deque[QueuedRows] = deque()
        self._is_busy = False
        self._call_under_way: asyncio.Task[None] | None = None  # the loop itself keeps no task alive
        self._timer: asyncio.TimerHandle | None = None
        self._thread = ThreadPoolExecutor(1, f"coe-tier-{tier.name}")
        self._call_s = 0.0  # what a call took lately, for the hint when to retry

    def measure(self, batch: Batch, rule: DeferralRule) -> None:
        """Find out how many rows the tier answers within QUICK_S. `batch` has `max_batch` rows, which also warm it."""
        one = batch.take(np.arange(1))
        calls = (partial(self.tier.vote, rows, rule) for rows in (one, batch))
        one_s, all_s = (min(timeit.repeat(call, repeat=3, number=1)) for call in calls)
        self._call_s = all_s
        if all_s <= QUICK_S:
            self.quick_rows = self.max_batch
        elif one_s <= QUICK_S and len(batch) > 1:
            row_s = (all_s - one_s) / (len(batch) - 1)
            self.quick_rows = 1 + int((QUICK_S - one_s) / row_s) if row_s > 0 else 1

    async def vote(self, batch: Batch, rule: DeferralRule) -> Vote:
        """The tier's vote on these rows, in one call with other callers' rows.

        Raises:
            TierOverloaded: too many rows are waiting.
            TierTimeout: the batch's deadline passed in the queue.
        """
        n_rows = len(batch)
        if n_rows > self.max_batch:
            return await self._in_pieces(batch, rule)
        if batch.deadline < time.monotonic():
            raise TierTimeout(self.tier.name, "the deadline passed before it could be asked")
        if not self._is_busy and not self._queue and n_rows <= self.quick_rows:
            return self._vote_inline(batch, rule)
        if self.n_queued and self.n_queued + n_rows > self.max_queued:  # an empty queue takes any batch
            n_calls = math.ceil(self.n_queued / self.max_batch)
            raise TierOverloaded(
                self.tier.name,
                f"{self.n_queued} examples are waiting, at most {self.max_queued} may",
                retry_after_s=max(n_calls * self._call_s, 0.01),
            )
        vote: Vote = await self._enqueue(QueuedRows(batch, rule))
        return vote

    async def alone(self, work: Callable[[], Any]) -> Any:
        """What `work` returns, with no other call of the tier at the same time. It may take long."""
        return await self._enqueue(QueuedRows(Batch((), np.empty(0)), None, work))

    def close(self) -> None:
        """Wait for the call under way. The batcher takes no more."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def _in_pieces(self, batch: Batch, rule: DeferralRule) -> Vote:
        """A batch over `max_batch`, piece by piece, so that smaller callers come in between."""
        votes = []
        for start in range(0, len(batch), self.max_batch):
            votes.append(await self.vote(batch.take(np.arange(start, min(start + self.max_batch, len(batch)))), rule))
            for _ in range(TURNS):
                await asyncio.sleep(0)
        names = ("labels", "count", "asked", "score")
        columns: dict[str, Any] = {name: np.concatenate([getattr(vote, name) for vote in votes]) for name in names}
        said = zip(*(vote.ballots() for vote in votes), strict=True)
        columns["member_labels"], columns["member_scores"] = (np.concatenate(one, axis=1) for one in said)
        return Vote(n_members=votes[0].n_members, call=sum((vote.call for vote in votes), NO_CALL), **columns)

    def _vote_inline(self, batch: Batch, rule: DeferralRule) -> Vote:
        started = time.perf_counter()
        try:
            return self.tier.vote(batch, rule)
        finally:
            self._n_slow = self._n_slow + 1 if time.perf_counter() - started > 10 * QUICK_S else 0
            if self._n_slow == SLOW_CALLS:  # not as measured, and no mere hiccup: the event loop gets fewer of them
                self.quick_rows //= 2
                self._n_slow = 0

    async def _enqueue(self, entry: QueuedRows) -> Any:
        left = entry.batch.deadline - time.monotonic()
        if left < math.inf:
            entry.alarm = asyncio.get_running_loop().call_later(max(left, 0.0), self._expire, entry)
        self._queue.append(entry)
        self.n_queued += len(entry.batch)
        self._advance()
        try:
            return await entry.answer
        finally:
            if entry.alarm is not None:
                entry.alarm.cancel()
            if entry.answer.cancelled():  # the caller went away
                self._forget(entry)

    def _expire(self, entry: QueuedRows) -> None:
        """Refuse rows whose deadline passed in the queue; those being voted on are a model call away."""
        if self._forget(entry):
            entry.expire(self.tier.name)

    def _forget(self, entry: QueuedRows) -> bool:
        with contextlib.suppress(ValueError):
            self._queue.remove(entry)
            self.n_queued -= len(entry.batch)
            return True
        return False

    def _advance(self) -> None:
        """Start the next call, where the tier is free and something waits."""
        if self._is_busy or not self._queue:
            return
        loop = asyncio.get_running_loop()
        if self.max_delay_s > 0 and self.n_queued < self.max_batch:
            waited = time.perf_counter() - self._queue[0].queued_at
            if waited < self.max_delay_s:
                if self._timer is None:
                    self._timer = loop.call_later(self.max_delay_s - waited, self._after_delay)
                return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        group, n_taken = take_group(self._queue, self.max_batch)
        self.n_queued -= n_taken
        if not group:
            return
        self._is_busy = True
        self._call_under_way = loop.create_task(answer_group(group, self._ask))
        self._call_under_way.add_done_callback(self._finish)

    def _after_delay(self) -> None:
        self._timer = None
        self._advance()

    async def _ask(self, group: Sequence[QueuedRows]) -> Sequence[Any]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._call, group)

    def _call(self, group: Sequence[QueuedRows]) -> Sequence[Any]:
        """On the batcher's thread: one call of the tier; for each entry of the group its vote."""
        started, first = time.perf_counter(), group[0]
        if first.work is not None:
            return [first.work()]
        assert first.rule is not None
        vote = self.tier.vote(merged_batch(group), first.rule)
        self._call_s = time.perf_counter() - started
        self._best = min(self._best, (self._call_s, len(vote)))
        return [
            replace(part, call=part.call + CallCost(queue_s=started - entry.queued_at))
            for entry, part in zip(group, votes_of(group, vote), strict=True)
        ]

    def _finish(self, call: asyncio.Task[None]) -> None:
        self._is_busy = False
        self._n_unmeasured += 1
        if self._n_unmeasured == MEASURE_EVERY:
            seconds, n_rows = self._best
            if seconds <= QUICK_S:  # though the tier was slow when it was measured, or for a while
                self.quick_rows = max(self.quick_rows, n_rows)
            self._n_unmeasured, self._best = 0, (math.inf, 0)
        self._advance()
