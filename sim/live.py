"""Live runs: one system at one delay, real processes, real sockets, every example's own latency."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from .processes import run_agent
from .progress import Progress
from .records import Record, read_records
from .systems import Hop, edge_config, write

PACE_S = 0.006  # between two examples: several times what one costs, so that none waits for another's compute
CALM_S = 4.0  # a run that ends sooner than this one by one needs no concurrency


@dataclass(frozen=True, slots=True)
class Pace:
    """How examples follow each other. One at a time, or started evenly with many under way."""

    interval_s: float
    max_in_flight: int

    @classmethod
    def of(cls, n: int, delay_s: float) -> Pace:
        """Single-instance inference where that is quick, else evenly spaced starts at a low load.

        A delay is waiting, not work: examples that wait side by side do not slow each other down.
        """
        if n * (delay_s + 0.002) <= CALM_S:
            return cls(0.0, 1)
        return cls(PACE_S, min(1024, 16 + round(1.5 * delay_s / PACE_S)))


def run_live(system: str, hop: Hop, n: int, progress: Progress, title: str, pace: Pace | None = None) -> list[Record]:
    """One record per example of the first `n`.

    Raises:
        TierUnavailable: a process failed.
        ConfigError: an example was left without a decision.
    """
    round_trip = (hop.delay_s or 0.0) * (2 if hop.one_way else 1)
    pace = pace or (Pace(0.0, 1) if system == "edge-only" else Pace.of(n, round_trip))
    progress.start(title, n)
    with tempfile.TemporaryDirectory(prefix="coe-sim-") as folder:
        sink = Path(folder) / "decisions.jsonl"
        content = edge_config(system, hop, sink, interval_s=pace.interval_s, max_in_flight=pace.max_in_flight)
        config = write(content, Path(folder) / "edge.yaml")
        run_agent(config, ["--limit", str(n)], lambda: progress.show(_n_lines(sink)))
        records = read_records(sink)
    progress.end()
    order = {record.id: record for record in records}
    return [order[name] for name in sorted(order)]


def _n_lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0
