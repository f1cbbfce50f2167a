"""Live runs: one system at one delay, real processes, real sockets, every example's own latency."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from .processes import run_agent
from .progress import Progress
from .records import Record, read_records
from .systems import Bundle, Hop, edge_config, write

PACE_S = 0.006  # between two calls, on average, at least
CALLS_APART = 4.0  # and several times what one costs, so that none waits for another's
CALM_S = 5.0  # a run that ends sooner than this one by one needs no concurrency


@dataclass(frozen=True, slots=True)
class Pace:
    """How examples follow each other: one at a time, or started evenly with many under way."""

    interval_s: float
    max_in_flight: int

    @classmethod
    def of(cls, n: int, delay_s: float, deferral_rate: float = 1.0, cost_s: float = 0.0) -> Pace:
        """One at a time where even every example's delay is over soon, else evenly spaced starts at a low load.

        A delay is waiting, not work: examples that wait side by side do not slow each other down. The choice is the
        same for all systems at one delay, so that they are compared alike.

        Args:
            delay_s: of a round trip. deferral_rate: share of the examples that make it. cost_s: of the dearest system
                without a delay.
        """
        if n * (delay_s + 0.002) <= CALM_S:
            return cls.one_at_a_time()
        apart_s = max(PACE_S, CALLS_APART * cost_s)
        return cls(apart_s * deferral_rate, min(1024, 16 + round(1.5 * delay_s / apart_s)))

    @classmethod
    def one_at_a_time(cls) -> Pace:
        return cls(0.0, 0)


@dataclass(frozen=True, slots=True)
class Stage:
    """A bundled task, and the labelled examples that its agent decides.

    Args:
        lines: JSON lines, as the agent reads them from standard input; None: it has examples of its own.
    """

    bundle: Bundle
    lines: Path | None = None


def run_live(stage: Stage, system: str, hop: Hop, n: int, progress: Progress, title: str, pace: Pace) -> list[Record]:
    """One record per example of the first `n`, in the order of their names.

    Raises:
        TierUnavailable: a process failed.
        ConfigError: an example was left without a decision.
    """
    progress.start(title, n)
    with tempfile.TemporaryDirectory(prefix="coe-sim-") as folder:
        sink = Path(folder) / "decisions.jsonl"
        content = edge_config(
            stage.bundle, system, hop, sink, interval_s=pace.interval_s, max_in_flight=pace.max_in_flight
        )
        config = write(content, Path(folder) / "edge.yaml")
        run_agent(config, ["--limit", str(n)], lambda: progress.show(_n_lines(sink)), stdin=stage.lines)
        records = read_records(sink)
    progress.end()
    order = {record.id: record for record in records}
    return [order[name] for name in sorted(order)]


def _n_lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0
