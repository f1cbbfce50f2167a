"""A replica of a tier on a Ray cluster: the tier as a whole, never one member alone, is what is placed and counted.

Nothing here imports Ray: a replica is a plain class, which `cloud.engines.ray` deploys.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from coe.assembly import CascadeConfig, LocalTierConfig, open_tier
from coe.cascade import errors
from coe.cascade.errors import CascadeError, InputError, TierError, TierOverloaded, TierUnavailable
from coe.cascade.rule import DeferralRule
from coe.cascade.types import Array, Batch, Vote

from ..limits import Limits
from .embedded import warm_lane

INSTALL = "pip install 'coe-cascade[ray]'"
CANNOT_OPEN = "coe-cloud cannot open it: "  # what follows is for the user


@dataclass(frozen=True, slots=True)
class Failure:
    """An error of ours on its way between processes: exceptions with fields do not travel well."""

    kind: str
    message: str
    retry_after_s: float | None = None

    @staticmethod
    def of(error: CascadeError) -> Failure:
        message = error.message if isinstance(error, TierError) else str(error)
        return Failure(type(error).__name__, message, getattr(error, "retry_after_s", None))

    def error(self, tier: str) -> CascadeError:
        kind = getattr(errors, self.kind, TierUnavailable)
        if kind is TierOverloaded:
            return TierOverloaded(tier, self.message, retry_after_s=self.retry_after_s)
        made: CascadeError = kind(tier, self.message) if issubclass(kind, TierError) else InputError(self.message)
        return made


class TierReplica:
    """One replica: a tier, its members loaded and warm, behind a lane that merges the rows of all who ask.

    The models' files are at the same paths on every node.

    Raises:
        RuntimeError: a member cannot be loaded, in the words that `CANNOT_OPEN` introduces.
    """

    def __init__(self, tier: LocalTierConfig, cascade: CascadeConfig, limits: Limits) -> None:
        self.said: list[str] = []
        try:
            self.tier = open_tier(tier, cascade, self.said.append)
        except CascadeError as error:
            raise RuntimeError(f"{CANNOT_OPEN}{error}") from None
        self.lane = warm_lane(self.tier, cascade.task.contract, limits)

    async def describe(self) -> list[str]:
        """What its members run on, for the start-up lines."""
        return self.said

    async def vote(self, ids: tuple[str, ...], x: Array, left_s: float, rule: DeferralRule) -> Vote | Failure:
        """As `Lane.vote`; `left_s`: until the deadline, since clocks of two hosts differ."""
        try:
            vote = await self.lane.vote(_batch(ids, x, left_s), rule)
        except CascadeError as error:
            return Failure.of(error)
        return replace(vote, probabilities=(), seats=None)  # large, and not needed again but for `complete`

    async def complete(self, ids: tuple[str, ...], x: Array, left_s: float, vote: Vote) -> Vote | Failure:
        """As `Tier.complete`."""
        try:
            whole: Vote = await self.lane.alone(lambda: self.tier.complete(_batch(ids, x, left_s), vote))
        except CascadeError as error:
            return Failure.of(error)
        return replace(whole, probabilities=(), seats=None)

    def __del__(self) -> None:
        """Ray calls it once the replica's last call has ended."""
        if hasattr(self, "lane"):
            self.lane.close()
            self.tier.close()


def _batch(ids: tuple[str, ...], x: Array, left_s: float) -> Batch:
    return Batch(ids, x, deadline=time.monotonic() + left_s)
