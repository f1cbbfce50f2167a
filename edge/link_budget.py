"""What the links may carry: bytes a month, over restarts, and examples an hour; and how many were not sent for it."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from coe.cascade.errors import TierError
from coe.cascade.types import CallCost

from .link import LinkConfig
from .sinks import Outcome
from .sources import Example

HOUR_S = 3600.0
SAVE_S = 60.0  # between two writes of the file
SAVE_SHARE = 0.01  # of a month's bytes, after which it is written sooner
KEPT_MONTHS = 12
CLOCK_IS_SET = "2024"  # a clock before this year was not set since the device started


class OverCap(TierError):
    """The links have carried this month what they may."""

    reason = "cap"


class OverBudget(TierError):
    """As many examples as may be were sent in this hour."""

    reason = "budget"


NOT_SENT = (OverCap.reason, OverBudget.reason, "duplicate")  # reasons that are counted


class LinkBudget:
    """Counts what the tiers' calls send and receive, and refuses calls beyond the limits. Thread-safe.

    An hour begins with the first example sent in it. Calls under way are finished, so a month may end over its limit by
    these. A killed agent forgets what was sent since it last wrote the file: a hundredth of the limit and a call.

    Args:
        path: file that keeps the months' counts.
        wall_clock: seconds since 1970; `clock`: seconds that only go forward.
    """

    def __init__(
        self,
        config: LinkConfig,
        path: Path,
        *,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.path = path
        self._wall_clock, self._clock = wall_clock, clock
        self._lock = threading.Lock()
        self._months = read_months(path)
        self._hour_from, self._n_in_hour = clock(), 0
        self._saved_at, self._unsaved_bytes = clock(), 0

    def take(self, tier: str, n: int = 1) -> None:
        """Count `n` examples that are about to be sent.

        Raises:
            OverCap, OverBudget: they may not be.
        """
        with self._lock:
            if error := self._refusal(tier):
                raise error
            if not self._n_in_hour:
                self._hour_from = self._clock()
            self._n_in_hour += n

    def allows(self) -> bool:
        """True while an example may be sent."""
        with self._lock:
            return self._refusal("") is None

    def spend(self, call: CallCost) -> None:
        """Count what a call sent and received."""
        with self._lock:
            self._add("bytes", call.bytes_sent + call.bytes_received)

    def on_outcome(self, example: Example, outcome: Outcome) -> None:
        """Count an example that was not sent: for a limit, or because it is like one that was (`edge/field/scenes`)."""
        is_reused = outcome.decision is not None and outcome.decision.id != outcome.id
        reason = "duplicate" if is_reused else outcome.reason
        if outcome.deferred and not outcome.corrects and reason in NOT_SENT:
            with self._lock:
                self._add(reason, 1)

    def report(self) -> dict[str, Any]:
        """Counts of this month, and of the hour, as plain data."""
        with self._lock:
            self._refusal("")  # which notices that an hour is over
            month, counts = month_of(self._wall_clock(), self._months), self._counts()
            not_sent = {reason: counts[reason] for reason in NOT_SENT}
            return {"month": month, "bytes": counts["bytes"], "examples_in_hour": self._n_in_hour, "not_sent": not_sent}

    def close(self) -> None:
        with self._lock:
            self._save()

    def _refusal(self, tier: str) -> TierError | None:
        limit, most = self.config.max_bytes_per_month, self.config.max_examples_per_hour
        if self._clock() - self._hour_from >= HOUR_S:
            self._n_in_hour = 0
        if limit is not None and self._counts()["bytes"] >= limit:
            return OverCap(tier, f"the {limit / 1e6:g} MB of this month are used up (link.max_mb_per_month)")
        if most is not None and self._n_in_hour >= most:
            return OverBudget(tier, f"{self._n_in_hour} examples were sent in this hour (link.max_examples_per_hour)")
        return None

    def _counts(self) -> Counter[str]:
        return self._months.setdefault(month_of(self._wall_clock(), self._months), Counter())

    def _add(self, what: str, n: int) -> None:
        self._counts()[what] += n
        self._unsaved_bytes += n if what == "bytes" else 0
        limit = self.config.max_bytes_per_month
        is_much = limit is not None and self._unsaved_bytes >= SAVE_SHARE * limit
        if is_much or self._clock() - self._saved_at >= SAVE_S:
            self._save()

    def _save(self) -> None:
        self._saved_at, self._unsaved_bytes = self._clock(), 0
        months = {name: self._months[name] for name in sorted(self._months)[-KEPT_MONTHS:]}
        beside = self.path.with_suffix(".new")
        with contextlib.suppress(OSError):  # a full disk: the counts are still in memory
            self.path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps(months), encoding="utf-8")
            os.replace(beside, self.path)


def month_of(at: float, months: Collection[str]) -> str:
    """The month of a wall-clock second, such as "2026-11"; the latest of `months` where the clock was not set yet."""
    month = time.strftime("%Y-%m", time.gmtime(at))
    return max(months) if months and month < CLOCK_IS_SET else month


def read_months(path: Path) -> dict[str, Counter[str]]:
    """Counts by month, as a budget's file has them; none where it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {str(month): Counter({str(k): int(n) for k, n in counts.items()}) for month, counts in content.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
