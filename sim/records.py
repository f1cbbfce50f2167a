"""Measurements of each example of a delay study: saved, made from a trace, and replayed in virtual time.

The vote, the rule and the order of the members are those of the bundled configs, through `coe.cascade`; the times are
the trace's, of one example alone on one thread. Nothing is known of the wire: a call takes the server's time, and
sends the example's bytes in the message that would carry them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coe.cascade import Agreement, Always, Batch, CallCost, Cascade, ConfigError, DeferralRule, Tier, Vote
from coe.cascade.vote import exact_share
from coe.config.cascade import LocalTierConfig
from coe.link import Clock, Delay, DelayedTier, Link, TierBehindLink, VirtualClock
from coe.protocol import inference_pb2 as pb
from coe.protocol.codec import add_input
from coe.protocol.service import FRAME_BYTES, INPUT

from .systems import SYSTEMS, BundledTask
from .traces import RecordedTier, TierSpec, Trace, to_cascade


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
        """The injected delay and the wire, at every server in between: all waiting that is no server's own time."""
        return self.delay_s + self.call_s - self.server_s + self.hops_s if self.left_device else 0.0

    @property
    def local_s(self) -> float:
        """The device's own time."""
        return self.latency_s - self.call_s - self.delay_s


CALL = ("call_s", "server_s", "delay_s", "hops_s", "bytes_sent", "bytes_received")  # of a decision's call


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
        names = ("id", "label", "truth", "exit_tier", "latency_s", "asked", "degraded")
        call = {name: value for name, value in content.get("call", {}).items() if name in CALL}
        records.append(Record(**{name: content[name] for name in names}, **call, votes=tuple(content["tier_votes"])))
    return records


@dataclass(frozen=True, slots=True)
class DelayRow:
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


def summarise(
    system: str, delay_s: float, records: Sequence[Record], predicted_mean_s: float, *, n_tiers: int, clock: str
) -> DelayRow:
    """The row of one run."""
    latencies = np.array([record.latency_s for record in records])
    away = [record for record in records if record.left_device]
    delays = np.array([record.delay_s for record in away] or [0.0])
    exits = np.bincount([record.exit_tier - 1 for record in records], minlength=n_tiers) / len(records)
    return DelayRow(
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
    """The records of `save_recording`, and where they were recorded.

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


Seconds = NDArray[np.float64]


def recording_of(bundle: BundledTask, trace: Trace) -> dict[str, list[Record]]:
    """Each system's records without a delay.

    Raises:
        ConfigError: the trace lacks a model of the configs, or what a recording needs.
    """
    return {system: _records(bundle, system, trace) for system in SYSTEMS}


def about(trace: Trace) -> str:
    """What is to be known about such a recording."""
    return f"{trace.name}, {len(trace):,} examples: models' times one example at a time, no wire"


def _records(bundle: BundledTask, system: str, trace: Trace) -> list[Record]:
    device, cloud = bundle.tiers(system)
    tiers = [*device, *cloud]
    _check(tiers, trace)
    rows = np.arange(len(trace))  # (B,)
    specs = [TierSpec(tuple(spec.name for spec in tier.members), tier.rule) for tier in tiers]
    run = to_cascade(specs, trace, [tier.early for tier in tiers]).decide(trace.batch())
    here, there = np.zeros(len(trace)), np.zeros(len(trace))  # (B,) seconds
    for number, visit in enumerate(run.visits):
        reached = rows if visit.rows is None else visit.rows
        place = here if number < len(device) else there
        place[reached] += _times(tiers[number], visit.vote, trace, reached)
    model = bundle.best_model if system == "cloud-only" else bundle.edge["tiers"][-1]["model"]
    payload = trace.payload_bytes
    assert payload is not None
    records = []
    for row, exit_tier in enumerate(run.exit_tier.tolist()):
        left = exit_tier > len(device)
        votes = run.tier_votes[row]
        records.append(
            Record(
                id=trace.ids[row],
                label=int(run.labels[row]),
                truth=int(trace.labels[row]),
                exit_tier=exit_tier,
                latency_s=float(here[row] + there[row]),
                call_s=float(there[row]),
                server_s=float(there[row]),
                bytes_sent=message_bytes(model, int(payload[row])) if left else 0,
                asked=int(run.asked[row]),
                votes=tuple(float(share) for share in votes[~np.isnan(votes)]),
            )
        )
    return records


def _check(tiers: Sequence[LocalTierConfig], trace: Trace) -> None:
    names = [spec.name for tier in tiers for spec in tier.members]
    missing = sorted({name for name in names if name not in trace.models})
    findings = [f'{trace.name}: expected the model "{name}" of the bundled configs, got none' for name in missing]
    if not findings:
        answers = [trace.models[name] for name in names]
        if trace.payload_bytes is None or any(one.latency_s is None or one.probabilities is None for one in answers):
            findings.append(f"{trace.name}: expected probabilities, latency_s and payload_bytes (record --latencies)")
    if findings:
        raise ConfigError(findings)


def _times(tier: LocalTierConfig, vote: Vote, trace: Trace, rows: NDArray[np.intp]) -> Seconds:
    """(A,) seconds that a tier takes: its slowest member side by side, else the members asked, in turn."""
    seconds = [trace.models[spec.name].latency_s for spec in tier.members]
    each = np.stack([own[rows].astype(np.float64) for own in seconds if own is not None])  # (M, A)
    taken: Seconds = each.max(axis=0) if tier.parallel else each.cumsum(axis=0)[vote.asked - 1, np.arange(len(rows))]
    return taken


@cache
def message_bytes(model: str, payload_bytes: int) -> int:
    """What a call sends for one example, with gRPC's own prefix, as a row of the study counts it."""
    request = pb.ModelInferRequest(model_name=model, model_version="0" * 12)  # a fingerprint is as long
    example = np.empty(1, dtype=object)
    example[0] = bytes(payload_bytes)
    add_input(request, INPUT, example)
    return request.ByteSize() + FRAME_BYTES


def replay(
    records: Sequence[Record],
    delay: Delay,
    *,
    has_device_tier: bool,
    link: Link | None = None,
    interval_s: float = 0.0,
) -> list[Record]:
    """The same examples behind `delay`, and behind a model of a link, in virtual time.

    Args:
        records: of a run without an injected delay.
        has_device_tier: the system has a tier on the device before the hop.
        interval_s: between the starts of two examples; 0: one starts where the one before ends.
    Raises:
        ConfigError: an example is degraded: what the cloud would have answered is not known.
    """
    degraded = [record.id for record in records if record.degraded]
    if degraded:
        first = f"{len(degraded)} degraded examples, {degraded[0]} first"
        raise ConfigError([f"expected a recording of answers alone, got {first} (record it again)"])
    clock = VirtualClock()
    cascade = _recorded_cascade(records, delay, clock, has_device_tier, link)
    replayed = []
    for row, record in enumerate(records):
        if interval_s:
            clock.seconds = row * interval_s
        started = clock.now()
        decision = cascade.decide(Batch((record.id,), np.array([[row]])))[0]
        latency_s = clock.now() - started
        if (decision.label, decision.exit_tier) != (record.label, record.exit_tier):
            raise AssertionError(f"replay of {record.id}: {decision} is not what was recorded: {record}")
        delay_s = decision.call.delay_s
        replayed.append(replace(record, latency_s=latency_s, delay_s=delay_s))
    return replayed


class _RecordedCalls(RecordedTier):
    """A recorded tier that also gives each call's bytes and time."""

    def __init__(self, records: Sequence[Record], vote: Vote, seconds: Seconds, clock: Clock) -> None:
        super().__init__("cloud", vote, Always(), seconds, clock)
        self._records = records

    def vote(self, batch: Batch, rule: DeferralRule) -> Vote:
        record = self._records[int(batch.x[0, 0])]  # examples come one by one
        call = CallCost(1, record.call_s, record.bytes_sent, record.bytes_received)
        return replace(super().vote(batch, rule), call=call)


def _recorded_cascade(
    records: Sequence[Record], delay: Delay, clock: Clock, has_device_tier: bool, link: Link | None
) -> Cascade:
    """The device's tier and the cloud's, which take the recorded time; examples are rows of `records`."""
    left = np.array([record.left_device for record in records])
    local_s = np.array([record.local_s for record in records])
    call_s = np.array([record.call_s for record in records])
    tiers: list[Tier] = []
    if has_device_tier:
        # What stayed had agreed and what left had not: any threshold between the two is the one that was used.
        kept = [record.votes[0] for record in records if not record.left_device]
        rule = Agreement(exact_share(min(kept, default=1.0)))
        tiers.append(RecordedTier("device", _vote_of(records, [one.votes[0] for one in records]), rule, local_s, clock))
    if left.any():
        before = int(has_device_tier)
        width = max(len(record.votes) for record in records) - before
        inner = np.full((len(records), width), np.nan, dtype=np.float32)
        for row, record in enumerate(records):
            inner[row, : len(record.votes) - before] = record.votes[before:]
        vote = replace(
            _vote_of(records, [record.votes[-1] for record in records]),
            exit_tier=np.array([record.exit_tier - before for record in records]),
            tier_votes=inner,
        )
        seconds = call_s if has_device_tier else local_s + call_s
        cloud: Tier = _RecordedCalls(records, vote, seconds, clock)
        cloud = cloud if link is None else TierBehindLink(cloud, link, clock=clock)
        tiers.append(DelayedTier(cloud, delay, clock))
    return Cascade(tiers)


def _vote_of(records: Sequence[Record], shares: Sequence[float]) -> Vote:
    """A vote for each record's label, by these shares of the members asked."""
    exact = [exact_share(share) for share in shares]
    asked = np.array([share.denominator for share in exact])
    count = np.array([share.numerator for share in exact])
    score = np.full(len(records), np.nan, dtype=np.float32)
    return Vote(np.array([record.label for record in records]), count, asked, int(asked.max()), score)
