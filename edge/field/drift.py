"""Whether the world has changed since calibration: shares over a sliding window, each against its band.

What is watched: the share of examples the device deferred, the shares it decided with so many votes of so many asked,
and the share of audited decisions on which the cloud differs. Leaving a band is an event, and so is coming back.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..sinks import Event, Outcome
from ..sources import Example

DEFERRED = "deferred"
AUDIT_ERROR = "audit_error"
CALM = 100.0  # an alarm ends inside the band of so many times its false-alarm rate, a narrower one


@dataclass(frozen=True)
class Baseline:
    """A share as it was on calibration: `share` of `n` examples; `band` in place of what follows from them.

    `what`: "deferred", "audit_error", or "2 of 3": decided with two votes of three asked.
    """

    what: str
    share: float
    n: int
    band: tuple[float, float] | None = None


@dataclass(frozen=True)
class DriftConfig:
    """Bands, and over what they are watched.

    Args:
        window: examples; audits: audited decisions, for their error.
        false_alarms: chance that one window of examples like those of calibration lies outside a band.
    """

    window: int = 1000
    false_alarms: float = 1e-6
    audits: int = 200
    baselines: tuple[Baseline, ...] = ()


class Gauge:
    """One share over a sliding window, and its band.

    The window is judged ten times on its way past an example, once it is full.
    """

    def __init__(self, baseline: Baseline, window: int, false_alarms: float) -> None:
        self.what = baseline.what
        self.baseline = baseline
        self.low, self.high = baseline.band or band(baseline.share, baseline.n, window, false_alarms)
        self.calm = baseline.band or band(baseline.share, baseline.n, window, min(0.5, false_alarms * CALM))
        self.is_out = False
        self._hits: deque[bool] = deque(maxlen=window)
        self._n_hits = 0
        self._step = max(window // 10, 1)
        self._since = 0

    @property
    def n(self) -> int:
        return len(self._hits)

    @property
    def share(self) -> float | None:
        """Over the window; None while it is empty."""
        return self._n_hits / len(self._hits) if self._hits else None

    def add(self, is_hit: bool) -> bool:
        """One more example. True where it leaves its band, or is back."""
        if len(self._hits) == self._hits.maxlen:
            self._n_hits -= self._hits[0]
        self._hits.append(is_hit)
        self._n_hits += is_hit
        self._since += 1
        if self._since < self._step or len(self._hits) < (self._hits.maxlen or 0):
            return False
        self._since = 0
        share = self._n_hits / len(self._hits)
        low, high = self.calm if self.is_out else (self.low, self.high)
        was, self.is_out = self.is_out, not low <= share <= high
        return was != self.is_out

    def facts(self) -> dict[str, Any]:
        share = self.share
        return {
            "what": self.what,
            "state": "outside" if self.is_out else "inside",
            "share": None if share is None else round(share, 6),
            "band": [round(self.low, 6), round(self.high, 6)],
            "calibration": self.baseline.share,
            "window": self.n,
        }


class Drift:
    """A watcher of the agent's outcomes; `audited` takes what an audit found. Thread-safe."""

    def __init__(self, config: DriftConfig, told: Callable[[Event], None]) -> None:
        self._told = told
        self._lock = threading.Lock()
        self._gauges = {
            baseline.what: Gauge(
                baseline, config.audits if baseline.what == AUDIT_ERROR else config.window, config.false_alarms
            )
            for baseline in config.baselines
        }

    def saw(self, example: Example, outcome: Outcome) -> None:
        what = category(outcome)
        if what is None:
            return
        with self._lock:
            changed = [
                gauge.facts()
                for gauge in self._gauges.values()
                if gauge.what != AUDIT_ERROR and gauge.add(gauge.what == what)
            ]
        for facts in changed:
            self._told(Event("drift", facts))

    def audited(self, differs: bool) -> None:
        gauge = self._gauges.get(AUDIT_ERROR)
        if gauge is None:
            return
        with self._lock:
            changed = gauge.facts() if gauge.add(differs) else None
        if changed:
            self._told(Event("drift", changed))

    def report(self) -> list[dict[str, Any]]:
        """Each gauge as plain data."""
        with self._lock:
            return [gauge.facts() for gauge in self._gauges.values()]


def category(outcome: Outcome) -> str | None:
    """ "deferred", or "2 of 3": votes for the device's own decision, of members asked. None: neither.

    The same whether or not the cloud answered.
    """
    if outcome.corrects:
        return None
    if outcome.deferred:
        return DEFERRED
    decision = outcome.decision
    return None if decision is None else f"{round(decision.vote * decision.asked)} of {decision.asked}"


def band(share: float, n: int, window: int, false_alarms: float) -> tuple[float, float]:
    """Shares between which a window lies with chance 1 - false_alarms, if nothing has changed since calibration.

    That calibration itself was a sample is in it: the predictive distribution of a window after `share * n` of `n`
    (beta-binomial, Jeffreys prior); each tail has half of the chance.
    """
    a, b = share * n + 0.5, (1 - share) * n + 0.5
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    pmf = [
        math.exp(
            math.lgamma(window + 1)
            - math.lgamma(k + 1)
            - math.lgamma(window - k + 1)
            + math.lgamma(a + k)
            + math.lgamma(b + window - k)
            - math.lgamma(a + b + window)
            - log_beta
        )
        for k in range(window + 1)
    ]
    return _tail(pmf, false_alarms / 2) / window, 1 - _tail(pmf[::-1], false_alarms / 2) / window


def _tail(pmf: list[float], chance: float) -> int:
    """The first count that is not in the lower tail of at most that chance."""
    total = 0.0
    for k, mass in enumerate(pmf):
        total += mass
        if total > chance:
            return k
    return len(pmf) - 1
