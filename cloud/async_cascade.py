"""Algorithm 1 on an event loop, and dynamic batching of the requests that ask for it.

The algorithm itself is `coe.cascade`'s: a `Run` has the question of whom to ask about which rows, and takes the vote.

An idle server waits for nothing. Under load, where the time around a model call is what a request costs, it pays to
let a few more requests come in before the next call: as long as enough of them are due, the next batch is put off
by a few times what the last one took, which is well under the time a caller waits in any case.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from coe.cascade.cascade import Cascade, Decisions, Run
from coe.cascade.errors import TierError, TierFailed
from coe.cascade.rule import DeferralRule
from coe.cascade.tier import Tier
from coe.cascade.types import Batch, Vote
from coe.protocol.core import Decided

from .tier_batcher import QUICK_S, QueuedRows, answer_group, merged_batch, take_group, with_rows

OnStep = Callable[[Run], None]


class AsyncTier(Protocol):
    """A tier on the event loop: a `TierBatcher` in this process, or the client of a tier on a cluster."""

    async def vote(self, batch: Batch, rule: DeferralRule) -> Vote: ...

    async def alone(self, work: Callable[[], Any]) -> Any: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, eq=False)
class AsyncCascade:
    """One cascade, run for many callers at once.

    Args:
        batchers: of its local tiers, by tier name. A tier on the cluster counts as local.
        threads: where calls of remote tiers wait.
    """

    cascade: Cascade
    batchers: Mapping[str, AsyncTier]
    threads: ThreadPoolExecutor

    async def decide(self, batch: Batch, on_step: OnStep | None = None) -> Decisions:
        """Every row's answer, in order. `on_step` is called with the run after each tier but the last one it needs.

        Raises:
            TierError: the first tier gave no answer, or a later one did not and the cascade does not fall back. Rows
                on which no member voted are in `failed` of what is returned.
        """
        run = self.cascade.start(batch)
        while run.question is not None:
            tier, rule, rows = run.question
            started = time.perf_counter()
            try:
                vote = await self._ask(tier, rows, rule)
            except TierError as error:
                await self._fail(run, error)
                break
            if run.take(vote, time.perf_counter() - started) and on_step is not None:
                on_step(run)
        return run.decisions()

    async def _ask(self, tier: Tier, batch: Batch, rule: DeferralRule) -> Vote:
        batcher = self.batchers.get(tier.name)
        if batcher is not None:
            return await batcher.vote(batch, rule)
        context = contextvars.copy_context()  # trace headers go along with this call
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.threads, context.run, tier.vote, batch, rule)

    async def _fail(self, run: Run, error: TierError) -> None:
        """Let the tier before ask the members it has not asked yet, while no other call of it is under way."""
        batcher = self.batchers.get(self.cascade.tiers[len(run.visits) - 1].name) if run.falls_back else None
        if batcher is not None:
            await batcher.alone(lambda: run.fail(error))
        else:
            run.fail(error)  # a remote tier has no members left to ask


PACE = 5.0  # the next batch is put off by this many times the last one's time, at most
MOST_PACE_S = 0.002
WORTH_IT = 2.0  # requests that must be due within that time
SMOOTHING = 0.1


class CascadeBatcher:
    """A cascade that decides the requests of many callers together.

    Args:
        max_batch: most rows that are decided together; a larger request is decided on its own.
    """

    def __init__(self, cascade: AsyncCascade, *, max_batch: int = 64) -> None:
        self.cascade = cascade
        self.max_batch = max_batch
        self._first_tier = cascade.cascade.tiers[0].name
        self._has_steps = len(cascade.cascade.tiers) > 1
        self._queue: deque[QueuedRows] = deque()
        self._is_armed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = 0.0  # when the last batch was decided,
        self._took = 0.0  # and how long it kept the event loop
        self._arrived = 0.0
        self._gap_s = math.inf  # between arrivals, lately

    async def decide(self, batch: Batch) -> Decided:
        """These rows' answers.

        Raises:
            TierOverloaded: too many rows are waiting for a tier.
            TierTimeout: the deadline passed in the queue.
            TierError: as `AsyncCascade.decide`; TierFailed: no member voted on one of these rows.
        """
        entry = QueuedRows(batch)
        gap, self._arrived = entry.queued_at - self._arrived, entry.queued_at
        if gap > 10 * MOST_PACE_S or self._gap_s == math.inf:
            self._gap_s = gap
        else:
            self._gap_s += SMOOTHING * (gap - self._gap_s)
        self._queue.append(entry)
        if not self._is_armed:
            self._is_armed = True
            asyncio.get_running_loop().call_soon(self._start_groups)
        decided: Decided = await entry.answer
        return decided

    def _start_groups(self) -> None:
        """Decide what waits, or check again on the event loop's next turn."""
        if self._pays_to_wait():
            asyncio.get_running_loop().call_soon(self._start_groups)
            return
        self._is_armed = False
        now = time.monotonic()
        for entry in self._queue:
            if entry.batch.deadline < now:
                entry.expire(self._first_tier)
        while self._queue:
            group, _ = take_group(self._queue, self.max_batch)
            if group:
                task = asyncio.get_running_loop().create_task(self._run(group))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def _pays_to_wait(self) -> bool:
        if len(self._queue) >= self.max_batch:
            return False
        if self._took > QUICK_S:  # the tiers are what takes long, and merge what waits for them
            return False
        pace = min(PACE * self._took, MOST_PACE_S)
        return pace >= WORTH_IT * self._gap_s and time.perf_counter() < self._ended + pace

    async def _run(self, group: Sequence[QueuedRows]) -> None:
        started = time.perf_counter()
        await answer_group(group, self._decide)
        self._ended = time.perf_counter()
        self._took = self._ended - started

    async def _decide(self, group: Sequence[QueuedRows]) -> list[Decided | TierFailed]:
        """What came of each entry; those whose rows have all left the cascade are answered at once."""
        started = time.perf_counter()
        batch, waiting = merged_batch(group), with_rows(group)

        def on_step(run: Run) -> None:
            nonlocal waiting
            stays = np.zeros(len(batch), dtype=np.bool_)
            stays[run.active if run.active is not None else slice(None)] = True
            ready = [(entry, rows) for entry, rows in waiting if not stays[rows].any()]
            if ready:
                waiting = [one for one in waiting if one not in ready]
                decisions = Decisions(run.batch, tuple(run.visits), dict(run.degraded))
                for (entry, _), decided in zip(ready, of(ready, decisions), strict=True):
                    entry.settle(decided)

        def of(entries: list[tuple[QueuedRows, slice]], decisions: Decisions) -> list[Decided | TierFailed]:
            columns: dict[str, np.ndarray] = {}
            return [
                decisions.failure(rows) or Decided(decisions, rows, columns, started - entry.queued_at)
                for entry, rows in entries
            ]

        decisions = await self.cascade.decide(batch, on_step if self._has_steps else None)
        return of(with_rows(group), decisions)
