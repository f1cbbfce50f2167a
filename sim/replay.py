"""Replay: recorded votes and measured compute times, in virtual time, through the same Algorithm 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from coe.cascade import (
    Agreement,
    Always,
    Batch,
    Cascade,
    Clock,
    ConfigError,
    DeferralRule,
    Delay,
    DelayedTier,
    Tier,
    VirtualClock,
    Vote,
)
from coe.cascade.vote import exact_share

from .records import Record


@dataclass(frozen=True, slots=True)
class RecordedVote:
    """What a tier said of one example, and the seconds it took."""

    label: int
    share: float
    time_s: float
    exit_tier: int = 1
    inner_votes: tuple[float, ...] = ()


class RecordedTier:
    """A tier that says again what was recorded, one example at a time, and lets its clock run as long."""

    n_tiers = 1
    waits = False

    def __init__(self, name: str, votes: Mapping[str, RecordedVote], rule: DeferralRule, clock: Clock) -> None:
        self.name = name
        self.votes = votes
        self.rule = rule
        self.clock = clock

    def vote(self, batch: Batch, rule: DeferralRule) -> Vote:
        (name,) = batch.ids
        said = self.votes[name]
        self.clock.wait(said.time_s)
        share = exact_share(said.share)
        inner = said.inner_votes
        return Vote(
            labels=np.array([said.label]),
            count=np.array([share.numerator]),
            asked=np.array([share.denominator]),
            n_members=share.denominator,
            score=np.array([np.nan], dtype=np.float32),
            exit_tier=np.array([said.exit_tier]) if inner else None,
            tier_votes=np.array([inner], dtype=np.float32) if inner else None,
        )

    def complete(self, batch: Batch, vote: Vote) -> Vote:
        return vote

    def close(self) -> None:
        pass


def replay(records: Sequence[Record], delay: Delay, *, has_device_tier: bool) -> list[Record]:
    """The same examples behind `delay`, in virtual time.

    Args:
        records: of a run without an injected delay.
        has_device_tier: the system has a tier on the device before the hop.
    Raises:
        ConfigError: an example is degraded: what the cloud would have said of it is not known.
    """
    degraded = [record.id for record in records if record.degraded]
    if degraded:
        first = f"{len(degraded)} degraded examples, {degraded[0]} first"
        raise ConfigError([f"expected a recording of answers alone, got {first} (record it again)"])
    clock = VirtualClock()
    cascade = _recorded_cascade(records, delay, clock, has_device_tier)
    x = np.zeros((1, 1))
    replayed = []
    for record in records:
        started = clock.now()
        decision = cascade.decide(Batch((record.id,), x))[0]
        latency_s = clock.now() - started
        if (decision.label, decision.exit_tier) != (record.label, record.exit_tier):
            raise AssertionError(f"replay of {record.id}: {decision} is not what was recorded: {record}")
        delay_s = decision.call.get("delay_s", 0.0)
        replayed.append(replace(record, latency_s=latency_s, delay_s=delay_s))
    return replayed


def _recorded_cascade(records: Sequence[Record], delay: Delay, clock: Clock, has_device_tier: bool) -> Cascade:
    device: dict[str, RecordedVote] = {}
    cloud: dict[str, RecordedVote] = {}
    for record in records:
        device[record.id] = RecordedVote(record.label, record.votes[0], record.local_s)
        if record.left_device:
            before = 1 if has_device_tier else 0
            seconds = record.call_s if has_device_tier else record.local_s + record.call_s
            cloud[record.id] = RecordedVote(
                record.label, record.votes[-1], seconds, record.exit_tier - before, record.votes[before:]
            )
    tiers: list[Tier] = []
    if has_device_tier:
        # What stayed had agreed and what left had not: any threshold between the two is the one that was used.
        kept = [device[record.id].share for record in records if not record.left_device]
        tiers.append(RecordedTier("device", device, Agreement(exact_share(min(kept, default=1.0))), clock))
    if cloud:
        tiers.append(DelayedTier(RecordedTier("cloud", cloud, Always(), clock), delay, clock))
    return Cascade(tiers)
