"""The paper's schedule: one delay per tier, the smallest at the first tier, the largest at the last.

Paper: Section 5, Figure 5. Every tier runs on a host of its own: the device, and a chain of real servers, each
forwarding what its members disagree on. What is measured is what a user waits (`reach`: an example pays the delay of
every tier it reaches); beside it stands the paper's own sum, exit_i * d_i (`exit`: the delay of its last tier alone).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coe.cascade import ConfigError, communication, communication_ratio
from coe.config import format_seconds
from sim.live import CloudProcess, LiveInput, Pace, run_live
from sim.output import Progress
from sim.systems import BundledTask, Uplink, chain_config, write

TASK = "digits"
N_TIERS = 3


@dataclass(frozen=True, slots=True)
class ScheduleStudy:
    """One run of the chain. Delays in seconds, one per tier; communication per example, in seconds.

    `exit_*`: the paper's sum over measured exits; `ratio`: the last tier's delay over it (the paper's 14.3x etc.).
    """

    delays_s: list[float]
    n: int
    accuracy: float
    exits: list[float]
    latency_mean_s: float
    communication_measured_s: float
    communication_reach_s: float
    communication_exit_s: float
    ratio_measured: float
    ratio_exit: float


def spread(delays_s: Sequence[float]) -> list[float]:
    """One delay per tier from a list: smallest first, largest last, evenly picked between.

    Raises:
        ConfigError: fewer delays than tiers.
    """
    if len(delays_s) < N_TIERS:
        raise ConfigError([f"--delays: expected at least {N_TIERS} delays, one per tier, got {len(delays_s)}"])
    ordered = sorted(delays_s)
    picks = np.linspace(0, len(ordered) - 1, N_TIERS).round().astype(int)
    return [ordered[pick] for pick in picks]


def run(delays_s: Sequence[float], n: int, one_way: bool, progress: Progress) -> ScheduleStudy:
    """The first `n` digits through the device and a chain of two servers."""
    own, middle, far = spread(delays_s)
    bundle = BundledTask.of(TASK)
    trips = 2 if one_way else 1
    with tempfile.TemporaryDirectory(prefix="coe-sim-") as folder:
        best = write(chain_config(bundle, None, 0.0, one_way), Path(folder) / "best.yaml")
        with CloudProcess(best) as last:
            medium = write(chain_config(bundle, last.port, far, one_way), Path(folder) / "medium.yaml")
            with CloudProcess(medium) as first:
                uplink = Uplink(first.port, middle, one_way, device_delay_s=own)
                title = "cascade, tiers apart: " + ", ".join(map(format_seconds, (own, middle, far)))
                pace = Pace.of(n, trips * (own + middle + far))
                records = run_live(LiveInput(bundle), "cascade", uplink, n, progress, title, pace)
    exits = np.bincount([record.exit_tier - 1 for record in records], minlength=N_TIERS) / n
    per_tier = [own * trips, middle * trips, far * trips]
    # An example that stayed paid the device's own delay; one that left has it among its delays already.
    paid = [record.communication_s if record.left_device else record.delay_s for record in records]
    measured = float(np.mean(paid))
    return ScheduleStudy(
        delays_s=[own, middle, far],
        n=n,
        accuracy=float(np.mean([record.label == record.truth for record in records])),
        exits=[float(share) for share in exits],
        latency_mean_s=float(np.mean([record.latency_s for record in records])),
        communication_measured_s=measured,
        communication_reach_s=communication(exits, np.cumsum(per_tier)),
        communication_exit_s=communication(exits, per_tier),
        ratio_measured=per_tier[-1] / measured,
        ratio_exit=communication_ratio(exits, per_tier),
    )


def as_text(study: ScheduleStudy) -> str:
    tiers = ", ".join(
        f"tier {number}: {format_seconds(delay_s)}, {share:.1%} of examples exit"
        for number, (delay_s, share) in enumerate(zip(study.delays_s, study.exits, strict=True), start=1)
    )
    return "\n".join(
        [
            f"tiers apart ({tiers})",
            f"mean latency {format_seconds(study.latency_mean_s)}, accuracy {study.accuracy:.1%} of {study.n:,}",
            f"communication per example: measured {format_seconds(study.communication_measured_s)} "
            f"(the delays alone, reach: {format_seconds(study.communication_reach_s)}), "
            f"{study.ratio_measured:.1f}x less than the last tier's delay",
            f"the paper's sum exit_i * d_i (exit): {format_seconds(study.communication_exit_s)}, "
            f"{study.ratio_exit:.1f}x less",
        ]
    )
