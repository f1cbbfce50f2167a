"""Algorithm 1 on an event loop: local tiers are asked through their lanes, remote ones on threads that wait.

The rule itself is `coe.cascade`'s: a `Run` says whom to ask about which rows, and is told what came back.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from coe.cascade.cascade import Cascade, Decisions, Run
from coe.cascade.errors import TierError
from coe.cascade.rule import DeferralRule
from coe.cascade.tier import Tier
from coe.cascade.types import Batch, Vote

OnStep = Callable[[Run], None]


class Front(Protocol):
    """What stands in front of a tier: a `Lane` in this process, or the way to a tier of ours on a cluster."""

    async def vote(self, batch: Batch, rule: DeferralRule) -> Vote: ...

    async def alone(self, work: Callable[[], Any]) -> Any: ...

    def close(self) -> None: ...


class Flow:
    """One cascade, to be run by many callers at once.

    Args:
        lanes: of its local tiers, by tier name. A tier on the cluster counts as local.
        threads: where calls of remote tiers wait.
    """

    def __init__(self, cascade: Cascade, lanes: Mapping[str, Front], threads: ThreadPoolExecutor) -> None:
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
        lane = self.lanes.get(tier.name)
        if lane is not None:
            return await lane.vote(batch, rule)
        context = contextvars.copy_context()  # what this call carries along: trace headers
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.threads, context.run, tier.vote, batch, rule)

    async def _fall_back(self, run: Run, error: TierError) -> None:
        """The tier before asks the members it has not asked yet, where nobody else is asking it."""
        lane = self.lanes.get(self.cascade.tiers[run.number - 1].name)
        if lane is not None:
            await lane.alone(lambda: run.fall_back(error))
        else:
            run.fall_back(error)  # a remote tier has nobody left to ask
