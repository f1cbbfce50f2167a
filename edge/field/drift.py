"""Drift detection: how often the device defers, and with which votes it decides, against a measured baseline.

It watches the share of examples that the device defers, the shares that it decides with a number of votes, such as
2 of 3, and the share of audited decisions on which the cloud differs. Leaving a band is an event, and so is the return.
`coe-edge calibrate` measures the baselines and prints the `drift:` section of a config.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.calibration import CalibratedVote
from coe.cascade.cascade import Cascade
from coe.cascade.errors import ConfigError, InputError, TierFailed
from coe.cascade.rule import DeferralRule
from coe.cascade.tier import Tier
from coe.cascade.types import Array, Batch, Vote
from coe.config.open import open_cascade
from coe.config.program import positive_int
from coe.models.inputs import InputDecoder
from edge.agent import RemoteTiers
from edge.config import default_config, read_config
from edge.sinks import Event, Outcome
from edge.sources import Example, open_data
from edge.tally import answers_warnings

from .config import Baseline, DriftConfig
from .privacy import SendPolicy, open_send_policy

log = logging.getLogger(__name__)

DEFERRED = "deferred"
ACTIONS = {
    "gate": "begins: the device answers by stricter thresholds",
    "defer": "begins: every example is sent",
    "hold": "begins: the device's answers are marked uncertain",
}
AUDIT_ERROR = "audit_error"
RETURN_FACTOR = 100.0  # an alarm ends inside a narrower band: the one of this many times its false-alarm rate


class Gauge:
    """A share over a sliding window, and its band.

    Once the window is full, the share is compared with the band each time a tenth of the window is new.
    """

    def __init__(self, baseline: Baseline, window: int, false_alarms: float) -> None:
        self.what = baseline.what
        self.baseline = baseline
        self.low, self.high = baseline.band or band(baseline.share, baseline.n, window, false_alarms)
        self.return_band = baseline.band or band(
            baseline.share, baseline.n, window, min(0.5, false_alarms * RETURN_FACTOR)
        )
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
        """The share over the window; None while that is empty."""
        return self._n_hits / len(self._hits) if self._hits else None

    def add(self, is_hit: bool) -> bool:
        """Add an example. True if the share has left its band, or is back in it."""
        if len(self._hits) == self._hits.maxlen:
            self._n_hits -= self._hits[0]
        self._hits.append(is_hit)
        self._n_hits += is_hit
        self._since += 1
        if self._since < self._step or len(self._hits) < (self._hits.maxlen or 0):
            return False
        self._since = 0
        share = self._n_hits / len(self._hits)
        low, high = self.return_band if self.is_out else (self.low, self.high)
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


class DriftResponse:
    """What an alarm does while it lasts; `is_active`: it does so now.

    Its `rules` stand before those of the tiers on this device: by the stricter thresholds of their calibration
    ("gate"), or so that nothing stays ("defer"). A link that is down, or whose budget is used up, leaves the device's
    own answer, as ever.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.is_active = False
        self.rules: list[GatedRule] = []  # of the tiers on this device

    def attach(self, tiers: Sequence[Tier]) -> None:
        """Give the tiers on this device rules that are stricter while the alarm lasts."""
        if self.kind in ("gate", "defer"):
            for tier in itertools.takewhile(lambda tier: not tier.waits, tiers):
                tier.rule = rule = GatedRule(tier.rule, self)
                self.rules.append(rule)

    @property
    def is_uncertain(self) -> bool:
        return self.is_active and self.kind == "hold"


class GatedRule:
    """`usual`, and while a response is active what its kind makes of it."""

    def __init__(self, usual: DeferralRule, response: DriftResponse) -> None:
        self.usual = usual
        self.pools_scores = usual.pools_scores
        self._response = response
        self._stricter = usual.stricter() if isinstance(usual, CalibratedVote) and response.kind == "gate" else None
        if isinstance(usual, CalibratedVote):
            self.fuse, self.settles = usual.fuse, self._settles

    def needed(self, n_members: int) -> int | None:
        return self.usual.needed(n_members)

    def exits(self, batch: Batch, vote: Vote) -> NDArray[np.bool_]:
        if not self._response.is_active:
            return self.usual.exits(batch, vote)
        return np.zeros(len(vote), dtype=np.bool_) if self._stricter is None else self._stricter.exits(batch, vote)

    def _settles(self, outputs: Sequence[Array], n_members: int) -> bool:
        rule = self._stricter if self._response.is_active else self.usual
        return isinstance(rule, CalibratedVote) and rule.settles(outputs, n_members)


class Drift:
    """An outcome observer with a gauge for each baseline. Thread-safe.

    Args:
        response: what an alarm does; it ends once every share is back in its band. While it lasts, the shares are
            those of what the device would have decided by its usual rules.
    """

    def __init__(
        self, config: DriftConfig, notify: Callable[[Event], None], response: DriftResponse | None = None
    ) -> None:
        self._response = response or DriftResponse(config.on_drift)
        self._notify = notify
        self._lock = threading.Lock()
        self._gauges = {
            baseline.what: Gauge(
                baseline, config.audits if baseline.what == AUDIT_ERROR else config.window, config.false_alarms
            )
            for baseline in config.baselines
        }

    def on_outcome(self, example: Example, outcome: Outcome) -> None:
        what = category(outcome, self._response.rules)
        if what is not None:
            self._count({name: name == what for name in self._gauges if name != AUDIT_ERROR})

    def _respond(self) -> list[dict[str, Any]]:
        """Begin or end the response where the last alarm has; the facts of an event, if so."""
        response = self._response
        is_out = any(gauge.is_out for gauge in self._gauges.values())
        if is_out == response.is_active or response.kind == "report":
            return []
        response.is_active = is_out
        log.warning(
            "drift: %s %s", response.kind, ACTIONS[response.kind] if is_out else "ends: every share is as usual"
        )
        return [{"what": "response", "kind": response.kind, "state": "active" if is_out else "ended"}]

    def on_audit(self, differs: bool) -> None:
        """Count an audited decision; `differs`: the cloud gave another label."""
        if AUDIT_ERROR in self._gauges:
            self._count({AUDIT_ERROR: differs})

    def _count(self, hits: Mapping[str, bool]) -> None:
        """Add an example to some gauges."""
        with self._lock:
            changed = [self._gauges[what].facts() for what, is_hit in hits.items() if self._gauges[what].add(is_hit)]
            changed += self._respond()
        for facts in changed:
            self._notify(Event("drift", facts))

    def report(self) -> list[dict[str, Any]]:
        """The gauges as plain data."""
        with self._lock:
            return [gauge.facts() for gauge in self._gauges.values()]


def category(outcome: Outcome, rules: Sequence[GatedRule] = ()) -> str | None:
    """ "deferred", or "2 of 3": votes for the device's own decision, of the members asked; None for other outcomes.

    An example that the device defers is "deferred" with or without an answer of the cloud.

    Args:
        rules: of the tiers on this device, where they may be stricter than usual: what counts is the usual.
    """
    if outcome.corrects:
        return None
    if outcome.decisions is not None:
        for visit, rule in zip(outcome.decisions.visits, rules, strict=False):
            if rule.usual.exits(outcome.decisions.batch, visit.vote)[0]:
                return f"{int(visit.vote.count[0])} of {int(visit.vote.asked[0])}"
    if outcome.deferred:
        return DEFERRED
    decision = outcome.decision
    return None if decision is None else f"{round(decision.vote * decision.asked)} of {decision.asked}"


def band(share: float, n: int, window: int, false_alarms: float) -> tuple[float, float]:
    """Low and high share between which a window lies with chance 1 - false_alarms, if nothing has changed.

    It allows for the calibration's own sampling error: the predictive distribution of a window after `share * n` of
    `n` (beta-binomial, Jeffreys prior). Each tail has half of the chance.
    """
    a, b = share * n + 0.5, (1 - share) * n + 0.5
    constant = _log_beta(a, b) + math.log(window + 1)  # "window over k" is 1 / ((window + 1) B(k + 1, window - k + 1))
    pmf = [
        math.exp(_log_beta(a + k, b + window - k) - _log_beta(k + 1, window - k + 1) - constant)
        for k in range(window + 1)
    ]
    return _tail(pmf, false_alarms / 2) / window, 1 - _tail(pmf[::-1], false_alarms / 2) / window


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _tail(pmf: list[float], chance: float) -> int:
    """The first count above the lower tail of that chance."""
    total = 0.0
    for k, mass in enumerate(pmf):
        total += mass
        if total > chance:
            return k
    return len(pmf) - 1


WINDOW = 1000
FALSE_ALARMS = 1e-6


@dataclass
class Calibration:
    """Counts of the examples of a calibration set.

    Args:
        categories: examples by `category`; answers: those decided here by their labels' numbers.
        n_bad: examples that cannot be read.
        n_held: examples that may not leave the device, and were not sent.
        n_asked: examples that were decided here and sent anyway; n_differ: of those, with another answer.
    """

    categories: Counter[str] = field(default_factory=Counter)
    answers: Counter[int] = field(default_factory=Counter)
    n_bad: int = 0
    n_held: int = 0
    n_asked: int = 0
    n_differ: int = 0

    def bands(self) -> dict[str, dict[str, float]]:
        """The `bands:` of a config: each share, and the number of examples it is of."""
        n = self.categories.total()
        names = sorted({DEFERRED, *self.categories})  # deferred is listed even if none was
        bands = {what: {"share": round(self.categories[what] / n, 6), "n": n} for what in names}
        if self.n_asked:
            bands[AUDIT_ERROR] = {"share": round(self.n_differ / self.n_asked, 6), "n": self.n_asked}
        return bands

    def as_yaml(self) -> str:
        """The `drift:` section of a config."""
        lines = ["drift:", f"  window: {WINDOW}", "  bands:"]
        for what, entry in self.bands().items():
            low, high = band(entry["share"], int(entry["n"]), WINDOW, FALSE_ALARMS)
            content = f"{what}: {{share: {entry['share']:g}, n: {entry['n']}}}"
            lines.append(f"    {content:<42}# a window of {WINDOW:,} stays within {low:.1%} to {high:.1%}")
        return "\n".join(lines)


def calibrate_command(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="coe-edge calibrate",
        description="Measure the baseline for drift detection: how often the device defers, and with which votes it "
        "decides, on examples like those to come.",
    )
    parser.add_argument("--config", type=Path, help="YAML file; default: the bundled digits")
    parser.add_argument("--data", required=True, help="what `coe-sim record` takes, or - for JSON lines on stdin")
    parser.add_argument("--limit", type=positive_int, metavar="N", help="the first N examples")
    parser.add_argument("--audit", action="store_true", help="also send the cloud the examples that the device decides")
    parser.add_argument("--json", action="store_true", help="print JSON in place of YAML")
    options = parser.parse_args(arguments)
    config = read_config(options.config or default_config())
    source = open_data(options.data, config.cascade.task)
    cascade = open_cascade(config.cascade)
    try:
        remote_tiers = RemoteTiers(cascade, InputDecoder(config.cascade.task.input_spec))
        if options.audit and not remote_tiers.is_there:
            raise ConfigError(["--audit: the cascade has no tier beyond this device to ask (leave it out)"])
        examples = itertools.islice(source.examples(threading.Event()), options.limit)
        policy = open_send_policy(config.field, config.cascade.task.labels)
        found = calibrate(_with_progress(examples), cascade, remote_tiers, asks=options.audit, policy=policy)
    finally:
        cascade.close()
    if found.n_held:
        print(f"coe-edge: {found.n_held:,} may not leave this device, and were not sent", file=sys.stderr)
    if not found.categories:
        raise ConfigError([f"--data: expected examples, got none that can be read in {options.data}"])
    for line in answers_warnings(found.answers, math.nan, config.cascade.task.labels):
        print(f"coe-edge: warning: {line}", file=sys.stderr)
    values = {"bands": found.bands(), "unreadable": found.n_bad, "held_back": found.n_held}
    print(json.dumps(values) if options.json else found.as_yaml())
    return 0


def calibrate(
    examples: Iterable[Example],
    cascade: Cascade,
    remote_tiers: RemoteTiers,
    *,
    asks: bool,
    policy: SendPolicy | None = None,
) -> Calibration:
    """Counts of what the local tiers do with the examples.

    Args:
        asks: also send the remote tiers the examples that are decided here.
        policy: which of them may not be sent; None: all may.
    Raises:
        TierError: the remote tiers do not answer.
    """
    found = Calibration()
    for example in examples:
        try:
            if example.value is None:
                raise InputError(example.error or "it has no value")
            run = cascade.start(remote_tiers.decoder.batch([example.id], [example.value]))
            while not run.is_done and not run.next_tier.waits:
                run.step()
            decision = run.decisions()[0] if run.is_done else None
        except (InputError, TierFailed):
            found.n_bad += 1
            continue
        what = category(Outcome(example.id, decision, 0.0, deferred=decision is None))
        assert what is not None
        found.categories[what] += 1
        if decision is not None:
            found.answers[decision.label] += 1
        if decision is not None and asks:
            if policy is not None and policy(example, run) is not None:
                found.n_held += 1
                continue
            found.n_asked += 1
            found.n_differ += remote_tiers.ask(example).label != decision.label
    return found


def _with_progress(examples: Iterable[Example]) -> Iterator[Example]:
    """The examples; on a terminal, a line shows how many there were so far."""
    n = 0
    for n, example in enumerate(examples, start=1):
        if n % 50 == 0 and sys.stderr.isatty():
            print(f"\r\x1b[K{n:,} examples", end="", file=sys.stderr, flush=True)
        yield example
    if sys.stderr.isatty():
        print(f"\r\x1b[K{n:,} examples", file=sys.stderr)
