"""What the rows of a delay study say, in figures and in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coe.settings import format_seconds

from .records import Row


def savings(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Per delay: how many times faster the cascade is than the cloud alone, and how much less it sends."""
    found = {(row.system, row.delay_s): row for row in rows}
    ratios = []
    for delay_s in dict.fromkeys(row.delay_s for row in rows):
        cascade, cloud = found["cascade", delay_s], found["cloud-only", delay_s]
        ratios.append(
            {
                "delay_s": delay_s,
                "latency_ratio": cloud.latency_mean_s / cascade.latency_mean_s,
                "communication_ratio": _ratio(cloud.communication_mean_s, cascade.communication_mean_s),
                "bytes_ratio": _ratio(cloud.bytes_sent_per_example, cascade.bytes_sent_per_example),
            }
        )
    return ratios


def _ratio(cloud: float, cascade: float) -> float | None:
    """None where nothing left the device: no number of times less than nothing."""
    return cloud / cascade if cascade else None


def verdict(rows: Sequence[Row]) -> list[str]:
    """Accuracy first, then one line per delay."""
    first = {row.system: row for row in reversed(rows)}
    cascade, cloud, edge = first["cascade"], first["cloud-only"], first["edge-only"]
    lines = [
        f"{1 - cascade.deferral_rate:.1%} of {cascade.n:,} examples were decided on the device; accuracy: cascade "
        f"{cascade.accuracy:.1%}, best single model {cloud.accuracy:.1%}, edge ensemble alone {edge.accuracy:.1%}."
    ]
    for ratio in savings(rows):
        times = [
            f"{name} {value:.1f}x lower"
            for name, value in (
                ("mean latency", ratio["latency_ratio"]),
                ("communication", ratio["communication_ratio"]),
                ("bytes sent", ratio["bytes_ratio"]),
            )
            if value is not None
        ]
        lines.append(f"at {format_seconds(ratio['delay_s'])}, against the cloud alone: {', '.join(times)}")
    return lines
