"""Running totals of an agent, its final summary, and the line that shows them on a terminal."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TextIO

from coe.cascade.types import CallCost
from coe.config import format_seconds

from .sinks import Outcome


@dataclass
class Tally:
    """Counts over all outcomes so far. Written under the agent's lock; a reader may see it half-updated."""

    n: int = 0
    n_failed: int = 0
    n_degraded: int = 0
    exits: Counter[int] = field(default_factory=Counter)
    answers: Counter[int] = field(default_factory=Counter)
    scores: float = 0.0
    n_kept: int = 0
    n_calls: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    latency_s: float = 0.0
    n_known: int = 0
    n_right: int = 0
    n_spooled: int = 0
    n_corrected: int = 0
    n_refused: int = 0
    cloud: str = "not asked yet"

    def add(self, outcome: Outcome) -> None:
        self.n += 1
        self.n_spooled += bool(outcome.spooled)
        self.n_refused += outcome.reason in ("refused", "rejected")
        decision = outcome.decision
        call = outcome.call if decision is None else decision.call
        self._count_call(call)
        if decision is None:
            self.n_failed += 1
            return
        self.exits[decision.exit_tier] += 1
        self.answers[decision.label] += 1
        self.scores += decision.score
        self.latency_s += outcome.latency_s
        if outcome.truth is not None:
            self.n_known += 1
            self.n_right += decision.label == outcome.truth
        left = call.n_calls > 0
        self.n_kept += not (left or decision.degraded)
        if decision.degraded:
            self.n_degraded += 1
            if outcome.reason != "held-back":  # then the cloud was not asked
                self.cloud = outcome.reason
        elif left:
            self.cloud = "ok"

    def correct(self, outcome: Outcome) -> None:
        """Count the call of a late answer; it is itself counted once the sinks have it."""
        if outcome.decision is not None:
            self._count_call(outcome.decision.call)

    def _count_call(self, call: CallCost) -> None:
        if call.bytes_sent:
            self.n_calls += 1
            self.bytes_sent += call.bytes_sent
            self.bytes_received += call.bytes_received

    @property
    def n_decided(self) -> int:
        return self.n - self.n_failed

    @property
    def kept_share(self) -> float:
        """Share of all examples that were decided on the device: neither sent nor degraded."""
        return self.n_kept / self.n if self.n else 0.0

    def line(self) -> str:
        """The totals in one line."""
        mean = format_seconds(self.latency_s / self.n_decided) if self.n_decided else "-"
        return (
            f"{self.n:,} examples  {self.kept_share:.0%} kept on the device  {format_bytes(self.bytes_sent)} sent  "
            f"{mean} mean  cloud {self.cloud}"
        )

    def summary(self, labels: Sequence[str] = ()) -> list[str]:
        """The totals in several lines, for the end of a run. `labels`: the task's, for answers that look wrong."""
        exits = ", ".join(f"tier {tier}: {self.exits[tier]:,}" for tier in sorted(self.exits))
        lines = [
            f"{self.n:,} examples, {self.n_decided:,} decided ({exits or 'none'})",
            f"{self.kept_share:.1%} kept on the device; {format_bytes(self.bytes_sent)} sent, "
            f"{format_bytes(self.bytes_received)} received in {self.n_calls:,} calls",
        ]
        if self.n_decided:
            lines.append(f"mean latency {format_seconds(self.latency_s / self.n_decided)}")
        if self.n_known:
            lines.append(f"accuracy {self.n_right / self.n_known:.2%} of {self.n_known:,} with a known label")
        if self.n_degraded:
            why = "a tier gave no answer, or the example may not leave"
            lines.append(f"{self.n_degraded:,} degraded: {why}, so the tier before it answered")
        if self.n_refused:
            lines.append(f"{self.n_refused:,} of them refused by a server: the log says why")
        if self.n_spooled or self.n_corrected:
            lines.append(f"{self.n_spooled:,} spooled for a later answer; {self.n_corrected:,} corrected")
        if self.n_failed:
            lines.append(f"{self.n_failed:,} without a decision: their records say why")
        sure = self.scores / max(self.n_decided, 1)
        return lines + [f"warning: {line}" for line in answers_warnings(self.answers, sure, labels)]


MANY = 50  # answers, before something is said of them
NEARLY_ALL = 0.97  # of the answers
NEARLY_UNIFORM = 0.1  # of the way from a share a label to 1


def answers_warnings(counts: Mapping[int, int], sure: float, labels: Sequence[str]) -> list[str]:
    """What looks wrong of the answers to many examples.

    Args:
        counts: answers by the labels' numbers.
        sure: mean probability of the answers; NaN where it is not known.
    """
    n, found = sum(counts.values()), []
    if n < MANY or len(labels) < 2:
        return []
    most = max(counts, key=lambda label: counts[label])
    if counts[most] >= NEARLY_ALL * n:
        found.append(f"{counts[most] / n:.0%} of {n:,} answers are {labels[most]}: is the input as in training?")
    if sure < 1 / len(labels) + NEARLY_UNIFORM * (1 - 1 / len(labels)):
        found.append(f"all of {len(labels)} labels are nearly as probable ({sure:.3f} on average): is `input:` right?")
    return found


def format_bytes(n_bytes: float) -> str:
    """ "812 B", "12.3 kB", "4.5 MB"."""
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes:.0f} B"


class LiveLine:
    """Shows `line()` each `every_s` seconds while the `with` block runs, if `stream` is a terminal.

    `hidden`: show nothing, since decisions are printed on the same terminal.
    """

    def __init__(self, line: Callable[[], str], stream: TextIO, every_s: float = 0.2, hidden: bool = False) -> None:
        self.line = line
        self.stream = stream
        self.every_s = every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True) if stream.isatty() and not hidden else None

    def __enter__(self) -> LiveLine:
        if self._thread:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread:
            self._thread.join()
            self.stream.write("\r\x1b[K")
            self.stream.flush()

    def _show(self) -> None:
        while not self._ended.wait(self.every_s):
            width = shutil.get_terminal_size().columns - 1
            self.stream.write("\r\x1b[K" + self.line()[:width])
            self.stream.flush()
