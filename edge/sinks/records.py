"""Outcomes and events as plain data, for JSON."""

from __future__ import annotations

import math
from typing import Any

from .base import Event, Outcome


def as_record(outcome: Outcome, labels: tuple[str, ...]) -> dict[str, Any]:
    """An outcome as plain data."""
    record: dict[str, Any] = {"id": outcome.id}
    decision = outcome.decision
    if decision is not None:
        record |= {
            "label": decision.label,
            "name": labels[decision.label],
            "exit_tier": decision.exit_tier,
            "vote": round(decision.vote, 6),
            "score": None if math.isnan(decision.score) else round(decision.score, 6),
            "asked": decision.asked,
            "members": decision.n_members,
            "tier_votes": [round(vote, 6) for vote in decision.tier_votes],
            "tier_times_s": [round(seconds, 7) for seconds in decision.tier_times_s],
            "degraded": decision.degraded,
        }
        if decision.call:
            record["call"] = {key: round(value, 7) for key, value in decision.call.items()}
    if outcome.error is not None:
        record["error"] = outcome.error
    if outcome.truth is not None:
        record["truth"] = outcome.truth
    if outcome.trace:
        record["trace"] = outcome.trace
    if outcome.spooled:
        record["spooled"] = outcome.spooled
    if outcome.corrects:
        record["corrects"] = outcome.corrects
    record["latency_s"] = round(outcome.latency_s, 7)
    record["at"] = round(outcome.at, 3)
    return record


def event_record(event: Event) -> dict[str, Any]:
    """An event as plain data: `event` is its kind."""
    return {"event": event.kind, **event.facts, "at": round(event.at, 3)}
