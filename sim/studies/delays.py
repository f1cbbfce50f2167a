"""The delay study: what a cascade saves when the cloud is far away. Paper: Section 5, Figure 5.

A real server and a real agent run as processes on this machine; the agent injects each delay at the hop between
the two. Three systems decide the same examples: the cascade, the best single model in the cloud for every example,
the edge ensemble alone. The virtual clock predicts each row from a run without any delay.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coe.cascade import Delay
from coe.settings import format_seconds

from ..from_trace import about, recording_of
from ..live import Pace, Stage, run_live
from ..processes import Server
from ..progress import Progress
from ..records import Record, Row, load_recording, summarise
from ..replay import replay
from ..systems import SYSTEMS, Bundle, Hop
from ..traces import read_trace

RECORDED = Path(__file__).parents[1] / "recorded"  # of tasks that have no trace

Recording = Mapping[str, Sequence[Record]]


@dataclass(frozen=True, slots=True)
class DelayStudy:
    """What one run of the study gives.

    Args:
        rows: measured (or, with the virtual clock alone, replayed) systems at each delay.
        latencies: (system, delay_s) -> seconds of each example, for the distribution.
        recording: the runs without a delay, which the virtual clock replays.
        about: where the recording was made.
    """

    rows: list[Row]
    latencies: dict[tuple[str, float], list[float]]
    recording: Recording
    about: str
    one_way: bool


def run_real(stage: Stage, delays_s: Sequence[float], n: int, one_way: bool, progress: Progress) -> DelayStudy:
    """Every system at every delay on this machine, beside the virtual clock's prediction."""
    bundle = stage.bundle
    rows: list[Row] = []
    latencies: dict[tuple[str, float], list[float]] = {}
    with Server(bundle.cloud_config) as server:
        calm = Pace.one_at_a_time()
        run_live(stage, "cascade", Hop(server.port), min(n, 100), progress, "warming up", calm)
        recording = {
            system: run_live(stage, system, Hop(server.port), n, progress, f"{system}, no delay", calm)
            for system in SYSTEMS
        }
        deferral_rates = {system: sum(record.left_device for record in recording[system]) / n for system in SYSTEMS}
        cost_s = max(float(np.median([record.latency_s for record in records])) for records in recording.values())
        for delay_s in delays_s:
            delay = Delay(delay_s, one_way)
            for system in SYSTEMS:
                hop = Hop(server.port, delay_s, one_way)
                pace = Pace.of(n, delay.round_trip_s, deferral_rates[system], cost_s)
                title = f"{system} at {format_seconds(delay_s)}"
                records = run_live(stage, system, hop, n, progress, title, pace)
                predicted = _mean_latency(_replayed(system, recording[system], delay))
                rows.append(_row(bundle, system, delay_s, records, predicted, "real"))
                latencies[system, delay_s] = [record.latency_s for record in records]
    where = f"{platform.machine()}, Python {platform.python_version()}, {n} examples"
    return DelayStudy(rows, latencies, recording, where, one_way)


def run_virtual(bundle: Bundle, delays_s: Sequence[float], one_way: bool, path: Path | None) -> DelayStudy:
    """The study in virtual time, from a recording: no process, no sleeping.

    Args:
        path: a `recording.json` of an earlier real run; None: the bundled one, or what the bundled trace gives.
    """
    bundled = RECORDED / f"{bundle.task}.json"
    if path is not None or bundled.exists():
        recording, where = load_recording(path or bundled)
    else:
        trace = read_trace(Path(f"zoo:{bundle.task}"))
        recording, where = recording_of(bundle, trace), about(trace)
    rows: list[Row] = []
    latencies: dict[tuple[str, float], list[float]] = {}
    for delay_s in delays_s:
        for system in SYSTEMS:
            records = _replayed(system, recording[system], Delay(delay_s, one_way))
            rows.append(_row(bundle, system, delay_s, records, _mean_latency(records), "virtual"))
            latencies[system, delay_s] = [record.latency_s for record in records]
    return DelayStudy(rows, latencies, recording, where, one_way)


def n_steps(delays_s: Sequence[float]) -> int:
    """Live runs of `run_real`, for its progress."""
    return 1 + len(SYSTEMS) * (1 + len(delays_s))


def _mean_latency(records: Sequence[Record]) -> float:
    return float(np.mean([record.latency_s for record in records]))


def _replayed(system: str, recording: Sequence[Record], delay: Delay) -> list[Record]:
    return replay(recording, delay, has_device_tier=system != "cloud-only")


def _row(bundle: Bundle, system: str, delay_s: float, records: Sequence[Record], predicted: float, clock: str) -> Row:
    return summarise(system, delay_s, records, predicted, n_tiers=bundle.n_tiers(system), clock=clock)
