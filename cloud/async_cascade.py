"""Algorithm 1 on an event loop, and dynamic batching of the requests that ask for it.

The rule itself is `coe.cascade`'s: a `Run` says whom to ask about which rows, and is told what came back.

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
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from coe.cascade.cascade import Cascade, Decisions, Run
from coe.cascade.errors import InputError, TierError, TierTimeout
from coe.cascade.rule import DeferralRule
from coe.cascade.tier import Tier
from coe.cascade.types import Batch, Vote
from coe.protocol.core import Decided

from .tier_batcher import QUICK_S, can_merge, merged_batches, take_group

OnStep = Callable[[Run], None]


class AsyncTier(Protocol):
    """What stands in front of a tier: a `TierBatcher` in this process, or the way to a tier of ours on a cluster."""

    async def vote(self, batch: Batch, rule: DeferralRule) -> Vote: ...

    async def alone(self, work: Callable[[], Any]) -> Any: ...

    def close(self) -> None: ...


class AsyncCascade:
    """One cascade, to be run by many callers at once.

    Args:
        lanes: of its local tiers, by tier name. A tier on the cluster counts as local.
        threads: where calls of remote tiers wait.
    """

    def __init__(self, cascade: Cascade, lanes: Mapping[str, AsyncTier], threads: ThreadPoolExecutor) -> None:
        self.cascade = cascade
        self.lanes = lanes
        self.threads = threads

    @property
    def is_local(self) -> bool:
        """Whether every tier runs here."""
        return all(tier.name in self.lanes for tier in self.cascade.tiers)

    async def decide(self, batch: Batch, on_step: OnStep | None = None) -> Decisions:
        """Every row's answer, in order. `on_step` sees the run after each tier but the last one it needs.

        Raises:
            TierError: the first tier gave no answer, or a later one did not and the cascade does not fall back.
        """
        run = self.cascade.start(batch)
        goes_on = not run.is_done
        while goes_on:
            tier, rule, rows = run.question()
            started = time.perf_counter()
            try:
                vote = await self._ask(tier, rows, rule)
            except TierError as error:
                if not run.falls_back:
                    raise
                await self._fall_back(run, error)
                break
            goes_on = run.take(rows, vote, time.perf_counter() - started)
            if goes_on and on_step is not None:
                on_step(run)
        return run.decisions()

    async def _ask(self, tier: Tier, batch: Batch, rule: DeferralRule) -> Vote:
        batcher = self.lanes.get(tier.name)
        if batcher is not None:
            return await batcher.vote(batch, rule)
        context = contextvars.copy_context()  # what this call carries along: trace headers
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.threads, context.run, tier.vote, batch, rule)

    async def _fall_back(self, run: Run, error: TierError) -> None:
        """The tier before asks the members it has not asked yet, where nobody else is asking it."""
        batcher = self.lanes.get(self.cascade.tiers[run.number - 1].name)
        if batcher is not None:
            await batcher.alone(lambda: run.fall_back(error))
        else:
            run.fall_back(error)  # a remote tier has nobody left to ask


PACE = 5.0  # the next batch is put off by this many times the last one's time, at most
MOST_PACE_S = 0.002
WORTH_IT = 2.0  # requests that must be due within that time
SMOOTHING = 0.1


class _PendingRequest:
    """One request's rows, waiting for their answers."""

    __slots__ = ("answer", "batch", "queued_at")

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.answer: asyncio.Future[Decided] = asyncio.get_running_loop().create_future()
        self.queued_at = time.perf_counter()

    def merges_with(self, other: _PendingRequest) -> bool:
        return can_merge(self.batch, other.batch)


class _Group:
    """Tickets that are decided together, and where each one's rows are."""

    def __init__(self, tickets: list[_PendingRequest]) -> None:
        self.started = time.perf_counter()
        self.batch = merged_batches([ticket.batch for ticket in tickets])
        self.waiting: list[tuple[_PendingRequest, int, int]] = []
        start = 0
        for ticket in tickets:
            end = start + len(ticket.batch)
            self.waiting.append((ticket, start, end))
            start = end

    def on_step(self, run: Run) -> None:
        """Answer those whose rows have all left the cascade."""
        stays = np.zeros(len(self.batch), dtype=np.bool_)
        stays[run.active if run.active is not None else slice(None)] = True
        ready = [entry for entry in self.waiting if not stays[entry[1] : entry[2]].any()]
        if ready:
            self.waiting = [entry for entry in self.waiting if entry not in ready]
            self._answer(ready, Decisions(run.batch, tuple(run.visits), dict(run.degraded)))

    def finish(self, decisions: Decisions) -> None:
        self._answer(self.waiting, decisions)

    def fail(self, error: BaseException) -> None:
        for ticket, _, _ in self.waiting:
            if not ticket.answer.done():
                ticket.answer.set_exception(error)

    def _answer(self, entries: list[tuple[_PendingRequest, int, int]], decisions: Decisions) -> None:
        columns: dict[str, np.ndarray] = {}
        for ticket, start, end in entries:
            if not ticket.answer.done():  # or its caller went away
                waited = self.started - ticket.queued_at
                ticket.answer.set_result(Decided(decisions, slice(start, end), columns, waited))


class CascadeBatcher:
    """`flow`, asked by many requests at once.

    Args:
        max_batch: most rows that are decided together; a larger request is decided on its own.
    """

    def __init__(self, flow: AsyncCascade, *, max_batch: int = 64) -> None:
        self.flow = flow
        self.max_batch = max_batch
        self._queue: deque[_PendingRequest] = deque()
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
            TierTimeout: the deadline passed before they were looked at.
            TierError: as `AsyncCascade.decide`.
        """
        ticket = _PendingRequest(batch)
        self._note_arrival(ticket.queued_at)
        self._queue.append(ticket)
        if not self._is_armed:
            self._is_armed = True
            asyncio.get_running_loop().call_soon(self._look)
        return await ticket.answer

    def _note_arrival(self, now: float) -> None:
        gap = now - self._arrived
        self._arrived = now
        if gap > 10 * MOST_PACE_S or self._gap_s == math.inf:
            self._gap_s = gap
        else:
            self._gap_s += SMOOTHING * (gap - self._gap_s)

    def _look(self) -> None:
        """Start what waits, or look again on the event loop's next turn."""
        if self._pays_to_wait():
            asyncio.get_running_loop().call_soon(self._look)
            return
        self._is_armed = False
        while self._queue:
            group = self._next_group()
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

    def _next_group(self) -> list[_PendingRequest]:
        """The requests at the front that may be decided together; those past their deadline are turned away."""
        now = time.monotonic()
        for ticket in self._queue:
            if ticket.batch.deadline < now:
                self._turn_away(ticket)
        return take_group(self._queue, self.max_batch)[0]

    def _turn_away(self, ticket: _PendingRequest) -> None:
        if not ticket.answer.done():
            waited = (time.perf_counter() - ticket.queued_at) * 1000
            name = self.flow.cascade.tiers[0].name
            ticket.answer.set_exception(TierTimeout(name, f"the deadline passed after {waited:.0f} ms in the queue"))

    async def _run(self, tickets: list[_PendingRequest]) -> None:
        group = _Group(tickets)
        try:
            decisions = await self.flow.decide(group.batch, group.on_step if self.flow.cascade.tiers[1:] else None)
        except InputError as error:
            if len(tickets) == 1:
                group.fail(error)
            else:  # a row that cannot be answered is its own caller's: the others are decided without it
                await asyncio.gather(*(self._run([ticket]) for ticket, _, _ in group.waiting))
        except BaseException as error:  # noqa: BLE001 - whatever it is belongs to every caller of the group
            group.fail(error)
        else:
            group.finish(decisions)
        self._ended = time.perf_counter()
        self._took = self._ended - group.started
