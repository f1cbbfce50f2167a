"""What there is to know of an agent, as plain data: the page shows it, the metrics count it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from coe import __version__

from ..agent import Agent
from ..field.open import Field
from ..link import LinkState
from ..sinks.outlet import SinkStatus
from .recent import Recent

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Watched:
    """Where the facts are.

    Args:
        tiers: their names, in order.
        links: the state of each link now.
        spool: its facts; None: there is no spool.
    """

    agent: Agent
    kept: Field
    recent: Recent
    task: str
    tiers: Sequence[str]
    links: Callable[[], Sequence[LinkState]]
    spool: Callable[[], Facts] | None = None
    sinks: Callable[[], Sequence[SinkStatus]] = lambda: ()
    started_at: float = field(default_factory=time.time)
    started: float = field(default_factory=time.monotonic)


def status(watched: Watched) -> dict[str, Any]:
    """Everything but the recent decisions, at one moment."""
    tally, recent, kept = watched.agent.tally, watched.recent, watched.kept
    return {
        "version": __version__,
        "task": watched.task,
        "tiers": list(watched.tiers),
        "at": time.time(),
        "started_at": watched.started_at,
        "uptime_s": time.monotonic() - watched.started,
        "examples": tally.n,
        "decided": tally.n_decided,
        "failed": tally.n_failed,
        "deferred": recent.n_deferred,
        "degraded": tally.n_degraded,
        "kept_share": tally.kept_share,
        "waiting": watched.agent.n_waiting,
        "exits": {str(tier): n for tier, n in sorted(dict(tally.exits).items())},
        "reasons": dict(recent.reasons),
        "calls": tally.n_calls,
        "bytes_sent": tally.bytes_sent,
        "bytes_received": tally.bytes_received,
        "mean_latency_s": tally.latency_s / tally.n_decided if tally.n_decided else None,
        "spooled": tally.n_spooled,
        "corrected": tally.n_corrected,
        "links": [_link(state) for state in watched.links()],
        "spool": None if watched.spool is None else dict(watched.spool()),
        "sinks": [_sink(sink) for sink in watched.sinks()],
        "audit": None if kept.audit is None else kept.audit.report(),
        "drift": [] if kept.drift is None else kept.drift.report(),
        "harvest": None if kept.harvest is None else kept.harvest.report(),
    }


def _sink(sink: SinkStatus) -> dict[str, Any]:
    return {
        "name": sink.name,
        "kind": sink.kind,
        "written": sink.written,
        "dropped": sink.dropped,
        "queued": sink.queued,
        "failing": sink.failing_since is not None,
        "error": sink.last_error,
    }


def _link(state: LinkState) -> dict[str, Any]:
    now = time.monotonic()
    return {
        "tier": state.tier,
        "status": str(state.status),
        "for_s": max(now - state.since, 0.0),
        "failures": state.failures,
        "error": state.error,
        "is_draining": state.is_draining,
        "next_probe_s": None if math.isinf(state.next_probe_at) else max(state.next_probe_at - now, 0.0),
        "opened": state.n_opened,
        "probes": state.n_probes,
        "rebuilds": state.n_rebuilds,
        "round_trip_s": None if math.isnan(state.round_trip_s) else state.round_trip_s,
    }
