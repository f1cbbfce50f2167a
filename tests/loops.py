"""An event loop on a thread of its own, for tests that call from many threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from cloud.server import Server
from cloud.tier_batcher import TierBatcher
from coe.cascade import Batch, DeferralRule, Tier, Vote

T = TypeVar("T")
BOUND_S = 90.0


class Loop:
    """Runs what it is given on its own event loop, and waits for it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="test-loop", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(BOUND_S * 2)

    def call(self, work: Callable[[], T]) -> T:
        async def called() -> T:
            return work()

        return self.run(called())

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(BOUND_S)
        self.loop.close()


class LoopedBatcher:
    """A `TierBatcher` that threads can ask, as a tier. `fronts` are the ids waiting, first come first."""

    n_tiers, waits = 1, False

    def __init__(self, loop: Loop, tier: Tier, **limits: Any) -> None:
        self.loop, self.tier = loop, tier
        self.name, self.rule = tier.name, tier.rule
        self.batcher = TierBatcher(tier, **limits)

    def vote(self, batch: Batch, rule: DeferralRule) -> Vote:
        return self.loop.run(self.batcher.vote(batch, rule))

    def complete(self, batch: Batch, vote: Vote) -> Vote:
        return self.loop.run(self.batcher.alone(lambda: self.tier.complete(batch, vote)))

    def close(self) -> None:
        self.batcher.close()
        self.tier.close()

    @property
    def n_queued(self) -> int:
        return self.batcher.n_queued

    @property
    def is_idle(self) -> bool:
        """Nothing runs and nothing is queued: the next caller would be asked at once."""
        return self.loop.call(
            lambda: not self.batcher._is_busy and not self.batcher._queue and self.batcher.n_queued == 0
        )

    def waiting(self) -> list[tuple[str, ...]]:
        return [entry.batch.ids for entry in tuple(self.batcher._queue)]


@contextmanager
def running(server: Server) -> Iterator[Server]:
    """The server, started on a loop of its own; stopped at the end."""
    loop = Loop()
    try:
        loop.run(server.start())
        server.loop = loop  # type: ignore[attr-defined]
        yield server
    finally:
        try:
            loop.run(server.stop())
        finally:
            loop.close()
