"""The paper's schedule: one delay per tier, the smallest at the first tier, the largest at the last.

Paper: Section 4.2, Figure 5. On the real clock every tier runs on a host of its own: the device, and a chain of real
servers, each forwarding what its members disagree on. On the virtual clock the same is summed up from recorded
decisions, of any trace. What a user waits is `reach`: an example pays the delay of every tier it reaches; beside it
stands the paper's own sum, exit_i * d_i (`exit`: the delay of its last tier alone).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coe.cascade import ConfigError, communication, communication_ratio
from coe.config import format_seconds
from sim.live import CloudProcess, LiveInput, Pace, run_live
from sim.output import Progress
from sim.records import Record
from sim.systems import Uplink, chain_config, write
from sim.traces import TierSpec, Trace

from .replay import replay_trace


@dataclass(frozen=True, slots=True)
class ScheduleStudy:
    """One run of the chain. Delays in seconds, one per tier; communication per example, in seconds.

    `exit_*`: the paper's sum over the exits; `ratio`: the last tier's delay over it (the paper's 14.3x etc.).
    `latency_mean_s`: None where the trace has no latencies.
    """

    name: str
    clock: str
    delays_s: list[float]
    n: int
    accuracy: float
    exits: list[float]
    latency_mean_s: float | None
    communication_measured_s: float
    communication_reach_s: float
    communication_exit_s: float
    ratio_measured: float
    ratio_exit: float

    @classmethod
    def of(
        cls,
        name: str,
        clock: str,
        delays_s: Sequence[float],
        one_way: bool,
        *,
        exit_tier: NDArray[np.int64],
        right: NDArray[np.bool_],
        latency_s: NDArray[np.float64] | None,
        paid_s: NDArray[np.float64] | None = None,
    ) -> ScheduleStudy:
        """Args: exit_tier, right, latency_s: (N,). paid_s: (N,) communication as measured; None: the delays alone."""
        per_tier = [delay_s * (2 if one_way else 1) for delay_s in delays_s]
        exits = np.bincount(exit_tier - 1, minlength=len(per_tier)) / len(exit_tier)
        reach = communication(exits, np.cumsum(per_tier))
        measured = reach if paid_s is None else float(paid_s.mean())
        return cls(
            name=name,
            clock=clock,
            delays_s=list(delays_s),
            n=len(exit_tier),
            accuracy=float(right.mean()),
            exits=[float(share) for share in exits],
            latency_mean_s=None if latency_s is None else float(latency_s.mean()),
            communication_measured_s=measured,
            communication_reach_s=reach,
            communication_exit_s=communication(exits, per_tier),
            ratio_measured=per_tier[-1] / measured,
            ratio_exit=communication_ratio(exits, per_tier),
        )


def spread(delays_s: Sequence[float], n_tiers: int) -> list[float]:
    """One delay per tier from a list: smallest first, largest last, evenly picked between.

    Raises:
        ConfigError: fewer delays than tiers.
    """
    if len(delays_s) < n_tiers:
        raise ConfigError([f"--delays: expected at least {n_tiers} delays, one per tier, got {len(delays_s)}"])
    ordered = sorted(delays_s)
    picks = np.linspace(0, len(ordered) - 1, n_tiers).round().astype(int)
    return [ordered[pick] for pick in picks]


def run_real(
    live_input: LiveInput, delays_s: Sequence[float], n: int, one_way: bool, progress: Progress
) -> ScheduleStudy:
    """The first `n` examples through the device and a chain of servers, one for each tier of the cloud."""
    bundle = live_input.bundle
    delays = spread(delays_s, bundle.n_tiers("cascade"))
    with tempfile.TemporaryDirectory(prefix="coe-sim-") as folder, ExitStack() as servers:
        port = None
        for number in reversed(range(1, len(delays))):
            after_s = 0.0 if port is None else delays[number + 1]
            config = chain_config(bundle, number - 1, port, after_s, one_way)
            path = write(config, Path(folder) / f"tier-{number + 1}.yaml")
            port = servers.enter_context(CloudProcess(path)).port
        uplink = Uplink(port or 0, delays[1], one_way, device_delay_s=delays[0])
        title = "cascade, tiers apart: " + ", ".join(map(format_seconds, delays))
        pace = Pace.of(n, (2 if one_way else 1) * sum(delays))
        records = run_live(live_input, "cascade", uplink, n, progress, title, pace)
    # An example that stayed paid the device's own delay; one that left has it among its delays already.
    paid = [record.communication_s if record.left_device else record.delay_s for record in records]
    latency = [record.latency_s for record in records]
    return _of_records(records, bundle.task, "real", delays, one_way, np.array(latency), np.array(paid))


def of_recording(
    records: Sequence[Record], name: str, n_tiers: int, delays_s: Sequence[float], one_way: bool
) -> ScheduleStudy:
    """From a cascade's records without a delay, in virtual time."""
    delays = spread(delays_s, n_tiers)
    waits = np.cumsum(delays) * (2 if one_way else 1)
    latency = [record.latency_s + waits[record.exit_tier - 1] for record in records]
    return _of_records(records, name, "virtual", delays, one_way, np.array(latency), None)


def of_trace(trace: Trace, specs: Sequence[TierSpec], delays_s: Sequence[float], one_way: bool) -> ScheduleStudy:
    """From recorded predictions, in virtual time; the members of a tier run side by side."""
    delays = spread(delays_s, len(specs))
    replayed = replay_trace(trace, specs)
    each = [[trace.models[name].latency_s for name in spec.members] for spec in specs]
    latency = None
    if all(own is not None for members in each for own in members):
        waits = np.cumsum(delays) * (2 if one_way else 1)
        taken = np.cumsum([np.max(np.array(members, dtype=np.float64), axis=0) for members in each], axis=0)  # (T, N)
        place = replayed.exit_tier - 1
        latency = taken[place, np.arange(len(trace))] + waits[place]
    return ScheduleStudy.of(
        trace.name, "virtual", delays, one_way, exit_tier=replayed.exit_tier, right=replayed.right, latency_s=latency
    )


def _of_records(
    records: Sequence[Record],
    name: str,
    clock: str,
    delays_s: Sequence[float],
    one_way: bool,
    latency_s: NDArray[np.float64],
    paid_s: NDArray[np.float64] | None,
) -> ScheduleStudy:
    exit_tier = np.array([record.exit_tier for record in records])
    right = np.array([record.label == record.truth for record in records])
    return ScheduleStudy.of(
        name, clock, delays_s, one_way, exit_tier=exit_tier, right=right, latency_s=latency_s, paid_s=paid_s
    )


def as_text(study: ScheduleStudy) -> str:
    tiers = ", ".join(
        f"tier {number}: {format_seconds(delay_s)}, {share:.1%} of examples exit"
        for number, (delay_s, share) in enumerate(zip(study.delays_s, study.exits, strict=True), start=1)
    )
    latency = "not recorded" if study.latency_mean_s is None else format_seconds(study.latency_mean_s)
    return "\n".join(
        [
            f"{study.name}, {study.clock} clock, tiers apart ({tiers})",
            f"mean latency {latency}, accuracy {study.accuracy:.1%} of {study.n:,}",
            f"communication per example: {format_seconds(study.communication_measured_s)} "
            f"(the delays alone, reach: {format_seconds(study.communication_reach_s)}), "
            f"{study.ratio_measured:.1f}x less than the last tier's delay",
            f"the paper's sum exit_i * d_i (exit): {format_seconds(study.communication_exit_s)}, "
            f"{study.ratio_exit:.1f}x less",
        ]
    )
