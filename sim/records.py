"""What was measured of each example, and what a row of the delay table says of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coe.cascade import ConfigError


@dataclass(frozen=True, slots=True)
class Record:
    """One example's way through one system.

    Args:
        latency_s: end to end, on the device.
        call_s: of it, waiting for the server (without the injected delay); server_s: of that, the server's own
            time. delay_s: the injected delay as achieved. hops_s: of server_s, what the server spent between itself
            and the servers behind it. All 0 where the example stayed on the device.
        votes: of each tier visited.
    """

    id: str
    label: int
    truth: int
    exit_tier: int
    latency_s: float
    call_s: float = 0.0
    server_s: float = 0.0
    delay_s: float = 0.0
    hops_s: float = 0.0
    bytes_sent: int = 0
    bytes_received: int = 0
    asked: int = 1
    votes: tuple[float, ...] = (1.0,)
    degraded: str | None = None

    @property
    def left_device(self) -> bool:
        return self.bytes_sent > 0 or self.degraded is not None

    @property
    def communication_s(self) -> float:
        """The injected delay and the wire, at every hop: all waiting that is no server's own time."""
        return self.delay_s + self.call_s - self.server_s + self.hops_s if self.left_device else 0.0

    @property
    def local_s(self) -> float:
        """The device's own time."""
        return self.latency_s - self.call_s - self.delay_s


def read_records(path: Path) -> list[Record]:
    """The records in an agent's JSON lines.

    Raises:
        ConfigError: an example has no decision, or no known label.
    """
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        content = json.loads(line)
        if "error" in content or "truth" not in content:
            raise ConfigError([f"{path}: example {content['id']}: {content.get('error', 'its label is not known')}"])
        call: Mapping[str, float] = content.get("call", {})
        records.append(
            Record(
                id=content["id"],
                label=content["label"],
                truth=content["truth"],
                exit_tier=content["exit_tier"],
                latency_s=content["latency_s"],
                call_s=call.get("call_s", 0.0),
                server_s=call.get("server_s", 0.0),
                delay_s=call.get("delay_s", 0.0),
                hops_s=call.get("hops_s", 0.0),
                bytes_sent=int(call.get("bytes_sent", 0)),
                bytes_received=int(call.get("bytes_received", 0)),
                asked=content["asked"],
                votes=tuple(content["tier_votes"]),
                degraded=content["degraded"],
            )
        )
    return records


@dataclass(frozen=True, slots=True)
class Row:
    """One system at one delay. Times in seconds; bytes count messages with gRPC's 5-byte prefix.

    `predicted_mean_s`: the virtual clock's mean, from the delay and the compute measured without one.
    `achieved_*`: of the injected delay, over the examples that left the device.
    """

    system: str
    delay_s: float
    n: int
    accuracy: float
    deferral_rate: float
    exits: tuple[float, ...]
    latency_mean_s: float
    latency_p50_s: float
    latency_p95_s: float
    latency_p99_s: float
    communication_mean_s: float
    bytes_sent_per_example: float
    bytes_received_per_example: float
    predicted_mean_s: float
    achieved_delay_s: float
    achieved_delay_p99_s: float
    n_degraded: int
    clock: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def summarise(
    system: str, delay_s: float, records: Sequence[Record], predicted_mean_s: float, *, n_tiers: int, clock: str
) -> Row:
    """The row of one run."""
    latencies = np.array([record.latency_s for record in records])
    away = [record for record in records if record.left_device]
    delays = np.array([record.delay_s for record in away] or [0.0])
    exits = np.bincount([record.exit_tier - 1 for record in records], minlength=n_tiers) / len(records)
    return Row(
        system=system,
        delay_s=delay_s,
        n=len(records),
        accuracy=float(np.mean([record.label == record.truth for record in records])),
        deferral_rate=len(away) / len(records),
        exits=tuple(float(share) for share in exits),
        latency_mean_s=float(latencies.mean()),
        latency_p50_s=float(np.quantile(latencies, 0.5)),
        latency_p95_s=float(np.quantile(latencies, 0.95)),
        latency_p99_s=float(np.quantile(latencies, 0.99)),
        communication_mean_s=float(np.mean([record.communication_s for record in records])),
        bytes_sent_per_example=float(np.mean([record.bytes_sent for record in records])),
        bytes_received_per_example=float(np.mean([record.bytes_received for record in records])),
        predicted_mean_s=predicted_mean_s,
        achieved_delay_s=float(delays.mean()),
        achieved_delay_p99_s=float(np.quantile(delays, 0.99)),
        n_degraded=sum(record.degraded is not None for record in records),
        clock=clock,
    )


def save_recording(path: Path, recording: Mapping[str, Sequence[Record]], about: str) -> None:
    """What the virtual clock replays: each system's records without an injected delay."""
    columns = {system: [list(asdict(record).values()) for record in records] for system, records in recording.items()}
    names = list(Record.__dataclass_fields__)
    path.write_text(json.dumps({"about": about, "columns": names, "systems": columns}), encoding="utf-8")


def load_recording(path: Path) -> tuple[dict[str, list[Record]], str]:
    """The records of `save_recording`, and what it said about them.

    Raises:
        ConfigError: not such a file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = content["columns"]
        systems = {
            system: [Record(**{**dict(zip(names, row, strict=True)), "votes": tuple(row[-2])}) for row in rows]
            for system, rows in content["systems"].items()
        }
        return systems, str(content["about"])
    except OSError as error:
        raise ConfigError([f"{path}: the recording cannot be read: {error.strerror}"]) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError([f"{path}: expected a recording of coe-sim --delays (recording.json): {error}"]) from None
