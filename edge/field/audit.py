"""How often agreement is wrong: a random sample of the agreed examples is sent to the cloud, to estimate the error.

Paper: A.3, where wrong agreements are counted against labels. In operation there are no labels: an answer counts as
wrong if the tiers beyond the device give the same example another label.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from coe.cascade.errors import InputError, TierError, TierRefused, TierRejected
from edge.agent import RemoteTiers
from edge.sinks import Event, Outcome
from edge.sources import Example

from .config import AuditConfig

Z95 = 1.959963984540054  # standard normal quantile of 0.975


@dataclass(slots=True)
class Estimate:
    """A share, estimated from examples drawn with chances that may change over time.

    Each example counts 1 / chance (Horvitz-Thompson); the share is the ratio of two such sums (Hajek), so that no
    period weighs more because more of it was sampled. The interval is Wilson's, with the number of draws replaced by
    the effective one: the number of equal draws with the same variance. If all chances are equal, the two are the same.

    Args:
        n: examples; n_drawn: examples of these that were drawn; n_answered: of those, with an answer.
        n_hits: of the answered ones, those that count for the share.
    """

    n: int = 0
    n_drawn: int = 0
    n_answered: int = 0
    n_hits: int = 0
    weight: float = 0.0
    weight_squared: float = 0.0
    weight_hits: float = 0.0
    weight_squared_hits: float = 0.0

    def add(self, chance: float, is_hit: bool) -> None:
        """Count an example that was drawn with that chance, and answered."""
        weight = 1.0 / chance
        self.n_answered += 1
        self.n_hits += is_hit
        self.weight += weight
        self.weight_squared += weight * weight
        self.weight_hits += weight * is_hit
        self.weight_squared_hits += weight * weight * is_hit

    @property
    def share(self) -> float | None:
        """The estimate; None before the first answer."""
        return self.weight_hits / self.weight if self.weight else None

    @property
    def n_effective(self) -> float:
        """The number of equal draws with the same variance: at most (sum w)^2 / sum w^2 (Kish), which ignores that the
        weights may correlate with the hits; less where the ratio's variance, sum w^2 (hit - share)^2, is larger.
        """
        share = self.share
        if share is None:
            return 0.0
        square = self.weight * self.weight
        spread = self.weight_squared_hits * (1 - 2 * share) + share * share * self.weight_squared
        kish = square / self.weight_squared
        return min(kish, share * (1 - share) * square / spread) if 0 < share < 1 and spread > 0 else kish

    def interval(self, z: float = Z95) -> tuple[float, float]:
        """Low and high end of the confidence interval; (0, 1) before the first answer."""
        share = self.share
        return (0.0, 1.0) if share is None else wilson(share, self.n_effective, z)


def wilson(share: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a share of n draws (Wilson 1927)."""
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, middle - half), min(1.0, middle + half)


HOUR_S = 3600.0
MAX_QUEUED = 64
CALL_TIMEOUT_S = 10.0  # of one example: nobody waits for the answer
PAUSE_S = 5.0  # after a call without an answer
MAX_AGE_S = HOUR_S  # of a drawn example; without an answer by then, it counts as not answered
SAVE_EVERY = 20  # answers


@dataclass
class AuditEstimates:
    """The audit's estimates: over all examples, and by the label that the device gave."""

    whole: Estimate = field(default_factory=Estimate)
    by_label: dict[int, Estimate] = field(default_factory=dict)

    def of(self, label: int) -> tuple[Estimate, Estimate]:
        return self.whole, self.by_label.setdefault(label, Estimate())


class Audit:
    """An outcome observer that draws examples and sends them to the cloud on a thread of its own.

    Each example that the device decided by itself is drawn with a chance that depends on the past alone, never on the
    example: at most `share`, less where the budget would not last. Drawn examples wait in a queue. Live examples go
    first: nothing is sent while one waits for a server, and the audit takes at most `link_share` of the time. An
    example that cannot be sent is drawn and not answered; one that may not leave the device is not sent.

    Args:
        is_busy: True while a live example waits for a server.
        held_back: why an example may not leave the device; None: it may. Called before each call to the cloud.
        notify: called with an event every `report_every` answers.
        on_answer: called for each answer, with True if it differs from the device's.
        state: file that keeps the estimates over restarts; None: they are lost.
    """

    def __init__(
        self,
        config: AuditConfig,
        remote_tiers: RemoteTiers,
        labels: tuple[str, ...],
        *,
        is_busy: Callable[[], bool] = lambda: False,
        held_back: Callable[[Example], str | None] = lambda example: None,
        notify: Callable[[Event], None] = lambda event: None,
        on_answer: Callable[[bool], None] = lambda differs: None,
        state: Path | None = None,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.labels = labels
        self.estimates = _load(state)
        self._remote_tiers = remote_tiers
        self._is_busy, self._held_back = is_busy, held_back
        self._notify, self._on_answer = notify, on_answer
        self._state = state
        self._rng = rng or random.Random()
        self._clock = clock
        self._budget = SamplingBudget(config, clock)
        self._queue: deque[SampledExample] = deque()
        self._ready = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="coe-audit", daemon=True)
        self._thread.start()

    def on_outcome(self, example: Example, outcome: Outcome) -> None:
        decision = outcome.decision
        if decision is None or outcome.deferred or outcome.corrects:
            return
        if decision.exit_tier >= self._remote_tiers.first_tier:
            return
        size = len(example.value) if isinstance(example.value, bytes) else getattr(example.value, "nbytes", 0)
        chance = self._budget.chance()
        is_drawn = self._rng.random() < chance
        with self._ready:
            for estimate in self.estimates.of(decision.label):
                estimate.n += 1
                estimate.n_drawn += is_drawn
            if not is_drawn or not self._budget.spend(size):
                return
            if len(self._queue) >= MAX_QUEUED:
                self._queue.popleft()
            self._queue.append(SampledExample(example, decision.label, chance, self._clock()))
            self._ready.notify()

    def report(self) -> dict[str, Any]:
        """The estimates as plain data: shares with their 95% intervals."""
        with self._ready:
            facts = _facts(self.estimates.whole)
            facts["by_label"] = {
                self.labels[label]: _facts(estimate) for label, estimate in sorted(self.estimates.by_label.items())
            }
            return facts | {"queued": len(self._queue)}

    def settle(self, timeout_s: float) -> bool:
        """True once no drawn example waits for its answer; False if some still do after `timeout_s`."""
        with self._ready:
            return self._ready.wait_for(lambda: not self._queue, timeout_s)

    def close(self) -> None:
        self._stop.set()
        with self._ready:
            self._ready.notify_all()
        self._thread.join(CALL_TIMEOUT_S)
        self._save()

    def _work(self) -> None:
        while not self._stop.is_set():
            with self._ready:
                self._ready.wait_for(lambda: self._queue or self._stop.is_set())
                if self._stop.is_set():
                    return
                drawn = self._queue[0]
            if self._is_busy():
                self._stop.wait(0.01)
                continue
            started = time.monotonic()
            is_over = self._audit(drawn)
            took = time.monotonic() - started
            if is_over:
                with self._ready:
                    if self._queue and self._queue[0] is drawn:
                        self._queue.popleft()
                    self._ready.notify_all()
            rest = took * (1 - self.config.link_share) / self.config.link_share
            self._stop.wait(rest if is_over else max(rest, PAUSE_S))

    def _audit(self, drawn: SampledExample) -> bool:
        """True if the example is done with: it is answered, or never will be."""
        try:
            if self._held_back(drawn.example) is not None:
                return True
            answer = self._remote_tiers.ask(drawn.example, time.monotonic() + CALL_TIMEOUT_S)
        except (TierError, InputError) as error:
            is_final = isinstance(error, (TierRejected, InputError)) and not isinstance(error, TierRefused)
            return is_final or self._clock() - drawn.at > MAX_AGE_S
        except Exception as error:  # noqa: BLE001 - a bug here must not end the audit silently
            self._notify(Event("audit", {"error": f"{type(error).__name__}: {error}"}))
            return True
        if answer.degraded:  # not the answer of the last tier
            return self._clock() - drawn.at > MAX_AGE_S
        differs = answer.label != drawn.label
        with self._ready:
            for estimate in self.estimates.of(drawn.label):
                estimate.add(drawn.chance, differs)
            n_answered = self.estimates.whole.n_answered
        self._on_answer(differs)
        if n_answered % self.config.report_every == 0:
            self._notify(Event("audit", self.report()))
        if n_answered % SAVE_EVERY == 0:
            self._save()
        return True

    def _save(self) -> None:
        if self._state is None:
            return
        with self._ready:
            content = {
                "whole": asdict(self.estimates.whole),
                "by_label": {str(label): asdict(estimate) for label, estimate in self.estimates.by_label.items()},
            }
        beside = self._state.with_suffix(".new")
        with contextlib.suppress(OSError):  # a full disk: the estimates are still in memory
            self._state.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps(content), encoding="utf-8")
            os.replace(beside, self._state)


@dataclass(frozen=True, slots=True)
class SampledExample:
    example: Example
    label: int
    chance: float
    at: float


class SamplingBudget:
    """The chance with which the next example is drawn, so that the budget lasts.

    It follows the number of examples per hour (an exponential mean over about a hundred of them); `spend` also counts
    the bytes of those drawn.
    """

    def __init__(self, config: AuditConfig, clock: Callable[[], float]) -> None:
        self._config = config
        self._clock = clock
        self._last = clock()
        self._gap_s: float | None = None  # between examples, mean
        self._n_left = float(config.max_per_hour)
        self._bytes_left = config.max_bytes_per_day
        self._spent_at = self._last

    def chance(self) -> float:
        """The chance, above 0. Call it once for each example that could be drawn."""
        now = self._clock()
        gap, self._last = now - self._last, now
        self._gap_s = gap if self._gap_s is None else self._gap_s + 0.01 * (gap - self._gap_s)
        per_hour = HOUR_S / max(self._gap_s, 1e-6)
        return min(self._config.share, 0.9 * self._config.max_per_hour / per_hour)

    def spend(self, n_bytes: int) -> bool:
        """Take one example from the budget; False if that is used up."""
        now = self._clock()
        hours, self._spent_at = (now - self._spent_at) / HOUR_S, now
        limit, limit_bytes = self._config.max_per_hour, self._config.max_bytes_per_day
        self._n_left = min(limit, self._n_left + hours * limit)
        self._bytes_left = min(limit_bytes, self._bytes_left + hours / 24 * limit_bytes)
        if self._n_left < 1 or self._bytes_left < n_bytes:
            return False
        self._n_left -= 1
        self._bytes_left -= n_bytes
        return True


def _facts(estimate: Estimate) -> dict[str, Any]:
    low, high = estimate.interval()
    share = estimate.share
    return {
        "examples": estimate.n,
        "drawn": estimate.n_drawn,
        "answered": estimate.n_answered,
        "differ": estimate.n_hits,
        "error": None if share is None else round(share, 6),
        "low": round(low, 6),
        "high": round(high, 6),
    }


def _load(state: Path | None) -> AuditEstimates:
    if state is None or not state.is_file():
        return AuditEstimates()
    try:
        content = json.loads(state.read_text(encoding="utf-8"))
        by_label = {int(label): Estimate(**values) for label, values in content["by_label"].items()}
        return AuditEstimates(Estimate(**content["whole"]), by_label)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return AuditEstimates()
