"""The state of an agent as plain data, with its latest decisions: the page shows it, the metrics count it."""

from __future__ import annotations

import bisect
import io
import itertools
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from coe import __version__
from coe.cascade.errors import InputError
from coe.cascade.tier import LocalTier
from coe.cascade.types import Array
from coe.models.inputs import decode_image
from edge.agent import Agent
from edge.field.monitors import Monitors
from edge.link import LinkState
from edge.sinks import Outcome, as_record
from edge.sinks.delivery import SinkHealth
from edge.sources import Example

N_NEWEST = 24
MAX_THUMBNAIL_BYTES = 64 * 1024  # of one that is given as it came; larger ones are made smaller when they are asked for
MAX_KEPT_BYTES = 16 * 2**20  # of the newest examples together
THUMBNAIL_SIDE = 256
SECONDS = (50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
TYPES = ((b"\x89PNG", "image/png"), (b"\xff\xd8\xff", "image/jpeg"))


@dataclass(slots=True)
class RecentDecision:
    """A decision: its number from 1, its outcome, and its example, if that may be shown and is not too old."""

    number: int
    outcome: Outcome
    value: bytes | Array | None


class RecentDecisions:
    """An outcome observer that keeps the newest decisions, in bounded memory, and counts all of them.

    Args:
        thumbnails: keep the examples, too.
        may_be_shared: True if an outcome's example may be shown.
    """

    def __init__(
        self,
        labels: tuple[str, ...],
        *,
        thumbnails: bool,
        may_be_shared: Callable[[Outcome], bool] = lambda outcome: outcome.reason != "held-back",
    ) -> None:
        self.labels = labels
        self.thumbnails = thumbnails
        self._may_be_shared = may_be_shared
        self.times = [0] * (len(SECONDS) + 1)  # decisions by their time, the last: longer than all of SECONDS
        self.time_s = 0.0
        self.reasons: Counter[str] = Counter()  # of outcomes without the answer that was wanted
        self.n_deferred = 0
        self._numbers = itertools.count(1)
        self._n_bytes = 0  # of the newest examples
        self._newest: deque[RecentDecision] = deque(maxlen=N_NEWEST)
        self._shown: deque[list[RecentDecision]] = deque(maxlen=2)  # lists whose thumbnails a page may request
        self._lock = threading.Lock()

    def on_outcome(self, example: Example, outcome: Outcome) -> None:
        reason = outcome.reason
        value = example.value if self.thumbnails and self._may_be_shared(outcome) else None
        if value is not None and not _is_image(value):
            value = None
        with self._lock:
            self._keep(RecentDecision(next(self._numbers), outcome, value))
            if outcome.corrects:
                return
            self.n_deferred += outcome.deferred
            if reason:
                self.reasons[reason if outcome.deferred else "unreadable"] += 1
            if outcome.decision is not None:
                self.times[bisect.bisect_left(SECONDS, outcome.latency_s)] += 1
                self.time_s += outcome.latency_s

    def _keep(self, newest: RecentDecision) -> None:
        """What a page would need; records and thumbnails are made once it asks for them."""
        if len(self._newest) == N_NEWEST:
            self._n_bytes -= _size(self._newest[0].value)
        self._newest.append(newest)
        self._n_bytes += _size(newest.value)
        if self._n_bytes > MAX_KEPT_BYTES:
            for one in self._newest:
                if self._n_bytes > MAX_KEPT_BYTES:
                    self._n_bytes -= _size(one.value)
                    one.value = None

    def newest(self) -> list[dict[str, Any]]:
        """The records of the newest decisions, newest first, with `number` and `thumbnail`: True if there is one.

        A thumbnail is available while its decision is in one of the last two of these lists.
        """
        with self._lock:
            newest = list(self._newest)
            self._shown.append(newest)
        return [
            as_record(one.outcome, self.labels) | {"number": one.number, "thumbnail": one.value is not None}
            for one in reversed(newest)
        ]

    def thumbnail(self, number: int) -> tuple[bytes, str] | None:
        """The example of a decision as an image, and its media type; None if it is not available."""
        with self._lock:
            shown = itertools.chain(*reversed(self._shown))
            value = next((one.value for one in shown if one.number == number), None)
        if value is None:
            return None
        if isinstance(value, bytes) and len(value) <= MAX_THUMBNAIL_BYTES:
            return value, next(kind for magic, kind in TYPES if value.startswith(magic))
        return _smaller(value)


def _is_image(value: bytes | Array) -> bool:
    """True for a PNG, a JPEG or uint8 pixels (H, W), (H, W, 1) or (H, W, 3)."""
    if isinstance(value, bytes):
        return len(value) <= MAX_KEPT_BYTES and value.startswith(tuple(magic for magic, _ in TYPES))
    is_picture = value.ndim == 2 or (value.ndim == 3 and value.shape[2] in (1, 3))
    return bool(value.dtype == np.uint8 and is_picture and 0 < value.nbytes <= MAX_KEPT_BYTES)


def _size(value: bytes | Array | None) -> int:
    return 0 if value is None else len(value) if isinstance(value, bytes) else value.nbytes


def _smaller(value: bytes | Array) -> tuple[bytes, str] | None:
    """An image of at most THUMBNAIL_SIDE, and its media type; None where it cannot be decoded."""
    from PIL import Image

    try:
        pixels = decode_image(value, 3, least_side=THUMBNAIL_SIDE) if isinstance(value, bytes) else value
    except InputError:
        return None
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)
    is_large = max(picture.size) > THUMBNAIL_SIDE
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG" if is_large else "PNG")
    return buffer.getvalue(), "image/jpeg" if is_large else "image/png"


Facts = Mapping[str, Any]


@dataclass(frozen=True)
class AgentView:
    """The parts of an agent that its status is read from.

    Args:
        tiers: their names, in order.
        links: the state of each link now.
        budget: of the links; None: there is none.
        spool: the spool's state; None: there is no spool.
    """

    agent: Agent
    monitors: Monitors
    recent: RecentDecisions
    task: str
    tiers: Sequence[str]
    links: Callable[[], Sequence[LinkState]]
    spool: Callable[[], Facts] | None = None
    sinks: Callable[[], Sequence[SinkHealth]] = lambda: ()
    started_at: float = field(default_factory=time.time)
    started: float = field(default_factory=time.monotonic)
    budget: Callable[[], Facts] | None = None


def status(view: AgentView) -> dict[str, Any]:
    """The state of the agent, without its recent decisions, as plain data."""
    tally, recent, monitors = view.agent.tally, view.recent, view.monitors
    return {
        "version": __version__,
        "task": view.task,
        "tiers": list(view.tiers),
        "at": time.time(),
        "started_at": view.started_at,
        "uptime_s": time.monotonic() - view.started,
        "examples": tally.n,
        "decided": tally.n_decided,
        "failed": tally.n_failed,
        "deferred": recent.n_deferred,
        "degraded": tally.n_degraded,
        "kept_share": tally.kept_share,
        "waiting": view.agent.n_waiting,
        "exits": {str(tier): n for tier, n in sorted(dict(tally.exits).items())},
        "reasons": dict(recent.reasons),
        "members": [
            {"tier": tier.name, "member": name, "failed": n_failed, "error": reason}
            for tier in view.agent.cascade.tiers
            if isinstance(tier, LocalTier)
            for name, n_failed, reason in tier.failures.each()
        ],
        "calls": tally.n_calls,
        "bytes_sent": tally.bytes_sent,
        "bytes_received": tally.bytes_received,
        "mean_latency_s": tally.latency_s / tally.n_decided if tally.n_decided else None,
        "spooled": tally.n_spooled,
        "corrected": tally.n_corrected,
        "links": [_link(state) for state in view.links()],
        "link_budget": None if view.budget is None else dict(view.budget()),
        "spool": None if view.spool is None else dict(view.spool()),
        "sinks": [_sink(sink) for sink in view.sinks()],
        "audit": None if monitors.audit is None else monitors.audit.report(),
        "drift": [] if monitors.drift is None else monitors.drift.report(),
        "harvest": None if monitors.harvest is None else monitors.harvest.report(),
    }


def _sink(sink: SinkHealth) -> dict[str, Any]:
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
        "is_refused": state.is_refused,
        "next_probe_s": None if math.isinf(state.next_probe_at) else max(state.next_probe_at - now, 0.0),
        "opened": state.n_opened,
        "probes": state.n_probes,
        "rebuilds": state.n_rebuilds,
        "refused": state.n_refused,
        "round_trip_s": None if math.isnan(state.round_trip_s) else state.round_trip_s,
    }
