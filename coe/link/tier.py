"""A tier behind an injected delay or a model of a link.

Paper: Section 5, edge to cloud: 1 us, 10 ms, 100 ms and 1000 ms between tiers. A device injects its delay in
its own process, because no proxy can: a microsecond is a thousandth of a call through a socket.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

from coe.cascade.errors import TierError
from coe.cascade.rule import DeferralRule
from coe.cascade.tier import Tier
from coe.cascade.types import Batch, CallCost, Vote

from .clock import COARSE_S, Clock, RealClock
from .link import Link


@dataclass(frozen=True, slots=True)
class Delay:
    """Seconds injected at a hop: once per round trip, as the paper charges it, or in each direction."""

    seconds: float
    one_way: bool = False

    @property
    def round_trip_s(self) -> float:
        return self.seconds * (2 if self.one_way else 1)


class DelayedTier:
    """`tier`, but far away. The delay achieved is in the vote's `call.delay_s`."""

    def __init__(self, tier: Tier, delay: Delay, clock: Clock | None = None) -> None:
        self.tier = tier
        self.delay = delay
        self.clock: Clock = clock or RealClock()
        self.name = tier.name
        self.rule = tier.rule

    @property
    def n_tiers(self) -> int:
        return self.tier.n_tiers

    @property
    def waits(self) -> bool:
        return self.tier.waits or self.delay.seconds > COARSE_S

    def vote(self, batch: Batch, rule: DeferralRule) -> Vote:
        waited = self.clock.wait(self.delay.seconds)
        try:
            vote = self.tier.vote(batch, rule)
        except TierError as error:
            error.call += CallCost(delay_s=waited)
            raise
        if self.delay.one_way:
            waited += self.clock.wait(self.delay.seconds)
        return replace(vote, call=vote.call + CallCost(delay_s=waited))

    def complete(self, batch: Batch, vote: Vote) -> Vote:
        return self.tier.complete(batch, vote)

    def close(self) -> None:
        self.tier.close()


class TierBehindLink(DelayedTier):
    """`tier` behind a model of a link, whose second 0 is the first call.

    How long a message takes depends on its bytes, which are known when the answer is there: the waits of both ways
    come after the call.
    """

    def __init__(self, tier: Tier, link: Link, seed: int = 0, clock: Clock | None = None) -> None:
        super().__init__(tier, Delay(0.0), clock)
        self._up, self._down = link.start(seed)
        self._lock = threading.Lock()
        self._zero: float | None = None

    @property
    def waits(self) -> bool:
        return True

    def vote(self, batch: Batch, rule: DeferralRule) -> Vote:
        started = self.clock.now()
        with self._lock:
            self._zero = zero = started if self._zero is None else self._zero
        try:
            vote = self.tier.vote(batch, rule)
        except TierError as error:
            error.call += CallCost(delay_s=self._wait(started - zero, error.call))
            raise
        return replace(vote, call=vote.call + CallCost(delay_s=self._wait(started - zero, vote.call)))

    def _wait(self, sent_s: float, call: CallCost) -> float:
        """Seconds waited for what the link takes for a call's two messages."""
        with self._lock:
            there = float(self._up.deliver(sent_s, call.bytes_sent)[0])
            answered = there + call.call_s
            back = float(self._down.deliver(answered, call.bytes_received)[0])
        return self.clock.wait(max(back - sent_s - call.call_s, 0.0))
